"""What the pages say besides commands: figures of committed results, links, files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import render
from genrec_batch.events import columns
from genrec_batch.model import weights
from tests.test_architecture import FLOORS

ROOT = Path(__file__).parents[2]
OF_THE_READER = {"onnx/export.json"}  # files that a page names and a reader has
BENCHMARKS = sorted((ROOT / "docs" / "benchmarks").glob("*.md"))


def named(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", render.PAGES, ids=named)
def test_figures_and_options_are_those_of_the_results_and_the_command_line(path):
    text = path.read_text()
    assert text == render.rendered(text), "run `python docs/render.py`"


@pytest.mark.parametrize("path", render.PAGES, ids=named)
def test_a_link_leads_to_a_file_or_heading_that_is_there(path):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


def outside_blocks(text):
    return re.sub(r"```.*?```", "", render.BLOCK.sub("", text), flags=re.DOTALL)


@pytest.mark.parametrize("path", BENCHMARKS, ids=named)
def test_a_measured_figure_comes_from_a_committed_result(path):
    """Outside the blocks that `render.py` fills, a benchmark page has no speed, time or share of its own."""
    figures = re.findall(
        r"\d[\d.,]*\d?\s?(?:users/s|rows/s|M rows/s|%|ms|TFLOP/s|GFLOP/s|GB/s|MiB|times)\b",
        outside_blocks(path.read_text()),
    )
    assert figures == []


@pytest.mark.parametrize("path", [path for path in BENCHMARKS if path.name != "README.md"], ids=named)
def test_a_benchmark_page_has_a_date_and_is_listed(path):
    assert re.search(r"20\d\d-\d\d-\d\d", path.read_text())
    assert f"]({path.name})" in (path.parent / "README.md").read_text()


@pytest.mark.parametrize("path", render.PAGES, ids=named)
def test_a_file_of_the_repository_that_a_page_names_is_there(path):
    """A span of code with a `/` and an ending, or a bare Python file, is a file of the repository or of the package."""
    spans = re.findall(r"(?<!`)`([\w.-]+(?:/[\w.-]+)*\.(?:py|cpp|sh|toml|json|txt))`", outside_blocks(path.read_text()))
    for name in {span for span in spans if "/" in span or span.endswith(".py")} - OF_THE_READER:
        assert any((ROOT / place / name).exists() for place in ("", "genrec_batch")) or list(
            ROOT.glob(f"*/**/{name}")
        ), name


def test_the_architecture_lists_the_modules_of_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for room in (ROOT / "genrec_batch").iterdir():
        if room.is_dir() and any(room.glob("[a-z]*.py")):
            assert f"<!-- modules {room.name} -->" in page, room.name


def test_the_floors_of_the_architecture_are_those_that_are_enforced():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", page, re.MULTILINE)
    floors = {
        int(floor): {re.sub(r"/$|\.py$", "", room) for room in re.findall(r"`([^`]+)`", rooms)} for floor, rooms in rows
    }
    assert floors == dict(enumerate(FLOORS))


def test_every_result_is_on_a_page():
    pages = "".join(path.read_text() for path in render.PAGES)
    for path in sorted(render.RESULTS.iterdir()):
        assert path.name in pages, path.name


def test_a_page_that_differs_from_a_result_is_noticed():
    block = "<!-- figures histories.json\n{rows:,} rows\n-->\n{}<!-- end -->\n"
    right = block.replace("{}", "4,000,000 rows\n")
    assert render.rendered(right) == right
    assert render.rendered(block.replace("{}", "5 rows\n")) == right


def test_nothing_on_a_page_waits_to_be_written():
    assert not [path for path in render.PAGES if re.search(r"@@|TODO|TBD|FIXME", path.read_text())]


def test_the_page_of_the_input_has_every_column_and_preset():
    page = (ROOT / "docs" / "input-output.md").read_text()
    assert not [name for name in columns.SCORED if f"`{name}`" not in page]
    for name, preset in weights.PRESETS.items():
        sizes = (
            preset.vocabulary,
            preset.width,
            preset.ffn,
            preset.layers,
            preset.positions,
            weights.parameters(preset),
        )
        assert f"| `{name}` | {' | '.join(f'{size:,}' for size in sizes)} |" in page
