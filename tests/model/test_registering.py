"""`registering`: versions appear whole or not at all, aliases move at once, whoever is killed or in the way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from genrec_batch.core.errors import ConfigError, ModelError, RetryError
from genrec_batch.model import registering, registry, weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "registry"


@pytest.fixture
def other(tmp_path, model_dir):
    """The same model with another card, so another version."""
    shutil.copytree(model_dir, tmp_path / "other")
    (tmp_path / "other" / "README.md").write_text("another card\n")
    return tmp_path / "other"


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_version_holds_the_files_read_only_and_can_be_loaded(root, model_dir):
    version, new = registering.register(root, "ranker", model_dir)
    assert (version.label, new) == ("ranker@1", True)
    assert files(version.path) == files(model_dir)
    assert not [path for path in (root / "ranker" / "1").rglob("*") if path.stat().st_mode & 0o222]
    prints = {weights.load(version.path).fingerprint, weights.load(model_dir).fingerprint}
    assert prints == {version.record["fingerprint"]}
    assert files(root / "ranker") == [".lock", "1", "1/model", *(f"1/model/{name}" for name in files(model_dir)),
                                      "1/version.json", "registry.json"]  # fmt: skip


def test_the_same_files_are_registered_once(root, model_dir, other):
    registering.register(root, "ranker", model_dir)
    assert registering.register(root, "ranker", other)[0].number == 2
    version, new = registering.register(root, "ranker", model_dir)
    assert (version.number, new) == (1, False)


def test_a_version_that_was_damaged_does_not_stand_for_the_files(root, model_dir):
    version, _ = registering.register(root, "ranker", model_dir)
    card = version.path / "README.md"
    card.chmod(0o644)
    card.write_text("edited\n")
    assert registering.register(root, "ranker", model_dir)[0].number == 2


def test_a_number_is_never_given_again(root, model_dir, other):
    registering.register(root, "ranker", model_dir)
    registering.register(root, "ranker", other)
    registering._remove(root / "ranker" / "2")
    assert registering.register(root, "ranker", other)[0].number == 3


def test_what_is_no_whole_model_is_not_registered(root, model_dir, other):
    (other / "catalog.parquet").unlink()
    with pytest.raises(ModelError, match=r"no catalog\.parquet"):
        registering.register(root, "ranker", other)
    with pytest.raises(ModelError, match="no such directory"):
        registering.register(root, "ranker", Path("nowhere"))
    with pytest.raises(ConfigError, match="the name alone"):
        registering.register(root, "ranker@3", model_dir)
    with pytest.raises(ConfigError, match="make it first"):
        registering.register(root / "deep" / "er", "ranker", model_dir)
    assert registry.names(root) == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("..")], ids=["pipe", "link to a folder"])
def test_what_is_no_file_is_named_and_never_waited_for(root, other, make):
    make(other / "extra")
    with pytest.raises(ModelError, match="extra: not a file"):
        registering.register(root, "ranker", other)
    assert not root.exists()


def test_a_model_that_changes_while_it_is_copied_is_try_again(root, other, monkeypatch):
    copied = shutil.copyfile

    def changing(source, target):
        (other / "README.md").write_text("changed\n")
        return copied(source, target)

    monkeypatch.setattr(shutil, "copyfile", changing)
    with pytest.raises(RetryError, match="changed while it was registered"):
        registering.register(root, "ranker", other)
    assert registry.numbers(root, "ranker") == []
    assert ".incoming" not in files(root / "ranker")


@pytest.mark.parametrize("at", range(1, 12))
def test_a_disk_that_is_full_at_any_moment_is_try_again_and_leaves_nothing_half_done(
    root, model_dir, other, monkeypatch, at
):
    registering.promote(registering.register(root, "ranker", model_dir)[0], root)
    calls, real = [], os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        try:
            registering.promote(registering.register(root, "ranker", other)[0], root)
        except RetryError as error:
            assert "the disk is full" in str(error)  # noqa: PT017 (the last steps may be beyond `at`)
    whole(root)
    version, _ = registering.register(root, "ranker", other)
    registering.promote(version, root)
    assert registry.resolve(root, "ranker").label == version.label
    whole(root)


def test_a_registry_that_may_not_be_written_is_named_and_can_be_read(root, model_dir, monkeypatch):
    registering.promote(registering.register(root, "ranker", model_dir)[0], root)

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(ConfigError, match=r"--registry .*Read-only file system"):
        registering.register(root, "ranker", model_dir)
    with pytest.raises(ConfigError, match=r"--registry .*Read-only file system"):
        registering.promote(registry.version(root, "ranker", 1), root)
    registry.check(registry.resolve(root, "ranker"))


def test_a_rollback_goes_back_one_promotion_each_time(root, model_dir, other):
    first, second = (registering.register(root, "ranker", each)[0] for each in (model_dir, other))
    with pytest.raises(ConfigError, match="no champion before any"):
        registering.rollback(root, "ranker")
    assert registering.promote(first, root) is None
    with pytest.raises(ConfigError, match="no champion before ranker@1"):
        registering.rollback(root, "ranker")
    assert registering.promote(second, root) == 1
    assert registering.promote(second, root) == 2, "no second entry in the history"
    back, before = registering.rollback(root, "ranker")
    assert (back.number, before, registry.resolve(root, "ranker").number) == (1, 2, 1)
    with pytest.raises(ConfigError, match="no champion before ranker@1"):
        registering.rollback(root, "ranker")
    registering.promote(second, root)
    assert registering.rollback(root, "ranker")[0].number == 1
    assert [entry["how"] for entry in registry.state(root, "ranker").history] == [
        "promote", "promote", "rollback", "promote", "rollback",
    ]  # fmt: skip


def test_a_rollback_to_a_version_that_was_changed_changes_nothing(root, model_dir, other):
    first, second = (registering.register(root, "ranker", each)[0] for each in (model_dir, other))
    registering.promote(first, root)
    registering.promote(second, root)
    first.path.chmod(0o755)
    (first.path / "more").write_text("")
    with pytest.raises(ModelError, match="more was added"):
        registering.rollback(root, "ranker")
    assert registry.resolve(root, "ranker").number == 2


def test_other_aliases_move_on_their_own(root, model_dir, other):
    first, second = (registering.register(root, "ranker", each)[0] for each in (model_dir, other))
    registering.promote(first, root)
    registering.promote(second, root, alias="challenger")
    assert registry.resolve(root, "ranker").number == 1
    assert registry.resolve(root, "ranker", "challenger").number == 2


def test_a_promotion_after_another_one_is_try_again_where_it_was_compared_with_what_was_live(root, model_dir, other):
    first, second = (registering.register(root, "ranker", each)[0] for each in (model_dir, other))
    registering.promote(first, root)
    with pytest.raises(RetryError, match="ranker@1 was promoted meanwhile"):
        registering.promote(second, root, compared=lambda aliases: aliases.get("champion") is None)
    assert registry.resolve(root, "ranker").number == 1


def test_a_lock_that_is_held_is_try_again(root, model_dir, monkeypatch):
    registering.register(root, "ranker", model_dir)
    monkeypatch.setattr(registering, "WAIT_S", 0.1)
    with (root / "ranker" / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RetryError, match="held by another registration"):
            registering.promote(registry.version(root, "ranker", 1), root)


def test_many_at_once_get_numbers_of_their_own_and_leave_one_history(root, model_dir, tmp_path):
    sources = [tmp_path / f"model-{i}" for i in range(6)]
    for i, source in enumerate(sources):
        shutil.copytree(model_dir, source)
        (source / "README.md").write_text(f"{i}\n")

    def change(source):
        version, _ = registering.register(root, "ranker", source)
        registering.promote(version, root)
        return version.number

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(change, sources)) == [1, 2, 3, 4, 5, 6]
    history = registry.state(root, "ranker").history
    assert [entry["before"] for entry in history] == [None, *(entry["version"] for entry in history[:-1])]
    whole(root)


WORKER = """
import itertools, sys
from pathlib import Path
from genrec_batch.model import registering, registry

