"""The command `evaluate`: a model or an earlier output on a log, its report, gates, and what it refuses.

Also tests `judge`, `opening`, `options`, `recs`, `tested_rows`, `run`, `lists`, `cli.evaluate` and
`reports.evaluation_page`.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec_batch.evaluation import metrics
from genrec_batch.model import weights
from genrec_batch.model.trained import Trained

SPLIT = "2026-04-25"
QUICK = ["--engine", "torch", "--precision", "fp32"]
from tests.logs import catalog_of


def value(report, name, metric, ahead=1):
    [found] = [each for each in report["rankings"] if (each["list"], each["next"]) == (name, ahead)]
    return found["metrics"][metric]["value"]


@pytest.fixture
def evaluated(run, log_file, model_dir):
    """Run the command on the small log and return what it did, with the report."""

    def call(*arguments, code=0, log=log_file):
        done = run("evaluate", log, "--model", model_dir, *QUICK, "--json", "report.json", *arguments)
        assert done.code == code, done.err
        done.report = json.loads(Path("report.json").read_text())
        return done

    return call


MOMENT = dt.datetime(2026, 4, 25, tzinfo=dt.timezone.utc)


def scored(run, log, model_dir, target, *flags):
    """Write what `score` recommends as of the split to everybody, and return what each user watched after it."""
    log = log.drop_nulls(["user_id", "video_id", "timestamp"]).sort("user_id", "timestamp", maintain_order=True)
    log.filter(pl.col("timestamp") < MOMENT).write_parquet("before.parquet")
    log.select("user_id").unique().write_parquet("all.parquet")
    as_of = (MOMENT - dt.timedelta(microseconds=1)).isoformat()
    done = run(
        "score",
        "before.parquet",
        target,
        "--model",
        model_dir,
        *QUICK,
        "--as-of",
        as_of,
        "--users",
        "all.parquet",
        *flags,
    )
    assert done.code == 0, done.err
    later = log.filter(pl.col("timestamp") >= MOMENT).group_by("user_id", maintain_order=True).agg("video_id")
    return dict(later.iter_rows())


@pytest.mark.parametrize("mode", ["candidates", "slate"])
@pytest.mark.parametrize("seen", ["--include-seen", "--exclude-seen"])
def test_lists_are_those_that_score_writes(run, evaluated, log, model_dir, mode, seen):
    report = evaluated("--test-from", SPLIT, "--decode", mode, "--ks", "5,10", seen).report
    after = scored(run, log, model_dir, "recs.parquet", "--decode", mode, seen)
    lists = pl.read_parquet("recs.parquet").group_by("user_id", maintain_order=True).agg("video_id")
    lists = {user: videos for user, videos in lists.iter_rows() if user in after}
    assert report["counts"]["rows"] == len(after) > 20
    hits = [after[user][0] in videos for user, videos in lists.items()]
    gains = [
        1 / np.log2(videos.index(after[user][0]) + 2) if hit else 0
        for hit, (user, videos) in zip(hits, lists.items(), strict=True)
    ]
    recall = [len({*videos} & {*after[user][:10]}) / len({*after[user][:10]}) for user, videos in lists.items()]
    assert value(report, mode, "hr@10") == pytest.approx(np.mean(hits), rel=1e-5)
    assert value(report, mode, "ndcg@10") == pytest.approx(np.mean(gains), rel=1e-5)
    assert value(report, mode, "recall@10", ahead=10) == pytest.approx(np.mean(recall), rel=1e-5)


@pytest.mark.parametrize(
    "flags",
    [[], ["--layout", "nested", "--shard-users", 16], ["--layout", "wide"], ["--partition-by", "cold_start"]],
)
def test_an_earlier_output_is_judged_as_its_model_is(run, evaluated, log, log_file, model_dir, flags):
    by_model = evaluated("--test-from", SPLIT, "--decode", "slate", "--ks", "1,5,10").report
    target = "nested" if flags else "recs.parquet"
    scored(run, log, model_dir, target, *flags)
    done = run("evaluate", log_file, "--recs", target, "--json", "recs.json", "--ks", "1,5,10")
    assert done.code == 0, done.err
    report = json.loads(Path("recs.json").read_text())
    assert (report["matches"]["recs_users"]["share"], report["matches"]["recs_videos"]["share"]) == (1.0, 1.0)
    assert report["as_of"].startswith("2026-04-24T23:59:59.999999")
    assert report["counts"]["rows"] == by_model["counts"]["rows"]
    for metric in ("ndcg@10", "hr@10", "mrr@10", "recall@10"):
        assert value(report, "recs", metric) == value(by_model, "slate", metric)
    assert report["baselines"] == by_model["baselines"]
    assert report["seen"] == "excluded"
    assert 0 < report["heads"]["engagement"]["exposures"] < by_model["heads"]["engagement"]["exposures"]


def test_leave_one_out_hides_each_user_s_newest_event(evaluated, log):
    report = evaluated("--leave-one-out").report
    counts = log.drop_nulls(["user_id", "video_id", "timestamp"]).group_by("user_id").len()
    assert report["counts"]["rows"] == len(counts.filter(pl.col("len") > 1)) == report["counts"]["events"]
    assert {each["next"] for each in report["rankings"]} == {1}
    five = evaluated("--leave-out", 5).report
    assert five["counts"]["events"] == 5 * five["counts"]["rows"]
    assert {each["next"] for each in five["rankings"]} == {1, 10}


def test_every_metric_of_every_list_is_in_the_report(evaluated):
    report = evaluated("--test-from", SPLIT, "--ks", "3,10").report
    names = ["candidates", "slate", *report["baselines"]]
    assert [each["list"] for each in report["rankings"]] == names * 2
    for each in report["rankings"]:
        assert list(each["metrics"]) == metrics.names((3, 10))
        for metric, one in each["metrics"].items():
            assert (one["low"] is None) == metric.startswith("coverage"), metric
            assert one["low"] is None or one["low"] <= one["value"] <= one["high"]
    assert set(report["groups"]) == {"cold start", "tail video", "seen before", "beyond the catalog"}
    assert report["heads"]["engagement"]["metrics"]["auc"]["value"] is not None
    assert report["heads"]["monetization"] == {"why_not": "no label of it is in the log"}
    assert report["status"] == "ok"


def test_the_same_seed_gives_the_same_report(evaluated):
    first, again, other = (evaluated("--test-from", SPLIT, "--seed", seed).report for seed in (1, 1, 2))
    assert (first["rankings"], first["heads"]) == (again["rankings"], again["heads"])
    assert first["rankings"] != other["rankings"]
    assert value(first, "slate", "hr@10") == value(other, "slate", "hr@10")


def test_batches_of_any_size_give_the_same_report(evaluated):
    first, small = (evaluated("--test-from", SPLIT, "--batch-size", size).report for size in (256, 3))
    for one, other in zip(first["rankings"], small["rankings"], strict=True):
        assert one["metrics"] == other["metrics"]
    assert first["heads"]["engagement"]["metrics"]["auc"] == small["heads"]["engagement"]["metrics"]["auc"]


def test_side_tables_reach_the_model_as_in_score(run):
    sample = Path(__file__).parents[2] / "sample_data"
    sides = ["--users", sample / "users.parquet", "--videos", sample / "videos.parquet"]
    assert run("model", "init", "m", "--preset", "tiny", "--catalog-from", sample / "events.parquet").code == 0
    log = pl.read_parquet(sample / "events.parquet").drop_nulls(["user_id", "video_id", "timestamp"])
    moment = dt.datetime(2026, 5, 16, tzinfo=dt.timezone.utc)
    log.filter(pl.col("timestamp") < moment).write_parquet("before.parquet")
    as_of = (moment - dt.timedelta(microseconds=1)).isoformat()
    done = run(
        "score", "before.parquet", "recs.parquet", "--model", "m", *sides, *QUICK, "--as-of", as_of, "--top-k", 50
    )
    assert done.code == 0, done.err
    arguments = [sample / "events.parquet", "--test-from", "2026-05-16", "--ks", "50", "--json", "report.json"]
    done = run("evaluate", *arguments, "--model", "m", *sides, *QUICK, "--decode", "slate")
    assert done.code == 0, done.err
    by_model = json.loads(Path("report.json").read_text())
    assert run("evaluate", *arguments, "--recs", "recs.parquet").code == 0
    by_recs = json.loads(Path("report.json").read_text())
    assert by_model["counts"]["rows"] == by_recs["counts"]["rows"] > 100
    for metric in ("hr@50", "ndcg@50"):
        assert value(by_model, "slate", metric) == value(by_recs, "recs", metric) > 0
        assert value(by_model, "slate", metric, ahead=10) == value(by_recs, "recs", metric, ahead=10)


def test_a_column_of_the_log_is_the_label_of_recommendation(evaluated, log):
    log.with_columns(liked_it=pl.col("is_liked").cast(pl.Int8)).write_parquet("labelled.parquet")
    found = evaluated("--test-from", SPLIT, "--positive", "liked_it", log="labelled.parquet").report["heads"]
    assert found["recommendation"]["label"] == found["engagement"]["label"]


def test_auto_is_the_decoding_of_the_model(evaluated):
    assert evaluated("--decode", "auto").report["lists"] == ["slate"]


def test_what_training_says_of_a_model_is_heeded(run, log, log_file, tmp_path):
    config = weights.PRESETS["tiny"]
    said = Trained(decode="candidates", seen_masked=True, max_events=50, heads=("engagement",), catalog_sha256="")
    weights.save(tmp_path / "m", config, weights.initial_weights(config, 3), trained=True, card="", training=said)
    catalog_of(log, vocabulary=config.vocabulary).write(tmp_path / "m" / "catalog.parquet")
    arguments = ["--model", "m", *QUICK, "--test-from", SPLIT, "--include-seen", "--json", "report.json"]
    done = run("evaluate", log_file, *arguments, "--decode", "slate,auto", "--gate", "hr@10>=2", "--html", "page.html")
    report = json.loads(Path("report.json").read_text())
    assert (report["lists"], report["main"]) == (["slate", "candidates"], "candidates")
    assert report["gates"][0]["measured"] == value(report, "candidates", "hr@10")
    assert {name for name, head in report["heads"].items() if head.get("trained")} == {"engagement"}
    assert "recommendation: it had no labels in training" in Path("page.html").read_text()
    assert "it ranks seen videos badly" in done.err


def test_limit_tests_the_first_users(evaluated):
    assert evaluated("--limit", 7).report["counts"]["rows"] <= 7


def test_weights_rank_by_heads(evaluated):
    plain = evaluated("--decode", "candidates", "--test-from", SPLIT).report
    blended = evaluated("--decode", "candidates", "--test-from", SPLIT, "--weights", "log_prob=1").report
    assert plain["rankings"] == blended["rankings"]
    other = evaluated("--decode", "candidates", "--test-from", SPLIT, "--weights", "engagement=1").report
    assert plain["rankings"] != other["rankings"]


def test_a_gate_that_fails_is_exit_6_and_the_report_is_whole(evaluated):
    done = evaluated("--gate", "hr@10>=0.999", "--gate", "slate.hr@10>=0", "--html", "page.html", code=6)
    assert "--gate hr@10>=0.999: measured 0" in done.err
    assert [gate["passed"] for gate in done.report["gates"]] == [False, True]
    assert done.summary["status"] == "failed"
    assert "hr@10&gt;=0.999" in Path("page.html").read_text()
    assert evaluated("--gate", "engagement.log_loss<10").summary["status"] == "ok"


def test_the_tables_and_the_page_show_model_and_baselines(evaluated):
    done = evaluated("--test-from", SPLIT, "--html", "page.html")
    page = Path("page.html").read_text()
    for name in (
        "candidates",
        "slate",
        "popularity, 7 days",
        "co-occurrence",
        "The next 10 videos",
        "AUC within users",
    ):
        assert name in page
        assert name in done.out
    assert "NDCG@10" in page


def test_logs_without_a_clock_have_no_popularity_of_days(evaluated, log):
    counted = log.drop_nulls(["user_id", "video_id", "timestamp"]).with_columns(
        timestamp=pl.from_epoch(pl.int_range(pl.len()) + 1_700_000_000).dt.replace_time_zone("UTC")
    )
    counted.write_parquet("counted.parquet")
    report = evaluated(log="counted.parquet").report
    assert report["baselines"] == ["popularity", "last-item transitions", "co-occurrence"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--test-from", "2031-01-01"], 2, "the log has no event from it on; it runs from 2026-"),
        (["--test-from", "2001-01-01"], 2, "the log has no event before it"),
        (["--test-from", "yesterday"], 2, "--test-from 'yesterday': not a moment"),
        (["--test-from", SPLIT, "--leave-one-out"], 2, "--leave-one-out goes without --test-from"),
        (["--leave-out", "0"], 2, "--leave-out 0: at least 1"),
        (["--leave-out", "5000"], 3, "at least 5001 events"),
        (["--gate", "ndcg@11>=0.1"], 2, "does not measure 'ndcg@11'"),
        (["--gate", "next10.hr@10>=0.1"], 2, "does not measure 'next10.hr@10'"),
        (["--decode", "beam"], 2, "--decode 'beam' is not one of candidates, slate"),
        (["--ks", "0,5"], 2, "--ks '0,5': whole numbers from 1"),
        (["--ks", "1000"], 2, "positions"),
        (["--recs", "nothing.parquet"], 3, "--recs nothing.parquet: no such file"),
        (["--recs", "events.parquet"], 3, "column 'rank' is missing"),
        (["--html", "page.txt"], 2, "--html page.txt: a name that ends in .html"),
    ],
)
def test_what_cannot_be_judged_is_refused(run, log_file, model_dir, arguments, code, said):
    done = run("evaluate", log_file, "--model", model_dir, *QUICK, *arguments)
    assert (done.code, said in done.err) == (code, True), done.err


def test_labels_of_one_value_have_no_auc(evaluated, log):
    log.with_columns(is_liked=False).write_parquet("never.parquet")
    done = evaluated("--test-from", SPLIT, "--gate", "engagement.auc>=0.5", log="never.parquet", code=6)
    head = done.report["heads"]["engagement"]
    assert head["why_not"] == "every label is below 0.5, so there is no AUC"
    assert head["metrics"]["auc"]["value"] is None
    assert head["metrics"]["log_loss"]["value"] > 0
    assert "--gate engagement.auc>=0.5: not measured" in done.err


def test_a_model_of_another_log_is_refused(run, log, model_dir):
    log.with_columns(pl.col("video_id") + 10_000).write_parquet("other.parquet")
    done = run("evaluate", "other.parquet", "--model", model_dir)
    assert (done.code, "the catalog: 0 of its 94 video_id are among the 94 of EVENTS" in done.err) == (4, True), (
        done.err
    )
    done = run("evaluate", "other.parquet", "--model", model_dir, "--min-match", "0")
    assert (done.code, "is in its catalog; give the model that belongs to this log" in done.err) == (4, True), done.err
    log.with_columns(pl.col("video_id").cast(pl.String)).write_parquet("other.parquet")
    done = run("evaluate", "other.parquet", "--model", model_dir)
    assert (done.code, "the catalog's video_id is Int64" in done.err) == (4, True), done.err


def test_a_log_without_events_is_refused(run, log, model_dir):
    log.clear().write_parquet("empty.parquet")
    done = run("evaluate", "empty.parquet", "--model", model_dir)
    assert (done.code, "no rows" in done.err) == (3, True), done.err
    log.unique("user_id").write_parquet("one.parquet")
    done = run("evaluate", "one.parquet", "--model", model_dir)
    assert (done.code, "at least 2 events" in done.err) == (3, True), done.err


def recs_of(run, log_file, model_dir):
    done = run("score", log_file, "recs.parquet", "--model", model_dir, *QUICK)
    assert done.code == 0, done.err


def test_an_output_that_nothing_came_after_is_refused(run, log_file, model_dir):
    recs_of(run, log_file, model_dir)
    done = run("evaluate", log_file, "--recs", "recs.parquet")
    assert (done.code, "no event to test on: none is later than" in done.err) == (3, True), done.err
    done = run("evaluate", log_file, "--recs", "recs.parquet", "--test-from", "2031-01-01")
    assert (done.code, "no event to test on" in done.err) == (3, True), done.err


def test_an_output_with_seen_videos_is_judged_beside_rules_that_may_repeat_them(run, log, log_file, model_dir):
    scored(run, log, model_dir, "recs.parquet", "--include-seen")
    assert run("evaluate", log_file, "--recs", "recs.parquet", "--json", "recs.json").code == 0
    report = json.loads(Path("recs.json").read_text())
    assert report["seen"] == "included"
    assert "repeat last" in report["baselines"]


def test_an_output_that_does_not_say_its_moment_needs_one(run, log_file, model_dir):
    recs_of(run, log_file, model_dir)
    pl.read_parquet("recs.parquet").write_parquet("plain.parquet")
    done = run("evaluate", log_file, "--recs", "plain.parquet")
    assert (done.code, "--test-from names the first moment after it" in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (pl.col("user_id") + 10_000, "none of its 40 users has an event after"),
        (pl.col("user_id").cast(pl.String), "column 'user_id' is Int64 and that of EVENTS"),
        (pl.col("video_id") + 10_000, "videos is in EVENTS"),
        (pl.col("video_id").cast(pl.String), "column 'video_id' is Int64 and that of EVENTS"),
    ],
)
def test_an_output_of_other_ids_is_refused(run, log, log_file, model_dir, change, said):
    recs_of(run, log_file, model_dir)
    log.with_columns(change).write_parquet("other.parquet")
    done = run("evaluate", "other.parquet", "--recs", "recs.parquet", "--test-from", SPLIT)
    assert (done.code, said in done.err) == (3, True), done.err


def test_an_output_is_judged_by_a_log_of_later_days_alone(run, log, log_file, model_dir):
    recs_of(run, log_file, model_dir)
    later = log.with_columns(timestamp=pl.col("timestamp") + pl.duration(days=60))
    later.write_parquet("later.parquet")
    done = run(
        "evaluate", "later.parquet", "--recs", "recs.parquet", "--test-from", "2026-05-20", "--json", "later.json"
    )
    assert done.code == 0, done.err
    report = json.loads(Path("later.json").read_text())
    assert report["baselines"] == []
    assert report["counts"]["rows"] == 40
