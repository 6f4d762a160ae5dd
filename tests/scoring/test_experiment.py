"""`experiment`: each user's rows are those of the own arm's model, whatever happens to the run; what is said of arms.

Also tests `model_run`, `arm_run`, `arm_results`, `arm_counts` and `events/arm_datasets`.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import genrec_batch
from genrec_batch.core.errors import ConfigError, DeviceMemoryError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.model import weights
from genrec_batch.scoring import experiment, model_run
from tests.logs import catalog_of
from tests.twins import assign as twin

PRECISION = ("--precision", "fp32")
ARMED = ("arm", "bucket")
OF_THE_PROCESS = {"videos": None, "coverage": None, "scored_users": None}  # what a resumed run does not know


@pytest.fixture(scope="module")
def models(tmp_path_factory, log):
    """Two tiny models of other weights, sizes and catalogs: the second knows half of the videos, in another order."""
    made = {}
    for name, seed, layers in (("a", 3, 2), ("b", 5, 3)):
        directory = tmp_path_factory.mktemp("arms") / name
        config = weights.ModelConfig(**{**vars(weights.PRESETS["tiny"]), "layers": layers})
        weights.save(directory, config, weights.initial_weights(config, seed), trained=True, card="for tests\n")
        known = log if name == "a" else log.filter(pl.col("video_id") % 2 == 0).reverse().head(300)
        catalog_of(known, vocabulary=config.vocabulary).write(directory / "catalog.parquet")
        made[name] = directory
    return made


@pytest.fixture
def arms(models):
    return ["--arm", f"control={models['a']}:60", "--arm", f"test={models['b']}:40", "--salt", "exp42", *PRECISION]


def rows_of(path):
    return pl.read_parquet(path if str(path).endswith(".parquet") else f"{path}/*.parquet").sort("user_id", "rank")


def contents(folder):
    return [file.read_bytes() for file in sorted(Path(folder).glob("part-*"))]


@pytest.fixture
def tables(log):
    """A table of videos, given candidates, and excluded videos."""
    videos = log["video_id"].unique().sort()
    titles = pl.Series([f"title {video}" for video in videos])
    pl.DataFrame({"video_id": videos, "title": titles, "category": videos % 5}).write_parquet("videos.parquet")
    videos.head(60).to_frame().write_parquet("excluded.parquet")
    users = log["user_id"].unique().sort()
    given = [videos.sample(30, seed=user).to_list() for user in users]
    pl.DataFrame({"user_id": users, "video_id": given}).write_parquet("given.parquet")
    promoted = {"user_id": users, "video_id": [row[0] for row in given], "rank": [2] * len(users)}
    pl.DataFrame(promoted).write_parquet("promoted.parquet")


MORE = {
    "plain": [],
    "candidates": ["--candidates", "given.parquet"],
    "decode": ["--decode", "candidates", "--include-seen"],
    "carry": ["--videos", "videos.parquet", "--carry", "title"],
    "exclude": ["--exclude", "excluded.parquet"],
    "compose": ["--videos", "videos.parquet", "--max-per", "category=3", "--explore", "0.2"],
    "promote": ["--promote", "promoted.parquet"],
    "fallback": ["--exclude", "excluded.parquet", "--top-k", "60", "--fallback", "popular"],
}


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("more", MORE)
def test_each_users_rows_are_those_of_a_run_with_the_own_arms_model(run, log_file, models, arms, more):
    done = run("score", log_file, "arms.parquet", *arms, *MORE[more])
    assert done.code == 0, done.err
    found = rows_of("arms.parquet")
    assert found.schema["arm"] == pl.String
    assert found.schema["bucket"] == pl.Int32
    assert pl.read_parquet("arms.parquet").select("user_id", "rank").equals(found.select("user_id", "rank"))
    for arm, model in (("control", "a"), ("test", "b")):
        alone = run("score", log_file, f"{arm}.parquet", "--model", models[model], *PRECISION, *MORE[more])
        assert alone.code == 0, alone.err
        mine = found.filter(pl.col("arm") == arm)
        theirs = rows_of(f"{arm}.parquet").filter(pl.col("user_id").is_in(mine["user_id"].implode()))
        close = [name for name in theirs.columns if theirs.schema[name] == pl.Float32]
        assert len(mine) > 0
        assert mine.drop(*ARMED, *close).equals(theirs.drop(close))
        np.testing.assert_allclose(mine.select(close).to_numpy(), theirs.select(close).to_numpy(), atol=1e-5)
    users = found.unique("user_id", maintain_order=True)
    assert users["bucket"].to_list() == [twin.bucket(user, "exp42", "xxh64") for user in users["user_id"]]
    assert (users["arm"] == "control").to_list() == [bucket < 6000 for bucket in users["bucket"]]
    assert 0 < (users["arm"] == "test").sum() < len(users)


@pytest.mark.usefixtures("tables")
def test_rows_of_an_arm_without_the_rules_of_another_say_that_they_are_the_models(run, log_file, models):
    arms = ["--arm", f"control={models['a']}:60", "--arm", f"test={models['b']}:40", "--salt", "exp42", *PRECISION]
    done = run("score", log_file, "out.parquet", *arms, "--arm", "test.explore=0.5")
    assert done.code == 0, done.err
    rows = rows_of("out.parquet")
    control = rows.filter(pl.col("arm") == "control")
    assert control["source"].unique().to_list() == ["model"]
    assert control["propensity"].unique().to_list() == [1.0]
    sources = done.summary["arms"]["test"]["sources"]
    assert sources["explored"] == rows.filter(pl.col("source") == "explored").height > 0
    assert rows.schema["propensity"] == pl.Float32
    checked = run("inspect", "out.parquet", "--json")
    assert checked.code == 0, checked.err
    assert checked.summary["arms"]["test"]["sources"] == sources
    assert checked.summary["arms"]["control"]["sources"] == {"model": len(control)}


def test_folders_by_arm_have_the_rows_of_that_arm(run, log_file, arms):
    assert run("score", log_file, "whole.parquet", *arms).code == 0
    done = run("score", log_file, "out", *arms, "--partition-by", "arm", "--shard-users", 9)
    assert done.code == 0, done.err
    whole = rows_of("whole.parquet")
    for arm in ("control", "test"):
        mine = pl.read_parquet(f"out/arm={arm}/*.parquet", hive_partitioning=False).sort("user_id", "rank")
        expected = whole.filter(pl.col("arm") == arm)
        assert mine.select("user_id", "rank", "video_id").equals(expected.select("user_id", "rank", "video_id"))
    assert run("inspect", "out", "--json").summary["arms"]["test"]["rows"] == len(expected)


def test_a_run_in_many_parts_and_turns_is_the_same_and_is_the_same_twice(run, log_file, arms, monkeypatch):
    assert run("score", log_file, "one.parquet", *arms).code == 0
    monkeypatch.setattr(experiment, "SHARDS_A_ROUND", 2)
    many = ["--shard-users", 3, "--batch-size", 2]
    for name in ("many", "again"):
        done = run("score", log_file, name, *arms, *many)
        assert done.code == 0, done.err
    one, parts = rows_of("one.parquet"), rows_of("many")
    assert one.select("user_id", "rank", "video_id", *ARMED).equals(parts.select("user_id", "rank", "video_id", *ARMED))
    assert len(contents("many")) == 14
    assert contents("many") == contents("again")


def test_nested_rows_have_an_arm_and_a_bucket(run, log_file, arms):
    assert run("score", log_file, "long.parquet", *arms).code == 0
    assert run("score", log_file, "nested.parquet", *arms, "--layout", "nested").code == 0
    nested = pl.read_parquet("nested.parquet")
    users = rows_of("long.parquet").unique("user_id", maintain_order=True)
    assert nested.select("user_id", *ARMED).equals(users.select("user_id", *ARMED))


def test_a_user_alone_is_in_the_same_arm(run, log_file, arms):
    whole = run("score", log_file, "whole.parquet", *arms)
    assert whole.code == 0
    expected = rows_of("whole.parquet").filter(pl.col("user_id") == 107)
    assert run("score", log_file, "one.parquet", *arms, "--user", 107).code == 0
    assert rows_of("one.parquet").select(ARMED).equals(expected.select(ARMED))


def test_a_shadow_leaves_what_is_published_as_it_is_and_is_compared_with_it(run, log_file, models, arms):
    assert run("score", log_file, "plain.parquet", *arms, "--shard-users", 7).code == 0
    shadow = ["--arm", f"new={models['b']}:50:shadow"]
    done = run("score", log_file, "shadow.parquet", *arms, *shadow, "--shard-users", 7)
    assert done.code == 0, done.err
    plain, published = (pl.read_parquet(f"{name}.parquet") for name in ("plain", "shadow"))
    assert plain.equals(published)
    facts = done.summary["arms"]["new"]
    users = published.unique("user_id", maintain_order=True)
    top = users.filter(pl.col("bucket") >= 5000)
    assert (facts["shadow"], facts["users"], facts["buckets"]) == (True, len(top), [5000, 9999])
    alone = run("score", log_file, "alone.parquet", "--model", models["b"], *PRECISION)
    assert alone.code == 0
    theirs = pl.read_parquet("alone.parquet").filter(pl.col("user_id").is_in(top["user_id"].implode()))
    ours = published.filter(pl.col("bucket") >= 5000)
    common = ours.join(theirs, on=["user_id", "video_id"], how="semi")
    assert facts["rows"] == len(theirs)
    assert facts["overlap"] == pytest.approx(len(common) / len(ours), abs=1e-4)
    assert facts["mean_log_prob"] == pytest.approx(theirs["log_prob"].mean(), abs=1e-4)
    assert facts["published"]["mean_log_prob"] == pytest.approx(ours["log_prob"].mean(), abs=1e-4)
    shift = theirs["engagement"].mean() - ours["engagement"].mean()
    assert facts["shift"]["mean_engagement"] == pytest.approx(shift, abs=1e-4)
    assert facts["videos"] == theirs["video_id"].n_unique()


def test_the_summary_has_a_table_of_the_arms(run, log_file, models, arms):
    done = run("score", log_file, "out", *arms, "--shard-users", 9)
    found, facts = rows_of("out"), done.summary["arms"]
    assert list(facts) == ["control", "test"]
    assert done.summary["users"] == sum(each["users"] for each in facts.values())
    for name, model in (("control", "a"), ("test", "b")):
        mine, of = found.filter(pl.col("arm") == name), facts[name]
        assert of["users"] == mine["user_id"].n_unique()
        assert of["rows"] == len(mine)
        assert of["videos"] == mine["video_id"].n_unique()
        assert of["cold_start_users"] == mine.filter(pl.col("cold_start"))["user_id"].n_unique()
        assert of["mean_engagement"] == pytest.approx(mine["engagement"].mean(), abs=1e-5)
        assert of["model"] == weights.load(models[model]).fingerprint[:16]
        assert of["short_users"] == 0
    assert facts["control"]["buckets"] == [0, 5999]
    assert done.summary["cold_start_users"] == sum(each["cold_start_users"] for each in facts.values())


def test_drift_is_that_of_the_first_arms_users(run, log_file, arms):
    done = run("score", log_file, "one.parquet", *arms)
    assert done.code == 0, done.err
    assert done.summary["drift"]["users"] == done.summary["arms"]["control"]["users"]
    again = run("score", log_file, "two.parquet", *arms, "--previous", "one.parquet", "--shard-users", 1)
    assert again.code == 0, again.err
    assert again.summary["drift"]["users"] == done.summary["drift"]["users"]


def test_an_arm_may_decode_otherwise(run, log_file, models):
    model = models["a"]
    common = ["--salt", "x", *PRECISION, "--arm", f"control={model}:50", "--arm", f"test={model}:50"]
    done = run("score", log_file, "arms.parquet", *common, "--arm", "test.weights=engagement=1")
    assert done.code == 0, done.err
    assert done.summary["arms"]["test"]["own"] == {"weights": "engagement=1"}
    found = rows_of("arms.parquet")
    scored_by = found.group_by("arm").agg((pl.col("score") == pl.col("engagement")).all()).sort("arm")
    assert scored_by["score"].to_list() == [False, True]


def test_a_killed_run_goes_on_where_it_was(run, log_file, arms):
    whole = run("score", log_file, "whole", *arms, "--shard-users", 1)
    assert whole.code == 0, whole.err
    command = [sys.executable, "-m", "genrec_batch", "score", str(log_file), "out", *arms, "--shard-users", "1"]
    other = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(Path().glob(".*out*/part-*.parquet")) and other.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.002)
    other.send_signal(signal.SIGKILL)
    other.wait()
    done = run("score", log_file, "out", *arms, "--shard-users", 1, "--if-exists", "resume")
    assert done.code == 0, done.err
    assert contents("out") == contents("whole")
    told = [
        {name: {**facts, **OF_THE_PROCESS} for name, facts in each.summary["arms"].items()} for each in (done, whole)
    ]
    assert told[0] == told[1]


OTHER = {"salt": ["--salt", "exp43"], "hash": ["--assign", "statsig"], "shadow": ["--arm", "new={}:1:shadow"]}


@pytest.mark.parametrize("change", OTHER)
def test_a_run_of_another_experiment_is_not_resumed(run, log_file, models, arms, change):
    assert run("score", log_file, "out.parquet", *arms).code == 0
    other = [*arms, *(text.format(models["a"]) for text in OTHER[change])]
    done = run("score", log_file, "out.parquet", *other, "--if-exists", "resume")
    assert (done.code, "cannot be resumed" in done.err) == (2, True), done.err
    assert run("score", log_file, "out.parquet", *arms, "--if-exists", "resume").summary["already_complete"]


def test_unchanged_users_keep_their_rows_of_the_same_experiment(run, log_file, arms):
    assert run("score", log_file, "one.parquet", *arms).code == 0
    done = run("score", log_file, "two.parquet", *arms, "--previous", "one.parquet")
    assert done.code == 0, done.err
    assert done.summary["carried_users"] == 40
    assert done.summary["arms"]["test"]["carried_users"] == done.summary["arms"]["test"]["users"]
    assert pl.read_parquet("one.parquet").equals(pl.read_parquet("two.parquet"))
    other = run("score", log_file, "three.parquet", *arms, "--previous", "one.parquet", "--salt", "other")
    assert "it differs in" in " ".join(other.err.split())
    assert other.summary["carried_users"] == 0


def test_versions_of_a_registry_are_recorded_and_kept_when_a_run_goes_on(run, log_file, models):
    for model in ("a", "b"):
        assert run("model", "register", models[model], "ranker", "--registry", "r").code == 0
    assert run("model", "promote", "ranker@2", "--registry", "r").code == 0
    arms = ["--registry", "r", "--arm", "control=registry:ranker@1:60", "--arm", "test=registry:ranker@champion:40"]
    done = run("score", log_file, "out.parquet", *arms, "--salt", "exp42", *PRECISION)
    assert done.code == 0, done.err
    versions = {name: facts["registry"]["version"] for name, facts in done.summary["arms"].items()}
    assert versions == {"control": 1, "test": 2}
    assert run("model", "promote", "ranker@1", "--registry", "r").code == 0
    again = run("score", log_file, "out.parquet", *arms, "--salt", "exp42", *PRECISION, "--if-exists", "resume")
    assert again.code == 0, again.err
    assert again.summary["already_complete"]
    assert again.summary["arms"]["test"]["registry"]["version"] == 2


def test_the_devices_want_of_memory_names_the_arm(run, log_file, arms, monkeypatch):
    real = model_run.open_engine

    def full(config, dataset, *rest):
        if dataset.token_V is not None and dataset.model.config.layers == 3:
            raise DeviceMemoryError("the device is out of memory")
        return real(config, dataset, *rest)

    monkeypatch.setattr(model_run, "open_engine", full)
    done = run("score", log_file, "out.parquet", *arms)
    assert done.code == 75
    assert "--arm test: the device is out of memory; the engines of all arms are on one device" in " ".join(
        done.err.split()
    )


def test_an_arm_whose_model_is_of_another_log_is_named(run, log_file, log, arms, tmp_path):
    config = weights.PRESETS["tiny"]
    weights.save(tmp_path / "c", config, weights.initial_weights(config, 5), trained=True, card="for tests\n")
    far = log.with_columns(pl.col("video_id") + 10**6)
    catalog_of(far, vocabulary=config.vocabulary).write(tmp_path / "c" / "catalog.parquet")
    done = run("score", log_file, "o.parquet", *arms[:2], "--arm", f"test={tmp_path / 'c'}:40", *arms[4:])
    assert done.code == 4
    assert "--arm test: --model" in done.err
    assert "next to nothing joins" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--model", "m"], 2, "--arm goes without --model m"),
        (["--arm", "test.top-k=5"], 2, "an arm cannot have it of its own"),
        (["--arm", "test.num-candidates=x"], 2, "expected a whole number"),
        (["--arm", "test.include-seen=maybe"], 2, "true or false"),
        (["--arm", "test.weights=engagment=1"], 2, "--arm test: --weights"),
        (["--arm", "new=nowhere:1:shadow"], 4, "--arm new: "),
        (["--max-events", "5000"], 2, "--arm control: --max-events 5000 "),
    ],
)
def test_what_is_wrong_with_an_arm_names_it(run, log_file, arms, more, code, message):
    done = run("score", log_file, "out.parquet", *arms, *more)
    assert done.code == code, done.err
    assert message in " ".join(done.err.split())
    assert not Path("out.parquet").exists()


def test_the_first_arms_model_that_is_missing_is_named(run, log_file):
    done = run("score", log_file, "o.parquet", "--arm", "control=nowhere:100", "--salt", "x")
    assert done.code == 4
    assert "--arm control: " in done.err


def test_an_experiment_needs_a_salt_and_a_salt_an_experiment():
    with pytest.raises(ConfigError, match="--arm goes with --salt"):
        ScoreConfig(arm=("a=m:100",))
    for salt in ("\udcff", " ", "exp42\r", "\ufeffexp42"):
        with pytest.raises(ConfigError, match="each would assign users anew"):
            ScoreConfig(arm=("a=m:100",), salt=salt)
    assert ScoreConfig(arm=("a=m:100",), salt="été 2026").salt == "été 2026"
    with pytest.raises(ConfigError, match="--salt goes with --arm"):
        ScoreConfig(salt="x")
    with pytest.raises(ConfigError, match="--assign goes with --arm"):
        ScoreConfig(assign="statsig")


def test_what_a_run_says_of_a_model_names_its_arm(run, log_file, models, tmp_path):
    for name, model in (("c", "a"), ("d", "b")):
        shutil.copytree(models[model], tmp_path / name)
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "trained": False}))
    arms = ["--arm", f"control={tmp_path / 'c'}:60", "--arm", f"test={tmp_path / 'd'}:40", "--salt", "exp42"]
    done = run("score", log_file, "out.parquet", *arms, *PRECISION)
    assert done.code == 0, done.err
    untrained = [said for said in done.summary["warnings"] if "untrained" in said]
    assert [said.partition(": untrained")[0] for said in untrained] == ["--arm control", "--arm test"]
    for arm in ("control", "test"):
        assert f"--arm {arm}: engine: " in done.err
        assert f"--arm {arm}: --model {tmp_path}" in done.err


def test_a_version_that_was_changed_names_the_first_arm(run, log_file, models, monkeypatch):
    monkeypatch.setenv("GENREC_BATCH_REGISTRY", "registry")
    assert run("model", "register", models["a"], "ranker").code == 0
    Path("registry/ranker/1/model/config.json").write_text("{}")
    done = run("score", log_file, "o.parquet", "--arm", "control=registry:ranker@1:100", "--salt", "x")
    assert done.code == 4
    assert "error: --arm control: " in done.err
    assert "config.json was changed" in done.err


def test_commands_of_one_model_say_what_to_do_with_arms_of_the_environment(run, log_file, models):
    arms = {"GENREC_BATCH_ARM": f"a={models['a']}:100", "GENREC_BATCH_SALT": "x"}
    for command in (["verify", log_file, "--model", models["a"]], ["profile", "--model", models["a"]]):
        done = run(*command, **arms)
        assert done.code == 2
        assert f"GENREC_BATCH_ARM: --arm: {command[0]} takes one model: leave --arm and --salt out" in done.err


def test_the_python_api_scores_arms_and_a_scorer_takes_one_model(log_file, models):
    arm = (f"control={models['a']}:60", f"test={models['b']}:40")
    summary = genrec_batch.score(log_file, "api.parquet", arm=arm, salt="exp42", precision="fp32")
    assert summary["arms"]["test"]["users"] > 0
    with pytest.raises(ConfigError, match="a Scorer takes one model"):
        genrec_batch.Scorer(arm=arm, salt="exp42")
