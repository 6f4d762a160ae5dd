"""`arm_facts` and `arm_tables`: the arms of an output in `inspect`, in a run's summary, and on its page."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.model import weights
from tests.logs import catalog_of


@pytest.fixture(scope="module")
def other(tmp_path_factory, log):
    """Another model, which knows every second video."""
    directory = tmp_path_factory.mktemp("arms") / "b"
    config = weights.PRESETS["tiny"]
    weights.save(directory, config, weights.initial_weights(config, 5), trained=True, card="for tests\n")
    known = log.filter(pl.col("video_id") % 2 == 0)
    catalog_of(known, vocabulary=config.vocabulary).write(directory / "catalog.parquet")
    return directory


@pytest.fixture
def armed(run, log_file, model_dir, other):
    def call(*more):
        arms = ["--arm", f"test={other}:40", "--arm", f"control={model_dir}:60", "--salt", "exp42"]
        done = run("score", log_file, "recs.parquet", *arms, "--precision", "fp32", *more)
        assert done.code == 0, done.err
        return done

    return call


@pytest.mark.parametrize("layout", ["long", "nested", "wide"])
def test_inspect_compares_the_arms_of_an_output(run, armed, layout):
    summary = armed("--layout", layout).summary["arms"]
    armed("--if-exists", "overwrite")
    rows = pl.read_parquet("recs.parquet")
    armed("--layout", layout, "--if-exists", "overwrite")
    done = run("inspect", "recs.parquet", "--json")
    assert done.code == 0, done.err
    arms = done.summary["arms"]
    assert list(arms) == ["test", "control"]  # in the order of their buckets
    for name in ("test", "control"):
        same = ("users", "rows", "cold_start_users", "videos", "coverage", "buckets", "model")
        assert {key: arms[name][key] for key in same} == {key: summary[name][key] for key in same}
        assert arms[name]["mean_log_prob"] == pytest.approx(summary[name]["mean_log_prob"], abs=1e-5)
    control = arms["control"]
    shares = {arm: mine.group_by("video_id").agg(share=pl.len() / len(mine)) for (arm,), mine in rows.group_by("arm")}
    joined = shares["test"].join(shares["control"], on="video_id")
    assert control["overlap"] == pytest.approx(
        joined.select(pl.min_horizontal("share", "share_right").sum()).item(), abs=1e-4
    )
    means = dict(rows.group_by("arm").agg(pl.col("engagement").mean()).iter_rows())
    assert control["shift"]["mean_engagement"] == pytest.approx(means["control"] - means["test"], abs=1e-5)
    assert "overlap" not in arms["test"]
    assert done.summary["videos"]["catalog"]["why"].startswith("each arm has a catalog of its own")


def test_inspect_tells_what_the_run_counted_of_a_shadow(run, armed, other):
    summary = armed("--arm", f"new={other}:50:shadow").summary["arms"]["new"]
    shadow = run("inspect", "recs.parquet", "--json").summary["arms"]["new"]
    for name in ("users", "rows", "overlap", "shift", "published", "mean_log_prob"):
        assert shadow[name] == summary[name]
    assert "videos" not in shadow  # which its lists would tell, and these are nowhere
    shown = " ".join(run("inspect", "recs.parquet").out.split())
    assert "Shadows" in shown


def test_the_terminal_and_the_page_show_the_arms(run, armed):
    done = armed("--report", "report.html")
    for text in (done.err, Path("report.html").read_text(), run("inspect", "recs.parquet").out):
        assert "Arms" in text
        assert "0-3999" in text
    armed("--report", "report.json", "--if-exists", "overwrite")
    assert json.loads(Path("report.json").read_text())["run"]["summary"]["arms"]["test"]["users"] > 0


def test_an_output_without_the_column_arm_is_shown_without_them(run, armed):
    armed("--columns", "user_id,rank,video_id")
    done = run("inspect", "recs.parquet", "--json")
    assert done.code == 0, done.err
    assert "arms" not in done.summary


def test_an_arm_that_no_user_is_in_is_shown_as_such(run, log_file, model_dir, other):
    arms = ["--arm", f"none={other}:0.01", "--arm", f"all={model_dir}:99.99", "--salt", "exp42"]
    done = run("score", log_file, "recs.parquet", *arms, "--precision", "fp32", "--as-of", "2026-04-25")
    assert done.code == 0, done.err
    assert done.summary["arms"]["none"]["scored_users"] == 0
    found = run("inspect", "recs.parquet", "--json").summary["arms"]
    assert list(found) == ["none", "all"]
    assert (found["none"]["users"], found["none"]["rows"], found["none"]["videos"]) == (0, 0, 0)
    assert "shift" not in found["all"]
    assert run("inspect", "recs.parquet").code == 0
    judged = run("evaluate", log_file, "--recs", "recs.parquet", "--html", "report.html")
    assert judged.code == 0, judged.err
    assert judged.summary["arms"]["none"]["users"] == 0
    assert "Arms with fewer than 30 users who came back: none (0)" in Path("report.html").read_text()
