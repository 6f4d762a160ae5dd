"""`filling`, and the views of `events/views.py`: a fallback through the whole job, compared with a loop."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import polars as pl
import pytest

from genrec_batch import Scorer
from genrec_batch.core.arrays import HEADS
from genrec_batch.io import published
from genrec_batch.io.recommended import Recommended
from tests.conftest import START
from tests.twins import popular as twin

TOP = 4
NEW = [5001, 5002]  # videos that the model does not know
LAST = START + dt.timedelta(days=36)


@pytest.fixture
def events(log):
    """The log with users who know no video of the catalog, two new videos that many watch, and countries."""
    views = [(user, video, LAST - dt.timedelta(hours=2)) for user in range(300, 340) for video in NEW[: 1 + user % 2]]
    views += [(400, NEW[0], LAST), (401, 77, LAST)]
    types = {"user_id": pl.Int64, "video_id": pl.Int64, "timestamp": pl.Datetime("us", "UTC")}
    more = pl.DataFrame(views, types, orient="row")
    both = pl.concat([log, more], how="diagonal")
    user = pl.col("user_id")
    country = pl.when(user % 10 % 5 == 0).then(None).when(user % 2 == 0).then(pl.lit("de")).otherwise(pl.lit("fr"))
    both = both.with_columns(country=country)
    both.write_parquet("more.parquet")
    return both


@pytest.fixture
def score(run, model_dir):
    def call(target, *flags):
        fixed = ["--model", model_dir, "--engine", "torch", "--precision", "fp32", "--top-k", TOP]
        done = run("score", "more.parquet", target, *fixed, *flags)
        assert done.code == 0, done.err
        return done

    return call


def lists(path):
    rows = pl.read_parquet(path).group_by("user_id", maintain_order=True).agg(pl.struct("video_id", "source"))
    return {user: list(listed) for user, listed in rows.iter_rows()}


def wanted(events, plain, since=None, by=None, removed=()):
    """Return each user's list, from the lists without a fallback."""
    window = events if since is None else events.filter(pl.col("timestamp") > since)
    value = {}
    for user, country in events.sort("timestamp", maintain_order=True).select("user_id", "country").iter_rows():
        value[user] = country or value.get(user)
    overall = twin.ranked(window["video_id"])
    catalog = {video for rows in plain.values() for video in rows}
    found = {}
    for user in sorted(set(events["user_id"])):
        seen = set(events.filter(pl.col("user_id") == user)["video_id"])
        mine = [overall]
        if by and value[user]:
            alike = [other for other in value if value[other] == value[user]]
            mine.insert(0, twin.ranked(window.filter(pl.col("user_id").is_in(alike))["video_id"]))
        cold = not seen & catalog
        out = seen | set(removed)
        found[user] = twin.filled(plain.get(user, []), mine, lambda video, out=out: video not in out, TOP, cold=cold)
    return found


def plain_lists(path):
    rows = pl.read_parquet(path).group_by("user_id", maintain_order=True).agg("video_id")
    return dict(rows.iter_rows())


@pytest.mark.parametrize("flags", [(), ("--shard-users", 7)])
@pytest.mark.parametrize(
    ("fallback", "since", "by"),
    [
        ("popular", None, None),
        ("popular:3d", LAST - dt.timedelta(days=3), None),
        ("popular:by=country", None, "country"),
        ("popular:20d:by=country", LAST - dt.timedelta(days=20), "country"),
    ],
)
def test_cold_users_get_what_is_popular(score, events, fallback, since, by, flags):
    score("all.parquet", "--top-k", 90, "--include-seen")
    known = set(pl.read_parquet("all.parquet")["video_id"])
    score("plain.parquet")
    done = score("a.parquet", "--fallback", fallback, *(flags or ()))
    plain = plain_lists("plain.parquet")
    expected = wanted(events, {**plain, 0: known}, since, by)
    found = {user: [(row["video_id"], row["source"]) for row in rows] for user, rows in lists("a.parquet").items()}
    assert found == expected
    popular = [row for rows in found.values() for row in rows if row[1] == "popular"]
    assert done.summary["popular_rows"] == len(popular) > 100
    assert NEW[0] in {video for video, _ in popular}, "videos that no model knows are what a fallback is good for"
    assert done.summary["popular_users"] == 42
    rows = pl.read_parquet("a.parquet").filter(pl.col("source") == "popular")
    assert rows.select("score", "log_prob", "step", *HEADS).null_count().row(0) == (len(rows),) * 7
    rest = pl.read_parquet("a.parquet").filter(pl.col("source") == "model").drop("source")
    warm = pl.read_parquet("plain.parquet").filter(pl.col("user_id") < 300)
    assert rest.select(warm.columns).equals(warm)


