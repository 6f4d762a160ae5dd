"""`--fallback` in a run: the views of its log, and its users' lists filled with popular videos.

Owns: whose lists are filled, and what their rows say. Must not know: which videos are popular (`rules.popular`). In: a
shard's ranking. Out: the ranking with popular videos, marked as such.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from genrec_batch.core.arrays import I32, I64, MODEL, POPULAR, PROMOTED, U8, Ragged
from genrec_batch.core.rule_options import Fallback
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.views import Groups, Views, groups_of_log, views_of
from genrec_batch.features.batches import ModelInputs
from genrec_batch.rules.eligible import Eligible
from genrec_batch.rules.popular import FROM_NOBODY, Popular
from genrec_batch.rules.ranking import Ranking
from genrec_batch.rules.universe import Universe
from genrec_batch.runtime.console import LOG


def views(fallback: Fallback, dataset: Dataset) -> Views:
    """Count the views of the fallback's window, by its groups.

    Raises:
        ConfigError: neither `--users` nor the log has the column of groups.
        InputError, RetryError: the log cannot be read.
    """
    as_of_us, groups = dataset.users.as_of_us, None
    if fallback.by is not None:
        users = dataset.tables.users
        if users is not None and fallback.by in users.columns and fallback.by != "user_id":
            groups = Groups.of(users, fallback.by)
        else:
            groups = groups_of_log(dataset.log, fallback.by, as_of_us)
    if fallback.span_us is None and groups is None:
        return Views(overall=dataset.log_videos, by_group=None, groups=None)
    since_us = None if fallback.span_us is None else as_of_us - fallback.span_us
    found = views_of(dataset.log, since_us, as_of_us, groups)
    if not len(found.overall):
        LOG.warning("--fallback: no view in its window, so no list is filled; take a longer one")
    return found


def know_seen(dataset: Dataset, universe: Universe) -> I32 | None:
    """Let histories say which videos beyond the catalog a user has seen.

    In a run with arms, each of which has other numbers for them, histories hold the log's code of each video, plus 1,
    and what is returned is the number of each code: 0 for a video of the arm's catalog.
    """
    users, codes = dataset.users, dataset.token_V is not None
    if not codes and not len(universe.beyond):
        return None
    numbers_V = universe.tokens(dataset.log_videos["video_id"])
    numbers_V[numbers_V < universe.first_beyond] = 0
    known_V = np.arange(1, len(numbers_V) + 1, dtype=np.int32) if codes else numbers_V
    users.videos = replace(users.videos, beyond_V=known_V)
    return numbers_V if codes else None


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What is known of S users whose lists may be filled."""

    cold_S: U8
    places_S: I64  # in the run
    seen: tuple[Ragged, ...]  # videos that each user does not get again

    @staticmethod
    def of(inputs: ModelInputs, places_S: I64) -> Filled:
        """Return what the inputs of S users say, who have these places in the run."""
        histories = inputs.histories
        seen = tuple(each for each in (histories.seen, histories.beyond) if each is not None)
        return Filled(cold_S=histories.cold_start_N(), places_S=places_S, seen=seen)


@dataclass(frozen=True, kw_only=True)
class Filling:
    """What fills the lists of a run."""

    popular: Popular
    rules: Eligible
    include_seen: bool

    def filled(self, ranking: Ranking, users: Filled) -> tuple[Ranking, U8]:
        """Return the lists of S users with popular videos where they have room, and whose lists have some.

        A cold user's list is promoted videos at their places and popular ones, and what a model that knows nothing of
        the user recommends only where there are too few of these.

        Raises:
            InputError, RetryError: an earlier output cannot be read.
        """
        source_SK = np.full(ranking.tokens_NK.shape, MODEL, np.int8) if ranking.source_NK is None else ranking.source_NK
        ranking = replace(ranking, source_NK=source_SK)
        rows_R = np.flatnonzero(users.cold_S | (ranking.tokens_NK == 0).any(axis=1))
        if not len(rows_R):
            return ranking, np.zeros(len(users.cold_S), np.bool_)
        seen = [] if self.include_seen else [each.take(rows_R) for each in users.seen]
        given_RK, cold_R = ranking.tokens_NK[rows_R], users.cold_S[rows_R]
        held_RK = np.where(cold_R[:, None] & (source_SK[rows_R] != PROMOTED), np.int32(0), given_RK)
        places_R = users.places_S[rows_R]
        tokens_RK, from_RK = self.popular.filled(held_RK, given_RK, places_R, self.rules.masks(places_R), seen)
        filled_S = np.zeros(len(users.cold_S), np.bool_)
        filled_S[rows_R] = ((from_RK == FROM_NOBODY) & (tokens_RK > 0)).any(axis=1)
        return _placed(ranking, rows_R, tokens_RK, from_RK), filled_S


def _placed(ranking: Ranking, rows_R: I64, tokens_RK: I32, from_RK: I64) -> Ranking:
    """Return a ranking whose rows have other videos; what no model computed is NaN, a step 0, a propensity 1."""
    new_RK, values = from_RK == FROM_NOBODY, {}
    for field in fields(ranking):
        before: Any = getattr(ranking, field.name)
        if before is None:
            continue
        moved = np.take_along_axis(
            before[rows_R], from_RK.clip(min=0).reshape(from_RK.shape + (1,) * (before.ndim - 2)), axis=1
        )
        nothing = np.nan if before.dtype.kind == "f" else 0
        moved[new_RK] = 1 if field.name == "propensity_NK" else nothing
        values[field.name] = before.copy()
        values[field.name][rows_R] = moved
    values["tokens_NK"][rows_R] = tokens_RK
    values["source_NK"][rows_R] = np.where(new_RK & (tokens_RK > 0), POPULAR, values["source_NK"][rows_R])
    return replace(ranking, **values)
