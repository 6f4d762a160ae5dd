"""Baselines: what simple rules recommend to the same rows, from the same history.

Owns: the rules. Must not know: the model, engines, files, metrics. In: the log's history, the rows, and what they have
seen. Out: lists of tokens by the rule's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genrec_batch.core.arrays import F32, FIRST_ITEM, I32, I64, Ragged
from genrec_batch.evaluation import cooccurrence, ranking
from genrec_batch.evaluation.cooccurrence import NEWEST, CoViews

DAY_US = 86_400_000_000
POPULARITY_POWER = 0.7  # of last-day popularity, where it is multiplied with co-occurrence
OWN_EVENTS = 1000  # of a row that `repeat last` looks back


@dataclass(frozen=True, kw_only=True)
class Past:
    """The whole log before the test: tokens of every user, oldest first, and whose rows are ranked.

    `time_us_E` is None where the log's times are none of a clock; `until_us` is the moment that the days count back
    from. `seen` has a row for each ranked one, None where seen videos may be recommended.
    """

    histories: Ragged
    time_us_E: I64 | None
    until_us: int
    rows_M: I64
    seen: Ragged | None
    tokens: int  # of the catalog, with padding and unknown

    @cached_property
    def views_V(self) -> I64:
        """Return the views of each token."""
        return self._views(None)

    @cached_property
    def co_views(self) -> CoViews:
        """Return which videos are watched close to each other."""
        return cooccurrence.count(self.histories, self.views_V)

    def days(self, count: int) -> I64:
        """Return the views of each token in the last days."""
        return self._views(count)

    def _views(self, days: int | None) -> I64:
        token_E = self.histories.values
        if days is not None:
            assert self.time_us_E is not None
            token_E = token_E[self.time_us_E >= self.until_us - days * DAY_US]
        views_V = np.bincount(token_E, minlength=self.tokens)
        views_V[:FIRST_ITEM] = 0
        return views_V


def lists(past: Past, count: int) -> Iterator[tuple[str, I32]]:
    """Yield each rule's name and its lists, [M, count]; where a rule has nothing to say, the more popular is first."""
    rows = len(past.rows_M)
    priority_V = _places(-past.views_V)

    def ranked(fill: ranking.Fill) -> I32:
        return ranking.best(fill, rows, count=count, priority_V=priority_V, banned=past.seen)

    def popular(views_V: I64) -> I32:
        order_V = FIRST_ITEM + np.lexsort((priority_V[FIRST_ITEM:], -views_V[FIRST_ITEM:])).astype(np.int32)
        return ranking.first(order_V, rows, count=count, banned=past.seen)

    yield "popularity", popular(past.views_V)
    if past.time_us_E is not None:
        yield "popularity, 7 days", popular(past.days(7))
        yield "popularity, 1 day", popular(past.days(1))
    if past.seen is None:  # else all that it could recommend is seen
        yield "repeat last", ranked(_own(past))
    newest_MR = cooccurrence.newest(past.histories, past.rows_M, NEWEST)
    moves, pairs = cooccurrence.moves(past.histories, past.tokens), past.co_views
    yield "last-item transitions", ranked(lambda start, stop: moves.scores(newest_MR[start:stop, 0]))
    yield "co-occurrence", ranked(lambda start, stop: pairs.scores(newest_MR[start:stop]))
    if past.time_us_E is not None:
        factor_V = (past.days(1) ** POPULARITY_POWER).astype(np.float32)
        yield (
            "co-occurrence x popularity, 1 day",
            ranked(lambda start, stop: pairs.scores(newest_MR[start:stop]) * factor_V),
        )


def _places(falling_V: I64) -> I64:
    """Return each token's place in rising order, ties by token, [V]."""
    place_V = np.empty(len(falling_V), np.int64)
    place_V[np.argsort(falling_V, kind="stable")] = np.arange(len(falling_V))
    return place_V


def _own(past: Past) -> ranking.Fill:
    """Score a row's own videos, the newest first."""
    newest_MR = cooccurrence.newest(past.histories, past.rows_M, min(OWN_EVENTS, int(past.histories.lengths_N.max())))

    def fill(start: int, stop: int) -> F32:
        oldest_first_CR = newest_MR[start:stop, ::-1]
        score_CV = np.zeros((stop - start, past.tokens), np.float32)
        row_CR = np.broadcast_to(np.arange(stop - start)[:, None], oldest_first_CR.shape)
        place_CR = np.broadcast_to(np.arange(oldest_first_CR.shape[1]) + 1, oldest_first_CR.shape)
        score_CV[row_CR.ravel(), oldest_first_CR.ravel()] = place_CR.ravel()  # of a repeated video the newest stays
        return score_CV

    return fill
