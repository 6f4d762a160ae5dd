"""`composing`: rules that compose lists, over whole runs."""

from __future__ import annotations

import json
import pickle

import numpy as np
import polars as pl
import pytest

from genrec_batch import Scorer
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import decoding_of
from genrec_batch.model import weights
from genrec_batch.rules import compose

ENGINE = ("--engine", "torch", "--precision", "fp32")


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A table of the small log's videos, but for five of them."""
    random = np.random.default_rng(9)
    ids = np.arange(1000, 1115)
    frame = pl.DataFrame(
        {
            "video_id": ids,
            "creator_id": [None if i % 17 == 0 else int(i % 9) for i in ids],
            "category": random.choice(["cat", "dog", "fish"], len(ids)),
            "is_new": random.random(len(ids)) < 0.3,
            "quality": random.normal(size=len(ids)).astype(np.float32),
            "embedding": random.normal(size=(len(ids), 12)).astype(np.float32).tolist(),
        }
    )
    path = tmp_path_factory.mktemp("videos") / "videos.parquet"
    frame.write_parquet(path)
    return path


@pytest.fixture
def score(run, log_file, model_dir, videos):
    def call(*options, out="recs.parquet", more=()):
        done = run(
            "score", log_file, out, "--model", model_dir, "--videos", videos, *ENGINE, "--if-exists", "overwrite",
            *options, *more,
        )  # fmt: skip
        assert done.code == 0, done.err
        return done

    return call


def read(path="recs.parquet"):
    return pl.read_parquet(path)


def test_caps_hold_and_a_short_list_is_counted(score, videos):
    done = score("--max-per", "creator_id=2,category=4")
    joined = read().join(pl.read_parquet(videos), on="video_id", how="left")
    assert joined["source"].unique().to_list() == ["model"]
    for column, most in (("creator_id", 2), ("category", 4)):
        there = joined.filter(pl.col(column).is_not_null())
        assert there.group_by("user_id", column).len()["len"].max() == most
    assert done.summary["short_users"] == 0
    done = score("--max-per", "category=1")
    assert done.summary["short_users"] > 0
    left = read().join(pl.read_parquet(videos), on="video_id", how="left").filter(pl.col("category").is_not_null())
    assert left.group_by("user_id", "category").len()["len"].max() == 1
    assert "propensity" not in read().columns


def test_a_boost_is_in_the_score_and_not_in_log_prob(score, videos):
    score("--boost", "is_new=0.75,quality=0.5")
    joined = read().join(pl.read_parquet(videos), on="video_id", how="left")
    added = 0.75 * joined["is_new"].cast(pl.Float64).fill_null(0) + 0.5 * joined["quality"].fill_null(0)
    np.testing.assert_allclose(joined["score"] - joined["log_prob"], added, atol=1e-5)
    score(out="plain.parquet", more=("--decode", "candidates"))
    plain = read("plain.parquet").join(pl.read_parquet(videos), on="video_id", how="left")
    assert joined["is_new"].mean() > plain["is_new"].mean()


@pytest.mark.parametrize("how", ["mmr", "dpp=0.5"])
def test_diverse_lists_are_less_alike(score, videos, how):
    def alike(path):
        table = pl.read_parquet(videos).select("video_id", "embedding")
        found = []
        for _, rows in read(path).join(table, on="video_id").group_by("user_id"):
            vectors = np.stack(rows["embedding"].to_numpy())
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            found.append(np.triu(vectors @ vectors.T, 1).max())
        return np.mean(found)

    score(out="plain.parquet", more=("--decode", "candidates"))
    score("--diversify", how)
    rows = read()
    assert alike("recs.parquet") < alike("plain.parquet") - 0.05
    first = rows.filter(pl.col("rank") == 1)
    assert first["video_id"].to_list() == read("plain.parquet").filter(pl.col("rank") == 1)["video_id"].to_list()
    falls = rows.select((pl.col("score").diff() <= 0).over("user_id") | (pl.col("rank") == 1))
    assert falls.to_series().all()


def test_diversity_by_columns_needs_no_embedding(score, videos):
    score("--diversify", "mmr=0.6", "--diversify-by", "category")
    rows = read().join(pl.read_parquet(videos), on="video_id", how="left")
    heads = rows.filter(pl.col("rank") <= 3).group_by("user_id").agg(pl.col("category").drop_nulls().n_unique())
    score(out="plain.parquet", more=("--decode", "candidates"))
    plain = read("plain.parquet").join(pl.read_parquet(videos), on="video_id", how="left")
    before = plain.filter(pl.col("rank") <= 3).group_by("user_id").agg(pl.col("category").drop_nulls().n_unique())
    assert heads["category"].mean() > before["category"].mean()