root, sources = Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]]
print("ready", flush=True)
for i in itertools.count():
    source = sources[i % 2]
    (source / "README.md").write_text(f"{sys.argv} {i}")
    version, _ = registering.register(root, "ranker", source)
    print("registered", flush=True)
    registering.promote(version, root)
    print("promoted", flush=True)
    if i % 3 == 2:
        registering.rollback(root, "ranker")
"""


def whole(root):
    """Fail where anything in a registry is half done; return what is live."""
    state = registry.state(root, "ranker")
    for number in registry.numbers(root, "ranker"):
        registry.check(registry.version(root, "ranker", number))
    if not state.history:
        return None
    assert state.history[-1]["version"] == state.aliases["champion"]
    assert [entry["before"] for entry in state.history[1:]] == [entry["version"] for entry in state.history[:-1]]
    champion = registry.resolve(root, "ranker")
    registry.check(champion)
    return champion.number


def killed(root, sources, kills, seed):
    """Kill a process that registers, promotes and rolls back, at random moments; return what was live after each."""
    drawn, live = random.Random(seed), []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(kills):
        command = [sys.executable, "-c", WORKER, str(root), *map(str, sources)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as worker:
            for _ in range(drawn.choice([1, 2, 3, 4, 7])):  # done, as far as the worker can tell
                assert worker.stdout.readline()
            time.sleep(drawn.choice([0.0, drawn.uniform(0, 0.01), drawn.uniform(0, 0.2)]))
            worker.kill()
        live.append(whole(root))
        for number in registry.numbers(root, "ranker")[:-3]:  # else the disk fills up
            if number not in registry.state(root, "ranker").aliases.values():
                registering._remove(root / "ranker" / str(number))
    return live


@pytest.mark.parametrize("kills", [4, pytest.param(120, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_whole_versions_and_one_champion(root, model_dir, tmp_path, kills):
    sources = [tmp_path / name for name in "ab"]
    for source in sources:
        shutil.copytree(model_dir, source)
    root.mkdir()
    live = killed(root, sources, kills, seed=kills)
    assert len(set(live)) > 1, "the worker got somewhere"
    version, new = registering.register(root, "ranker", model_dir)
    registering.promote(version, root)
    assert (new, whole(root)) == (True, version.number)
    left = {path.name for path in (root / "ranker").iterdir() if not path.name.isdigit()}
    assert left == {".lock", "registry.json"}


def test_a_history_says_when_where_and_by_which_gates(root, model_dir):
    version, _ = registering.register(root, "ranker", model_dir)
    registering.promote(version, root, gates=[{"gate": "ndcg@10>=0.1", "measured": 0.2, "passed": True}])
    (entry,) = json.loads((root / "ranker" / "registry.json").read_text())["history"]
    assert entry.items() >= {"alias": "champion", "version": 1, "before": None, "how": "promote"}.items()
    assert entry["at"].endswith("Z")
    assert entry["host"]
    assert entry["gates"][0]["measured"] == 0.2
