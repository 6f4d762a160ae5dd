"""Two models on the same rows: gates such as `ndcg@10>=0.98*champion`, with the interval of the difference.

Owns: the comparison, and what a difference within the noise means. Must not know: how a figure is measured, the
registry. In: two evaluations, gates. Out: the gates with what was measured, plain dictionaries.

The rows of both are drawn together (a paired bootstrap), so what is common to both models does not widen the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from genrec_batch.evaluation import bootstrap, gates, judge
from genrec_batch.evaluation.bootstrap import NOTHING, Estimate
from genrec_batch.evaluation.gates import HOLDS, Gate
from genrec_batch.evaluation.run import Measured


def judged(
    wanted: Sequence[Gate], ours: Measured, theirs: Measured | None, *, seed: int, max_noise: float
) -> list[dict[str, Any]]:
    """Return each gate with what was measured and whether it holds.

    Args:
        wanted: the gates.
        ours: the evaluation of the candidate.
        theirs: that of the other model on the same rows; None where there is none yet, so that every comparison holds.
        seed: of the resamples.
        max_noise: half of the interval, as a share of their figure, up to which a figure that falls short of its
            limit by less than the noise passes.
    """
    if theirs is not None:
        assert ours.row_ids.equals(theirs.row_ids)
        assert np.array_equal(ours.moment_us_M, theirs.moment_us_M)
    plain = iter(gates.judge([gate for gate in wanted if not gate.of], ours.figures))
    return [_compared(gate, ours, theirs, seed, max_noise) if gate.of else next(plain) for gate in wanted]


def _compared(gate: Gate, ours: Measured, theirs: Measured | None, seed: int, max_noise: float) -> dict[str, Any]:
    measured = ours.figures.get(gate.name)
    found: dict[str, Any] = {"gate": gate.text, "measured": measured, gate.of: None, "limit": None}
    if theirs is None:
        return {**found, "passed": measured is not None, "why": f"there is no {gate.of} yet"}
    other = theirs.figures.get(gate.name)
    if measured is None or other is None:
        return {**found, "measured": None, gate.of: other, "passed": False}
    limit, difference = gate.limit * other, _difference(gate, ours, theirs, seed)
    found |= {gate.of: other, "limit": judge.rounded(limit), "difference": judge.figure(difference)}
    passed, why = _verdict(gate, measured, limit, difference, max_noise * abs(other))
    rows = f"{len(ours.moment_us_M):,} rows"
    return {**found, "passed": passed, "why": f"{gate.of} {other:.5g}, limit {limit:.5g}, {rows}: {why}"}


def _verdict(gate: Gate, measured: float, limit: float, difference: Estimate, most: float) -> tuple[bool, str]:
    """Return whether a figure holds against its limit, and why; `most` is the largest noise that excuses it."""
    if HOLDS[gate.sign](measured, limit):
        return True, f"{abs(measured - limit):.3g} better than the limit"
    short = f"{abs(measured - limit):.3g} short of the limit"
    if difference.low is None or difference.high is None:
        return False, short
    reaches = difference.high >= 0 if gate.sign.startswith(">") else difference.low <= 0
    half = (difference.high - difference.low) / 2
    if not reaches:
        return False, f"{short}, beyond the noise of {half:.3g}"
    if half > most:
        return (
            False,
            f"{short}, within a noise of {half:.3g}, too large for --max-noise: test on more rows",
        )
    return True, f"{short}, within the noise of {half:.3g}"


def _difference(gate: Gate, ours: Measured, theirs: Measured, seed: int) -> Estimate:
    """Return by how much our figure is above its limit, with the interval; nothing for a figure that is no mean."""
    our_M, their_M = ours.value_M.get(gate.name), theirs.value_M.get(gate.name)
    if our_M is None or their_M is None:
        return NOTHING
    return bootstrap.means({gate.name: our_M - gate.limit * their_M}, seed)[gate.name]
