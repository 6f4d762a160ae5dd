"""`follow`, `follow_options` and `server`: what is swapped, refused, undone, and when it is tried again.

`tests/serving/test_swap.py` does it with a real server under load; here the server is `tests/fakes/triton.py`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError, EngineError, GenrecError, ModelError, RetryError
from genrec_batch.model import registering, registry
from genrec_batch.serving import expected, repository, versions
from genrec_batch.serving.arms import Arms
from genrec_batch.serving.follow import Follower
from genrec_batch.serving.follow_options import FollowConfig
from tests.fakes.triton import FakeTriton
from tests.serving.swapping import NAME, broken_weights, promote

ROOT = Path(__file__).parents[2]


@pytest.fixture
def models(tmp_path, model_dir):
    """Two models that differ in their cards only, which makes them two versions of a registry."""
    shutil.copytree(model_dir, tmp_path / "first")
    shutil.copytree(model_dir, tmp_path / "second")
    (tmp_path / "second" / "README.md").write_text("another card\n")
    return tmp_path / "first", tmp_path / "second"


@pytest.fixture
def root(tmp_path, models):
    promote(tmp_path / "registry", models[0])
    return tmp_path / "registry"


@pytest.fixture
def triton(tmp_path):
    fake = FakeTriton(tmp_path / "repository" / "genrec")
    yield fake
    fake.close()


@pytest.fixture
def quick(monkeypatch):
    """No engine: what a version has to answer is its number in the registry."""
    monkeypatch.setattr(expected, "computed", instead)


def instead(folder, _):
    followed = json.loads((folder / "serving.json").read_text())["followed"]["versions"]
    label = ", ".join(each["version"] for each in followed.values())
    answers = [{"request": "{}", "version": label, "arm": "", "videos": [1, 2], "log_probs": [-1.0, -2.0]}]
    (folder / "expected.json").write_text(json.dumps(answers))
    return answers


def follower(root, triton=None, **options):
    """A follower; the repository of `triton` is beside the registry."""
    url = None if triton is None else triton.url
    config = FollowConfig(registry=str(root), out=str(Path(root).parent / "repository"), triton=url, **options)
    return Follower.of(config, NAME)


def home_of(root):
    return root.parent / "repository" / "genrec"


@pytest.mark.usefixtures("quick")
def test_a_promotion_and_a_rollback_become_versions_that_answer(root, triton, models):
    mine = follower(root, triton)
    assert mine.look() == {"repository": str(home_of(root)), "version": 1, "of": "ranker@1", "changed": True}
    assert mine.look()["changed"] is False
    promote(root, models[1])
    assert (mine.look()["version"], triton.ready) == (2, 2)
    registering.rollback(root, NAME)
    assert (mine.look()["of"], triton.ready) == ("ranker@1", 3)
    assert triton.loads == [1, 2, 3]
    assert versions.numbers(home_of(root)) == [1, 2, 3]


@pytest.mark.usefixtures("quick")
def test_old_versions_are_removed_and_the_live_one_never(root, triton, models):
    mine = follower(root, triton, keep=1)
    for each in (models[1], models[0], models[1]):
        mine.look()
        promote(root, each)
    mine.look()
    assert versions.numbers(home_of(root)) == [triton.ready]


@pytest.mark.usefixtures("quick")
def test_a_version_that_the_server_cannot_load_is_withdrawn_and_not_tried_again(root, triton, models):
    mine = follower(root, triton)
    mine.look()
    promote(root, models[1])
    triton.refuses = "the device has no memory"
    for _ in range(3):
        with pytest.raises(
            EngineError, match=r"ranker@2 does not become live: .* cannot load it: .*no memory; version 1 s"
        ):
            mine.look()
    assert (triton.loads, triton.ready, versions.numbers(home_of(root))) == ([1, 2], 1, [1])
    registering.rollback(root, NAME)
    assert mine.look()["version"] == 1
    triton.refuses = ""
    promote(root, models[1])  # something changed
    assert (mine.look()["version"], triton.ready) == (3, 3)


@pytest.mark.usefixtures("quick")
def test_a_server_that_polls_is_waited_for(root, triton, models):
    triton.polls = True
    mine = follower(root, triton)
    assert mine.look()["version"] == 1
    promote(root, models[1])
    triton.refuses = "no such file"
    with pytest.raises(EngineError, match="cannot load it: no such file"):
        mine.look()
    assert versions.numbers(home_of(root)) == [1]


@pytest.mark.usefixtures("quick")
def test_a_server_that_ends_during_a_load_does_not_find_the_version_again(root, triton, models):
    mine = follower(root, triton)
    mine.look()
    promote(root, models[1])
    triton.crashes = True
    with pytest.raises(EngineError, match="the server ended, or was cut off"):
        mine.look()
    assert versions.numbers(home_of(root)) == [1]


@pytest.mark.usefixtures("quick")
def test_a_version_that_answers_otherwise_is_taken_back(root, triton, models):
    mine = follower(root, triton)
    mine.look()
    promote(root, models[1])
    triton.answers_of = 1
    with pytest.raises(ModelError, match="of version 'ranker@1', not of 'ranker@2'"):
        mine.look()
    assert (triton.loads, triton.ready, versions.numbers(home_of(root))) == ([1, 2, 1], 1, [1])


@pytest.mark.usefixtures("quick")
def test_a_server_that_was_started_anew_loads_the_version_that_was_live(root, triton):
    mine = follower(root, triton)
    mine.look()
    triton.ready = 0
    assert mine.look() == {"repository": str(home_of(root)), "version": 1, "of": "ranker@1", "changed": False}
    assert triton.ready == 1


@pytest.mark.usefixtures("quick")
def test_a_version_of_a_killed_follower_is_not_withdrawn_while_the_server_loads_it(root, triton, models, monkeypatch):
    mine, home = follower(root, triton), home_of(root)
    mine.look()
    promote(root, models[1])
    killed_while_loading(mine, monkeypatch)
    assert (triton.ready, versions.numbers(home)) == (1, [1, 2])
    triton.loading = 3
    withdrawn = []
    monkeypatch.setattr(versions, "withdraw", lambda _, number: withdrawn.append(number))
    assert follower(root, triton).look()["version"] == 2
    assert (triton.ready, withdrawn, versions.known(home).stays) == (2, [], 2)


@pytest.mark.usefixtures("quick")
def test_a_version_that_nobody_has_confirmed_is_withdrawn_from_a_server_that_is_not_there(
    root, triton, models, monkeypatch
):
    mine = follower(root, triton)
    mine.look()
    promote(root, models[1])
    killed_while_loading(mine, monkeypatch)
    triton.close()
    with pytest.raises(RetryError, match="does not answer"):
        follower(root, triton).look()
    assert versions.numbers(home_of(root)) == [1]


def killed_while_loading(mine, monkeypatch):
    def load(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("genrec_batch.serving.server.Server.load", load)
        with pytest.raises(KeyboardInterrupt):
            mine.look()


@pytest.mark.usefixtures("quick")
def test_nothing_is_put_in_place_while_the_server_does_not_answer(root, triton, models):
    mine = follower(root, triton)
    mine.look()
    promote(root, models[1])
    triton.close()
    with pytest.raises(RetryError, match="does not answer"):
        mine.look()
    assert versions.numbers(home_of(root)) == [1]


@pytest.mark.usefixtures("quick")
def test_two_followers_of_one_repository_swap_once(root, triton, models):
    first, second = follower(root, triton), follower(root, triton)
    first.look()
    assert second.look()["changed"] is False
    promote(root, models[1])
    with versions.changing(home_of(root), 0), pytest.raises(RetryError, match="another process writes"):
        second.look()
    assert first.look()["changed"] is True
    assert second.look()["changed"] is False
    assert triton.loads == [1, 2]


@pytest.mark.usefixtures("quick")
def test_a_full_disk_leaves_the_live_version_and_is_tried_again(root, triton, models, monkeypatch):
    mine = follower(root, triton)
    mine.look()
    promote(root, models[1])
    with monkeypatch.context() as full:

        def no_space(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(repository.shutil, "copyfile", no_space)
        with pytest.raises(RetryError, match="the disk is full"):
            mine.look()
    assert sorted(each.name for each in home_of(root).iterdir()) == ["1", "config.pbtxt", "warmup"]
    assert mine.look()["version"] == 2


@pytest.mark.usefixtures("quick")
def test_other_options_are_another_version(root, triton):
    follower(root, triton).look()
    assert follower(root, triton, instances=2).look() == {
        "repository": str(home_of(root)), "version": 2, "of": "ranker@1", "changed": True,
    }  # fmt: skip
    assert "count: 2" in (home_of(root) / "config.pbtxt").read_text()


@pytest.mark.usefixtures("quick")
def test_ids_of_another_type_do_not_take_the_place_of_those_that_clients_read(root, triton, models):
    mine = follower(root, triton)
    mine.look()
    texts = models[1] / "catalog.parquet"
    pl.read_parquet(texts).with_columns(pl.col("video_id").cast(pl.String)).write_parquet(texts)
    stored = json.loads((models[1] / "config.json").read_text())
    (models[1] / "config.json").write_text(json.dumps({**stored, "sha256": {}}))
    promote(root, models[1])
    with pytest.raises(ConfigError, match="ids are of another type than TYPE_INT64"):
        mine.look()
    assert (triton.loads, versions.numbers(home_of(root))) == ([1], [1])


def damage(version, file):
    path = version.path / file
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("file", ["model.safetensors", "catalog.parquet"])
def test_a_version_that_was_damaged_in_the_registry_is_not_copied(root, models, file):
    mine = follower(root)
    version = promote(root, models[1])
    damage(version, file)
    with pytest.raises(ModelError, match=f"ranker@2 does not become live: .*{file} was changed.*no version yet"):
        mine.look()
    assert not versions.numbers(home_of(root))


def test_without_a_server_a_version_is_checked_with_the_engine_and_put_in_place(root, tmp_path, models):
    mine = follower(root)
    assert mine.look()["version"] == 1
    version = home_of(root) / "1"
    expected.check(Arms.open(version), version)
    broken_weights(models[0], tmp_path / "broken")
    promote(root, tmp_path / "broken")
    with pytest.raises(GenrecError, match=r"ranker@2 does not become live: .*weights of the model.*; version 1 stays"):
        mine.look()
    assert versions.numbers(home_of(root)) == [1]


@pytest.mark.usefixtures("quick")
def test_the_arms_of_an_experiment_are_followed_each_by_its_alias(root, triton, models):
    version, _ = registering.register(root, NAME, models[1])
    registering.promote(version, root, alias="challenger")
    arms = ("control=registry:ranker@champion:90", "test=registry:ranker@challenger:10")
    config = FollowConfig(
        registry=str(root), out=str(root.parent / "repository"), triton=triton.url, arm=arms, salt="exp42"
    )
    mine = Follower.of(config, None)
    assert mine.look()["of"] == "ranker@1, ranker@2"
    assert sorted(each.name for each in (home_of(root) / "1" / "arms").iterdir()) == ["control", "test"]
    registering.promote(registry.version(root, NAME, 1), root, alias="challenger")
    assert mine.look()["of"] == "ranker@1, ranker@1"


@pytest.mark.usefixtures("quick")
def test_a_look_that_fails_is_said_once_and_so_is_its_end(root, triton, models, caplog, monkeypatch):
    mine = follower(root, triton)
    mine.look()
    promote(root, models[1])
    triton.refuses = "no"
    looks = []

    def sleep(_):
        looks.append(1)
        if len(looks) == 3:
            registering.rollback(root, NAME)
        if len(looks) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("genrec_batch.serving.follow.time.sleep", sleep)
    with caplog.at_level(logging.INFO, "genrec_batch"), pytest.raises(KeyboardInterrupt):
        mine.run()
    assert len([each for each in caplog.messages if "does not become live" in each]) == 1
    assert caplog.messages.count("the failure is over: ranker@1 is version 1 of genrec") == 1


STEPS = [  # after each of which the next one has not begun
    "repository.Content.write", "follow.expected.computed", "versions.place", "server.Server.load",
    "server.Server.answer", "versions.stay", "versions.prune",
]  # fmt: skip

KILLED = """
import os, signal, sys
from functools import reduce
from genrec_batch.serving import follow, repository, server, versions
from genrec_batch.serving.follow_options import FollowConfig
from tests.serving import test_follow
step, registry, out, url = sys.argv[1:]
follow.expected.computed = test_follow.instead
*way, name = step.split(".")
place = reduce(getattr, way[1:], globals()[way[0]])
whole = getattr(place, name)
def killed(*arguments, **named):
    whole(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(place, name, killed)
follow.Follower.of(FollowConfig(registry=registry, out=out, triton=url, keep=1), test_follow.NAME).look()
"""


@pytest.mark.usefixtures("quick")
def test_a_kill_between_any_two_steps_leaves_whole_versions_and_the_next_follower_goes_on(root, triton, models):
    mine, home = follower(root, triton, keep=1), home_of(root)
    mine.look()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for turn, step in enumerate(STEPS):
        wanted = promote(root, models[(turn + 1) % 2])
        answered = triton.ready
        command = [sys.executable, "-c", KILLED, step, str(root), str(home.parent), triton.url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, (step, done.stderr)
        whole = [json.loads((home / str(each) / "expected.json").read_text()) for each in versions.numbers(home)]
        assert whole, step
        assert triton.ready in (answered, max(versions.numbers(home))), step
        assert (home / str(triton.ready)).is_dir(), step
        now = follower(root, triton, keep=1).look()
        assert (now["of"], now["version"]) == (wanted.label, triton.ready), step
        assert versions.numbers(home)[-2:] in ([triton.ready], [answered, triton.ready]), step
    promote(root, models[0])
    follower(root, triton, keep=1).look()
    assert sorted(each.name for each in home.iterdir()) == [str(triton.ready), "config.pbtxt", "warmup"]


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        ({}, "ranker", "needs --out"),
        ({"out": "r"}, None, "either NAME or --arm"),
        ({"out": "r", "arm": ("a=model/:100",), "salt": "s"}, None, "a registry is followed"),
        ({"out": "r", "triton": "127.0.0.1:8000"}, "ranker", "--triton '127.0.0.1:8000': the URL"),
        ({"out": "s3://bucket/r"}, "ranker", "--out s3://bucket/r"),
        ({"out": "r", "every": 0.0}, "ranker", "--every 0: 0.1"),
        ({"out": "r", "keep": 0}, "ranker", "--keep 0: at least 1"),
        ({"out": "r", "load_timeout": 0.5}, "ranker", "--load-timeout 0.5"),
        ({"out": "r", "precision": "int4"}, "ranker", "--precision int4"),
        ({"out": "r"}, "ran ker", "NAME 'ran ker': not NAME"),
        ({"out": "r", "registry": None}, "ranker", "--registry (or GENREC_BATCH_REGISTRY) must name"),
    ],
)
def test_options_that_cannot_be_used_are_refused_at_once(root, options, name, said):
    with pytest.raises(ConfigError) as refused:
        Follower.of(FollowConfig(**{"registry": str(root), **options}), name)
    assert said in str(refused.value)


@pytest.mark.usefixtures("quick")
def test_the_command_looks_once_and_ends_with_what_is_live(run, root, tmp_path):
    ran = run("model", "follow", "ranker", "--registry", root, "--out", tmp_path / "repository", "--once")
    assert ran.code == 0, ran.err
    assert ran.summary["of"] == "ranker@1"
    ran = run("model", "follow", "other", "--registry", root, "--out", tmp_path / "repository", "--once")
    assert ran.code == 4
    assert "Did you mean" in ran.err or "There is ranker" in ran.err