def test_promoted_videos_take_their_places_and_seen_ones_stay_out(score, log):
    pl.DataFrame({"video_id": [1000, 1050, 1051, 1052], "rank": [2, None, None, None]}).write_parquet("p.parquet")
    done = score("--promote", "p.parquet", "--promote-share", "0.2")
    rows, seen = read(), log.select("user_id", "video_id").unique()
    promoted = rows.filter(pl.col("source") == "promoted")
    assert not len(promoted.join(seen, on=["user_id", "video_id"])), "a promoted video that was seen"
    assert promoted.filter(pl.col("video_id") == 1000)["rank"].unique().to_list() == [2]
    hit = seen.filter(pl.col("video_id") == 1000)["user_id"].n_unique()
    assert promoted.filter(pl.col("rank") == 2)["user_id"].n_unique() == 40 - hit
    assert done.summary["promoted_seen"] >= hit > 0
    assert done.summary["promoted_rows"] == len(promoted)
    assert rows.group_by("user_id").len()["len"].to_list() == [10] * 40
    assert rows.select("user_id", "video_id").is_unique().all()
    assert promoted["score"].null_count() == len(promoted)
    places = promoted.filter(pl.col("video_id") != 1000).group_by("user_id").agg("rank")
    assert {tuple(ranks) for ranks in places["rank"]} <= {(3, 8), (4, 8), (6,), (7,)}


def test_exploration_draws_the_same_for_a_user_whatever_else_is_scored(score):
    done = score("--explore", "0.3")
    whole = read()
    assert done.summary["explored_rows"] == len(whole.filter(pl.col("source") == "explored")) > 60
    assert whole.filter(pl.col("source") == "model")["propensity"].unique().to_list() == [pytest.approx(0.7)]
    assert whole.filter(pl.col("source") == "explored")["score"].null_count() == done.summary["explored_rows"]
    assert whole.filter(pl.col("source") == "explored")["log_prob"].null_count() == 0
    assert whole.select("user_id", "video_id").is_unique().all()
    keys = ["user_id", "rank", "video_id", "source", "propensity"]
    for options in (["--batch-size", "7"], ["--shard-users", "9"], ["--limit", "11"]):
        score("--explore", "0.3", out="again.parquet", more=options)
        again = read("again.parquet")
        assert again.select(keys).equals(whole.filter(pl.col("user_id").is_in(again["user_id"].implode())).select(keys))
    score("--explore", "0.3", "--as-of", "2026-05-01", out="again.parquet")
    assert not read("again.parquet").select("video_id").equals(whole.select("video_id"))


def test_all_rules_together_keep_their_promises_in_every_layout(score, videos, run):
    pl.DataFrame({"video_id": [1003, 1004]}).write_parquet("p.parquet")
    rules = ["--max-per", "creator_id=2", "--diversify", "mmr", "--boost", "is_new=0.5", "--promote", "p.parquet"]
    score(*rules, "--explore", "0.2", "--decode", "slate")
    long = read()
    joined = long.join(pl.read_parquet(videos), on="video_id", how="left").filter(pl.col("creator_id").is_not_null())
    assert joined.group_by("user_id", "creator_id").len()["len"].max() == 2
    assert set(long["source"].unique()) == {"model", "promoted", "explored"}
    assert long["step"].max() == 20
    assert run("inspect", "recs.parquet").code == 0
    score(*rules, "--explore", "0.2", "--decode", "slate", "--layout", "nested", out="nested.parquet")
    nested = read("nested.parquet")
    assert nested["propensity"].explode().to_list() == long["propensity"].to_list()
    assert nested["source"].explode().to_list() == long["source"].to_list()
    assert run("inspect", "nested.parquet").code == 0
    shown = run("score", "events.parquet", "--user", 100, "--model", "no", "--promote", "p.parquet")
    assert shown.code == 4


def test_given_candidates_are_a_pool(score, videos):
    users = list(range(100, 140))
    lists = [list(range(1000, 1060)) for _ in users]
    pl.DataFrame({"user_id": users, "video_id": lists}).write_parquet("given.parquet")
    score("--candidates", "given.parquet", "--max-per", "creator_id=1", "--explore", "0.5")
    rows = read()
    assert rows["video_id"].is_between(1000, 1059).all()
    joined = rows.join(pl.read_parquet(videos), on="video_id").filter(pl.col("creator_id").is_not_null())
    assert joined.group_by("user_id", "creator_id").len()["len"].max() == 1


