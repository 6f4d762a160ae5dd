"""How drift is shown: a table and a chart of how far each quantity has moved, and a line for the summary.

Owns: order, words and units. Must not know: how drift is measured, terminals or HTML. In: the entry `drift` of a run's
summary. Out: tables, a chart, a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genrec_batch.core.drift import MOVED, SHIFTED
from genrec_batch.reports.charts import Chart
from genrec_batch.reports.sections import Table, figure

Figures = Mapping[str, Any]
AGAINST = {"model": "the model's training", "previous": "the output of --previous"}


def tables(figures: Figures | None) -> list[Table]:
    """Return the table of a run's drift; none where it was not measured."""
    if figures is None:
        return []
    against = [name for name in AGAINST if figures.get(name)]
    quantities = sorted(
        {quantity for name in against for quantity in figures[name]},
        key=lambda quantity: -max(figures[name].get(quantity, 0) for name in against),
    )
    moved = {(each["against"], each["quantity"]): each for each in figures["moved"]}
    rows = [
        [
            quantity,
            *(_index(figures[name].get(quantity)) for name in against),
            "; ".join(_moved(moved[name, quantity], name) for name in against if (name, quantity) in moved),
        ]
        for quantity in quantities
    ]
    rows += [
        ["left out", *([""] * len(against)), f"{AGAINST[name]}: {why}"]
        for name, reasons in figures["left_out"].items()
        for why in reasons
    ]
    title = (
        f"Drift of {figure(figures['users'])} users: population stability index, "
        f"moved from {MOVED:g} on, shifted from {SHIFTED:g} on"
    )
    return [Table(title=title, columns=["quantity", *(AGAINST[name] for name in against), "what moved"], rows=rows)]


def _index(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _moved(move: Figures, name: str) -> str:
    before, now = (figure(move[side]) for side in ("before", "now"))
    return f"{move['measure']} {before} in {AGAINST[name]}, {now} now"


def charts(figures: Figures | None) -> list[Chart]:
    """Return bars of each quantity's index, in the order of the summary; none where there is none."""
    against = [name for name in AGAINST if figures and figures.get(name)]
    if figures is None or not against:
        return []
    quantities = list(dict.fromkeys(quantity for name in against for quantity in figures[name]))
    return [
        {
            "name": "drift",
            "kind": "bars",
            "title": "Drift: population stability index",
            "x": "index",
            "y": "quantity",
            "labels": quantities,
            "series": [
                {"name": AGAINST[name], "values": [figures[name].get(quantity) for quantity in quantities]}
                for name in against
            ],
        }
    ]


def worst(figures: Figures | None) -> str | None:
    """Return the quantity that has moved furthest, in words; None where nothing was compared."""
    found = [
        (psi, quantity, name)
        for name in AGAINST
        for quantity, psi in ((figures or {}).get(name) or {}).items()
    ]  # fmt: skip
    if not found:
        return None
    psi, quantity, name = max(found)
    return f"at most {psi:.3f} ({quantity}, against {AGAINST[name]})"
