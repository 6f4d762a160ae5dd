"""The page of `evaluate` in a real browser: no error, no connection, charts drawn, nothing wider than the screen."""

from __future__ import annotations

import json

import pytest

from genrec_batch.reports import evaluation_page
from tests.reports.test_page import DRAWN, TOO_WIDE, tab

__all__ = ["tab"]  # a fixture


@pytest.fixture
def report(run, log_file, model_dir, tmp_path):
    arguments = ["--test-from", "2026-04-25", "--engine", "torch", "--precision", "fp32", "--gate", "hr@10>=0"]
    done = run("evaluate", log_file, "--model", model_dir, *arguments, "--json", "report.json")
    assert done.code == 0, done.err
    return json.loads((tmp_path / "report.json").read_text())


def test_the_page_is_whole_on_a_desk_and_on_a_phone(tab, report, tmp_path):
    evaluation_page.write(report, tmp_path / "page.html", "--html")
    for width, scheme in ((390, "dark"), (1440, "light")):
        tab.faults.clear()
        tab.requests.clear()
        tab.open(tmp_path / "page.html", width=width, scheme=scheme)
        assert tab.faults == []
        assert all(url.startswith("file:") for url in tab.requests)
        assert dict(tab.evaluate(DRAWN)) == {f"chart-{n}": True for n in ("ndcg-1", "ndcg-10", "calibration")}
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(TOO_WIDE) == []


def test_every_section_is_there_and_names_what_it_shows(report):
    made = {section.name: section for section in evaluation_page.sections(report)}
    assert list(made) == ["test", "next-1", "next-10", "groups", "heads", "gates"]
    lists = [row[0] for row in made["next-1"].tables[0].rows]
    assert lists == [*report["lists"], *report["baselines"]]
    assert made["gates"].tables[0].rows == [["hr@10>=0", made["gates"].tables[0].rows[0][1], "passed"]]
    assert {row[0] for row in made["heads"].tables[0].rows} == {"recommendation", "engagement", "retention"}


def test_figures_that_are_not_there_are_dashes(report):
    head = report["heads"]["engagement"]
    head["metrics"]["auc"] = {"value": None, "low": None, "high": None}
    heads = {section.name: section for section in evaluation_page.sections(report)}["heads"]
    [row] = [row for row in heads.tables[0].rows if row[0] == "engagement"]
    assert row[1] == "-"