def test_a_run_says_what_its_rules_choose_from(score):
    assert "--decode auto is candidates, since rules compose lists" in " ".join(
        score("--boost", "quality=1").err.split()
    )
    done = score("--boost", "quality=1", "--decode", "slate", "--pool", "15")
    assert "a slate of 15 videos for a list of 10" in " ".join(done.err.split())
    assert read()["step"].max() <= 15
    assert json.loads(pl.read_parquet_metadata("recs.parquet")["genrec.config"])["pool"] == 15


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (
            ["--max-per", "creatr_id=1"],
            2,
            "--max-per creatr_id: --videos has no such column. Did you mean 'creator_id'",
        ),
        (["--boost", "category=1"], 3, "--boost category: the column of --videos is String"),
        (["--diversify", "mmr", "--diversify-by", "kategory"], 2, "Did you mean 'category'"),
    ],
)
def test_a_rule_on_a_column_that_cannot_be_used_ends_before_scoring(
    run, log_file, model_dir, videos, options, code, text
):
    done = run("score", log_file, "recs.parquet", "--model", model_dir, "--videos", videos, *options)
    assert (done.code, text in " ".join(done.err.split())) == (code, True), done.err


def test_a_changed_column_of_videos_scores_all_users_anew(score, videos, tmp_path):
    rule = ("--max-per", "creator_id=1", "--as-of", "2026-06-01")
    score(*rule, out="a.parquet")
    kept = score(*rule, "--previous", "a.parquet", out="b.parquet")
    assert kept.summary["carried_users"] == 40
    assert read("b.parquet").equals(read("a.parquet"))
    changed = pl.read_parquet(videos).with_columns(creator_id=pl.col("creator_id") + pl.col("video_id") % 2)
    changed.write_parquet(tmp_path / "changed.parquet")
    again = score(*rule, "--previous", "a.parquet", "--videos", tmp_path / "changed.parquet", out="c.parquet")
    assert again.summary.get("carried_users", 0) == 0
    assert "composed_by" in again.err


def test_a_scorer_composes_as_the_command_does(log, model_dir, videos):
    options = {"max_per": "creator_id=2", "explore": 0.2, "engine": "torch", "precision": "fp32"}
    scorer = pickle.loads(pickle.dumps(Scorer(model=str(model_dir), videos=str(videos), **options)))  # noqa: S301
    rows = pl.DataFrame(scorer(log))
    assert {"source", "propensity"} <= set(rows.columns)
    joined = rows.join(pl.read_parquet(videos), on="video_id").filter(pl.col("creator_id").is_not_null())
    assert joined.group_by("user_id", "creator_id").len()["len"].max() == 2
    none = pl.DataFrame(scorer(log.clear()))
    assert none.schema == rows.schema


def test_the_compiled_kernel_writes_the_same_output(score, monkeypatch):
    rules = ["--max-per", "creator_id=2", "--diversify", "dpp", "--explore", "0.2"]
    score(*rules)
    monkeypatch.setattr(compose, "COMPILED_FROM", 0)
    score(*rules, out="compiled.parquet")
    assert read("compiled.parquet").equals(read())


def test_rules_decide_the_mode_and_the_length_of_slates(model_dir):
    model = weights.load(model_dir)
    assert decoding_of(ScoreConfig(promote="p"), model).mode == "candidates"
    assert decoding_of(ScoreConfig(promote="p", decode="slate"), model).top_k == 20
    assert decoding_of(ScoreConfig(), model).top_k == 10


def test_popular_videos_that_fill_a_short_list_obey_caps_too(score, videos):
    rules = ("--max-per", "category=1", "--explore", "0.2")
    score(*rules, "--num-candidates", "12", "--fallback", "popular")
    rows = read()
    joined = rows.join(pl.read_parquet(videos), on="video_id", how="left")
    assert "popular" in rows["source"].to_list()
    assert joined.filter(pl.col("category").is_not_null()).group_by("user_id", "category").len()["len"].max() == 1
    assert rows.select("user_id", "video_id").is_unique().all()
    assert rows.filter(pl.col("source") == "popular")["propensity"].unique().to_list() == [1.0]
    assert (rows["rank"] == rows.select(pl.int_range(1, pl.len() + 1).over("user_id")).to_series()).all()
