"""The report's page in a real browser: no error, no connection, charts drawn, nothing wider than the screen.

Also tests `charts`.
"""

from __future__ import annotations

import os
import re

import pytest

from genrec_batch.reports import page, report, run_facts
from tests import browser
from tests.reports.test_profile import OVERLAPPING

CHARTS = ("timeline", "stages", "lengths", "features", "throughput", "latency", "parameters")
DRAWN = "[...document.querySelectorAll('canvas')].map(c => [c.id, {})".format(
    "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].some(v => v)]"
)
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') || e.matches('.scroll'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"""
CONTRAST = """(() => {
  const sheet = getComputedStyle(document.documentElement);
  const light = (hex) => {
    const parts = hex.match(/[0-9a-f]{2}/gi).map(x => parseInt(x, 16) / 255)
      .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const paper = light(sheet.getPropertyValue('--card').trim());
  const told = {};
  for (const name of ['--ink', '--soft', ...[0, 1, 2, 3, 4, 5, 6, 7, 8].map(i => `--c${i}`)]) {
    const [a, b] = [light(sheet.getPropertyValue(name).trim()), paper].sort((x, y) => y - x);
    told[name] = (a + 0.05) / (b + 0.05);
  }
  return told;
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if browser.CHROMIUM is None:
        missing = "no Chromium is installed; as root, `make test` installs Debian's"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    with browser.page(tmp_path_factory.mktemp("browser") / "settings") as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_is_whole_at_every_width_and_in_both_schemes(tab, profiled, width, scheme):
    folder, _ = profiled
    tab.faults.clear()
    tab.requests.clear()
    tab.open(folder / "report.html", width=width, scheme=scheme)
    assert tab.faults == []
    assert all(url.startswith("file:") for url in tab.requests)
    drawn = dict(tab.evaluate(DRAWN))
    assert drawn == {f"chart-{name}": True for name in CHARTS}
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(TOO_WIDE) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_colours_stand_out_from_the_paper(tab, profiled, scheme):
    """WCAG 2: at least 4.5 for text, 3 for graphics; yellow and light hues are the usual offenders."""
    folder, _ = profiled
    tab.open(folder / "report.html", width=390, scheme=scheme)
    contrast = tab.evaluate(CONTRAST)
    assert contrast["--ink"] >= 4.5
    assert contrast["--soft"] >= 4.5
    assert min(contrast.values()) >= 2.9, contrast


def test_a_point_tells_its_figure_and_unit_under_the_mouse(tab, profiled):
    folder, _ = profiled
    tab.open(folder / "report.html", width=1440, scheme="light")
    tab.evaluate("document.getElementById('chart-timeline').scrollIntoView({block: 'center'})")
    x, y = tab.evaluate("""(() => {
      const chart = Chart.getChart('chart-timeline');
      const i = chart.data.datasets.findIndex(d => d.label === 'decode');
      const {x, y} = chart.getDatasetMeta(i).data[0].getCenterPoint();
      const box = chart.canvas.getBoundingClientRect();
      return [box.left + x, box.top + y];
    })()""")
    tab.hover(x, y)
    told = tab.evaluate("Chart.getChart('chart-timeline').tooltip.title[0]")
    assert told == "decode on MainThread"
    assert re.search(r"s to .* s, at work", tab.evaluate("Chart.getChart('chart-timeline').tooltip.body[0].lines[0]"))


def test_a_change_of_scheme_draws_the_charts_anew(tab, profiled):
    folder, _ = profiled
    tab.open(folder / "report.html", width=1440, scheme="light")
    colour = "Chart.getChart('chart-lengths').data.datasets[0].backgroundColor"
    light = tab.evaluate(colour)
    tab.scheme("dark")
    assert tab.evaluate(colour) != light


def test_a_page_needs_nothing_else_and_hides_no_markup():
    hostile = "</script><script>alert(1)</script>"
    summary = {"scored_users": 1, "engine": hostile, "warnings": [hostile], "seconds": 7.5}
    facts = run_facts.describe(OVERLAPPING, summary)
    facts["timeline"][0]["stage"] = facts["stages"][0]["stage"] = hostile
    text = page.render(report.document("run", hostile, run=facts))
    assert "<script>alert" not in text
    assert not re.search(r"""(src|href)=["'](?!#)""", text)
    assert "default-src 'none'" in text
    assert "The MIT License" in text
    assert "sourceMappingURL" not in text
    assert len(text) < 400_000