def test_a_fallback_obeys_the_rules_and_fills_short_lists(score, events, log):
    pl.DataFrame({"video_id": [NEW[0], 1001]}).write_parquet("bans.parquet")
    known = log["video_id"].value_counts(sort=True)["video_id"].to_list()
    pl.DataFrame({"video_id": [*known[:7], *NEW]}).write_parquet("only.parquet")
    flags = ["--exclude", "bans.parquet", "--only", "only.parquet"]
    score("plain.parquet", *flags)
    done = score("a.parquet", *flags, "--fallback", "popular")
    removed = set(events["video_id"]) - ({*known[:7], *NEW} - {NEW[0], 1001})
    expected = wanted(events, {**plain_lists("plain.parquet"), 0: known}, removed=removed)
    found = {user: [(row["video_id"], row["source"]) for row in rows] for user, rows in lists("a.parquet").items()}
    assert found == {user: rows for user, rows in expected.items() if rows}
    assert any(row == (NEW[1], "popular") for rows in found.values() for row in rows)
    short = {user for user in expected if len(expected[user]) < TOP}
    why = pl.read_parquet("a.parquet.fingerprints").filter(pl.col("shortfall").is_not_null())
    assert set(why["user_id"]) == short
    assert done.summary["short_users"] == len(short)


@pytest.mark.usefixtures("events")
def test_nobody_gets_a_popular_video_again(score):
    score("a", "--fallback", "popular")
    score("b", "--fallback", "popular", "--exclude-recommended", "a")
    a, b = (pl.read_parquet(f"{name}/*.parquet").select("user_id", "video_id") for name in "ab")
    assert set(a["video_id"]) & set(NEW)
    assert not set(a.iter_rows()) & set(b.iter_rows())


@pytest.mark.usefixtures("events")
def test_lists_with_popular_videos_are_made_again_every_night(score):
    score("a", "--fallback", "popular")
    done = score("b", "--fallback", "popular", "--previous", "a")
    assert done.summary["scored_users"] == 42
    assert done.summary["carried_users"] == 40
    a, b = (pl.read_parquet(f"{name}/*.parquet") for name in "ab")
    assert a.select("user_id", "rank", "video_id", "source").equals(b.select("user_id", "rank", "video_id", "source"))


def test_groups_may_be_a_column_of_users(score, events):
    users = events.select("user_id").unique().sort("user_id").with_columns(plan=pl.col("user_id") % 3)
    users.write_parquet("users.parquet")
    done = score("a.parquet", "--fallback", "popular:by=plan", "--users", "users.parquet")
    assert done.summary["popular_users"] == 42


@pytest.mark.usefixtures("events")
def test_a_column_that_is_not_there_is_named(run, model_dir):
    done = run("score", "more.parquet", "a.parquet", "--model", model_dir, "--fallback", "popular:by=county")
    assert (
        done.code,
        "'county' is a column neither of --users nor of the log. Did you mean 'country'" in done.err,
    ) == (2, True)


@pytest.mark.usefixtures("events")
def test_a_window_without_views_fills_nothing(score):
    done = score("a.parquet", "--fallback", "popular:1h", "--as-of", (LAST + dt.timedelta(days=3)).isoformat())
    assert "no view in its window" in done.err
    assert done.summary["popular_rows"] == 0
    assert set(pl.read_parquet("a.parquet")["source"]) == {"model"}


@pytest.mark.usefixtures("events")
def test_an_output_with_a_fallback_is_sound(run, score):
    score("a", "--fallback", "popular", "--layout", "nested")
    done = run("inspect", "a", "--json")
    assert done.code == 0, done.err
    assert all(check["ok"] for check in json.loads(done.out)["checks"])


def test_a_scorer_fills_too_and_has_the_same_columns_for_nobody(events, model_dir):
    fill = Scorer(model=str(model_dir), engine="torch", precision="fp32", top_k=TOP, fallback="popular")
    rows = fill(events)
    assert set(rows["source"].to_pylist()) == {"model", "popular"}
    assert fill(events.clear()).schema.equals(rows.schema)


@pytest.mark.parametrize("layout", ["long", "nested", "wide"])
def test_videos_beyond_the_catalog_carry_their_columns_too(events, score, layout):
    ids = events["video_id"].unique().sort()
    table = pl.DataFrame({"video_id": ids, "title": pl.Series(ids).cast(pl.String) + "!", "unused": 1})
    table.write_parquet("videos.parquet")
    carry = ("--videos", "videos.parquet", "--carry", "title,page=title")
    score("carried", *carry, "--fallback", "popular", "--layout", layout)
    rows = Recommended.of(*published.files_of(Path("carried")))
    found = rows.all_rows(["video_id", "source", "title", "page"]).collect()
    assert set(NEW) & set(found["video_id"])
    assert (found["title"] == found["video_id"].cast(pl.String) + "!").all()
    assert found["page"].equals(found["title"].alias("page"))


@pytest.mark.usefixtures("events")
def test_promoted_videos_keep_their_places_in_the_lists_of_cold_users(score, run):
    pl.DataFrame({"video_id": [1000], "rank": [2]}).write_parquet("p.parquet")
    done = score("a.parquet", "--fallback", "popular", "--promote", "p.parquet", "--explore", "0.9")
    rows = pl.read_parquet("a.parquet")
    cold = rows.filter(pl.col("user_id") >= 300)
    assert cold.filter(pl.col("source") == "promoted")["rank"].to_list() == [2] * 42
    assert set(cold.filter(pl.col("rank") != 2)["source"]) == {"popular"}
    assert cold["propensity"].to_list() == [1.0] * 42 * TOP
    for source in ("promoted", "explored", "popular"):
        assert done.summary[f"{source}_rows"] == rows.filter(pl.col("source") == source).height
    assert run("inspect", "a.parquet").code == 0
