"""How a run's drift is shown: in the table of `inspect`, on the page and in the summary's line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genrec_batch.reports import drift_tables
from tests.conftest import small_log

MOVED = [
    ("model", "history length", 0.31, "median", 12.0, 31.0),
    ("previous", "log_prob 1", 0.12, "mean", -5.5, -4.0),
]
FIGURES = {
    "users": 700,
    "model": {"history length": 0.31, "videos": 0.01},
    "previous": {"history length": 0.02, "videos": 0.0, "log_prob 1": 0.12},
    "moved": [
        dict(zip(("against", "quantity", "psi", "measure", "before", "now"), each, strict=True)) for each in MOVED
    ],
    "left_out": {"model": ["scores: it has none of beams"]},
}


def test_the_table_has_the_furthest_first_and_says_which_way_it_moved():
    (table,) = drift_tables.tables(FIGURES)
    assert table.columns == ["quantity", "the model's training", "the output of --previous", "what moved"]
    assert table.rows == [
        ["history length", "0.310", "0.020", "median 12.0 in the model's training, 31.0 now"],
        ["log_prob 1", "-", "0.120", "mean -5.5 in the output of --previous, -4 now"],
        ["videos", "0.010", "0.000", ""],
        ["left out", "", "", "the model's training: scores: it has none of beams"],
    ]
    (chart,) = drift_tables.charts(FIGURES)
    assert chart["labels"] == ["history length", "videos", "log_prob 1"]
    assert chart["series"][0] == {"name": "the model's training", "values": [0.31, 0.01, None]}
    assert drift_tables.worst(FIGURES) == "at most 0.310 (history length, against the model's training)"


def test_without_figures_nothing_is_shown():
    nothing = {"users": 3, "model": {}, "moved": [], "left_out": {"model": ["why"]}}
    assert (drift_tables.tables(None), drift_tables.charts(None), drift_tables.worst(None)) == ([], [], None)
    assert (drift_tables.charts(nothing), drift_tables.worst(nothing)) == ([], None)
    assert drift_tables.tables(nothing)[0].rows == [["left out", "the model's training: why"]]


@pytest.mark.parametrize("target", ["b.parquet", "b"])
def test_a_run_tells_its_drift_on_its_page_in_its_json_and_inspect_tells_it_later(run, model_dir, target):
    flags = ["--model", model_dir, "--engine", "onnxruntime", "--max-events", "10"]
    for seed, name, more in ((1, "a.parquet", []), (2, target, ["--previous", "a.parquet", "--report", "page.html"])):
        small_log(users=510, seed=seed).write_parquet("events.parquet")
        done = run("score", "events.parquet", name, *flags, *more)
        assert done.code == 0, done.err
    page = Path("page.html").read_text()
    assert "population stability index" in page
    assert "share of known videos" in page
    assert "against the output of --previous)" in done.err, "the summary's line"
    inspected = run("inspect", target, "--json").summary
    assert inspected["drift"] == done.summary["drift"]
    assert "share of known videos" in run("inspect", target).out
    assert json.loads(json.dumps(inspected["drift"]))["previous"]["history length"] < 0.1
