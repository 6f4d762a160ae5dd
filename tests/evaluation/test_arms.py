"""`arms`: the metrics of each arm's own rows, and differences with intervals."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec_batch.evaluation import arms
from genrec_batch.evaluation.lists import ArmRows


def compared(arm_M, *values):
    by_row = {("recs", 1, f"metric{i}"): value_M for i, value_M in enumerate(values)}
    by_row |= {("popular", 1, "metric0"): np.ones(len(arm_M)), ("recs", 1, "cold|metric0"): np.ones(len(arm_M))}
    rows = ArmRows(names=("control", "test"), arm_M=np.asarray(arm_M))
    return arms.compared(by_row, "recs", rows, seed=3)


def test_each_arm_has_the_mean_of_its_own_rows_and_the_difference_to_the_first():
    control, test = compared([0, 0, 1, 1, 1], np.array([1.0, 0, 1, 1, 0]), np.array([2.0, np.nan, 5, 5, 5]))
    assert (control["arm"], control["rows"], control["difference"]) == ("control", 2, {})
    assert list(control["metrics"]) == ["metric0", "metric1"]
    assert control["metrics"]["metric1"]["value"] == 2
    assert (test["rows"], test["metrics"]["metric0"]["value"]) == (3, pytest.approx(2 / 3, abs=1e-5))
    assert test["difference"]["metric1"] == {"value": 3, "low": 3, "high": 3}


def test_the_interval_of_a_difference_is_that_of_the_central_limit():
    random = np.random.default_rng(1)
    arm_M = random.integers(0, 2, 6000)
    value_M = random.random(6000) + 0.05 * arm_M
    _, test = compared(arm_M, value_M)
    a, b = value_M[arm_M == 0], value_M[arm_M == 1]
    width = 1.96 * np.sqrt(a.var() / len(a) + b.var() / len(b))
    found = test["difference"]["metric0"]
    assert found["value"] == pytest.approx(b.mean() - a.mean(), abs=1e-6)
    assert found["low"] == pytest.approx(found["value"] - width, abs=0.15 * width)
    assert found["high"] == pytest.approx(found["value"] + width, abs=0.15 * width)


def test_an_arm_without_rows_has_no_figures():
    control, test = compared([0, 0], np.array([1.0, 0]))
    assert (control["rows"], test["rows"]) == (2, 0)
    assert test["metrics"]["metric0"]["value"] is test["difference"]["metric0"]["value"] is None


def test_arms_of_few_users_are_named_since_their_intervals_say_too_little():
    control, test = compared([0] * 40 + [1] * 2, np.ones(42))
    assert arms.too_few([control, test]).startswith("arms with fewer than 30 users who came back: test (2);")
    assert not arms.too_few([control])


@pytest.mark.parametrize("layout", ["long", "nested"])
def test_an_output_with_arms_is_judged_by_arm(run, log, log_file, model_dir, layout):
    before = log.filter(pl.col("timestamp") < dt.datetime(2026, 4, 25, tzinfo=dt.timezone.utc))
    before.write_parquet("before.parquet")
    arm = ["--arm", f"control={model_dir}:60", "--arm", f"test={model_dir}:40", "--arm", "test.include-seen=true"]
    shape = ["--layout", layout, "--as-of", "2026-04-24T23:59:59.999999", "--precision", "fp32"]
    done = run("score", "before.parquet", "recs.parquet", *arm, "--salt", "exp42", *shape)
    assert done.code == 0, done.err
    done = run("evaluate", log_file, "--recs", "recs.parquet", "--json", "report.json", "--html", "report.html")
    assert done.code == 0, done.err
    report = json.loads(Path("report.json").read_text())
    control, test = [each for each in report["arms"] if each["next"] == 1]
    assert (control["arm"], test["arm"]) == ("control", "test")
    assert control["rows"] + test["rows"] == report["counts"]["rows"]
    assert min(control["rows"], test["rows"]) > 0
    rows = pl.read_parquet("recs.parquet")
    rows = rows if layout == "long" else rows.explode("rank", "video_id")
    later = log.filter(pl.col("timestamp") >= dt.datetime(2026, 4, 25, tzinfo=dt.timezone.utc))
    target = later.sort("timestamp", maintain_order=True).group_by("user_id").agg(target=pl.col("video_id").first())
    hit = rows.group_by("user_id", "arm").agg("video_id").join(target, on="user_id", how="inner")
    hit = hit.with_columns(hit=pl.col("video_id").list.contains(pl.col("target")))
    for each in (control, test):
        mine = hit.filter(pl.col("arm") == each["arm"])
        assert each["rows"] == len(mine)
        assert each["metrics"]["hr@10"]["value"] == pytest.approx(mine["hit"].mean(), rel=1e-5)
    difference = test["difference"]["hr@10"]
    expected = test["metrics"]["hr@10"]["value"] - control["metrics"]["hr@10"]["value"]
    assert difference["value"] == pytest.approx(expected, abs=1e-5)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert done.summary["arms"]["test"]["difference"]["hr@10"] == difference
    page = Path("report.html").read_text()
    assert "test less control" in page
    assert "test less control" in done.out + done.err
