"""Composing one user's list in plain Python, place by place: what the kernels of `rules` are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

OWN = 1e-3  # share of a video's variance that no other explains, for dpp


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one user's list is composed of."""

    top_k: int
    pool: list[tuple[int, float]]  # videos and scores in decode order
    boost: dict[int, float] = field(default_factory=dict)
    caps: list[tuple[int, dict[int, object]]] = field(default_factory=list)  # most per value, and videos' values
    method: str | None = None
    weight: float = 0.0
    alike: Callable[[int, int], float] | None = None
    promoted: dict[int, int] = field(default_factory=dict)  # video by place, from 0
    explore: float = 0.0
    draws: list[tuple[float, float]] = field(default_factory=list)  # of each place


@dataclass(kw_only=True)
class Row:
    video: int
    source: str
    score: float | None = None
    propensity: float = 1.0


def fits(case, video, others):
    """Whether no cap holds a video back from a list of others."""
    for most, values in case.caps:
        mine = values.get(video)
        if mine is not None and sum(values.get(other) == mine for other in others) >= most:
            return False
    return True


def determinant(case, videos):
    """The determinant of the videos' likeness, by elimination."""
    rows = [[1.0 if a == b else (1 - OWN) * case.alike(a, b) for b in videos] for a in videos]
    product = 1.0
    for at, row in enumerate(rows):
        product *= row[at]
        for below in range(at + 1, len(rows)):
            factor = rows[below][at] / row[at]
            rows[below] = [x - factor * y for x, y in zip(rows[below], row, strict=True)]
    return product


def value(case, scores, video, chosen):
    """What the greedy pass takes a video for, after those that it chose before."""
    if case.method is None:
        return scores[video]
    low, high = min(scores.values()), max(scores.values())
    worth = (1 - case.weight) * ((scores[video] - low) / (high - low) if high > low else 0.0)
    if case.method == "mmr":
        return worth - case.weight * max([0.0, *(case.alike(video, other) for other in chosen)])
    gain = determinant(case, [*chosen, video]) / determinant(case, chosen)
    return worth + case.weight * math.log(gain)


def compose(case):
    """The rows of the list, and whether caps left it short."""
    scores = {video: score + case.boost.get(video, 0.0) for video, score in case.pool}
    order = sorted(scores, key=lambda video: -scores[video])
    kept = {}
    for place in sorted(case.promoted):
        if fits(case, case.promoted[place], kept.values()):
            kept[place] = case.promoted[place]
    left = [video for video in order if video not in kept.values()]
    chosen = {}  # with their values
    while len(chosen) < case.top_k - len(kept):
        values = {v: value(case, scores, v, list(chosen)) for v in left if fits(case, v, [*kept.values(), *chosen])}
        if not values:
            break
        best = max(values, key=values.get)
        chosen[best] = values[best]
        left.remove(best)
    rows, waiting = [], list(chosen)
    for place in range(case.top_k):
        if place in kept:
            rows.append(Row(video=kept[place], source="promoted"))
        elif waiting:
            video = waiting.pop(0)
            rows.append(Row(video=video, source="model", score=chosen[video]))
    capped = len(rows) < case.top_k and bool(left)
    for place, row in enumerate(rows):
        if row.source == "model" and case.explore:
            others = [other.video for other in rows if other is not row]
            explore(case, row, [v for v in left if fits(case, v, others)], left, case.draws[place])
    return rows, capped


def explore(case, row, can, left, draw):
    """Replace a row as it was drawn."""
    if not can:
        return
    row.propensity = 1 - case.explore
    if draw[0] < case.explore:
        row.video, row.source, row.score = can[int(draw[1] * len(can))], "explored", None
        row.propensity = case.explore / len(can)
        left.remove(row.video)
