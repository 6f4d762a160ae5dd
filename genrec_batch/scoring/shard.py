"""A shard on its way through the engine: batches in, and what the engine recommended to its users.

Owns: what is kept of a shard's users while the engine computes. Must not know: engines, files, how rows look. In: the
users of a shard with all that the model reads of them. Out: their batches, and the answers in any order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from genrec_batch.core.arrays import FIRST_ITEM, I32, I64, Batch, Ranked
from genrec_batch.features.batches import ModelInputs
from genrec_batch.rules.promotions import Promoted
from genrec_batch.scoring.filling import Filled
from genrec_batch.scoring.fingerprints import Prints
from genrec_batch.scoring.rows import UserColumns
from genrec_batch.scoring.sampled import SAMPLE, SampledUsers
from genrec_batch.scoring.shortfalls import Available


@dataclass(kw_only=True)
class ShardRun:
    """N users of one shard, S of whom are scored: those at `rows_S`, all of them where it is None."""

    number: int
    ids: pl.Series  # of all N users
    rows_S: I64 | None
    prints: Prints  # of the rows that all N users will have
    batches: deque[tuple[I64, Batch]]  # places among the S users, with what the engine reads of these
    users: UserColumns  # of all N users
    wanted_N: I64  # items that each user could get at most
    available: Available  # to all N users
    counts: dict[str, int]  # of all N users
    filled: Filled | None  # what filling the lists of the S users needs
    promoted: Promoted | None  # of all N users
    left: int  # users still on their way through the engine
    sampled: SampledUsers | None  # whose drift is watched
    answers: list[tuple[I64, Ranked]] = field(default_factory=list)  # with the places that they are for

    @staticmethod
    def of(
        number: int,
        ids: pl.Series,
        inputs: ModelInputs,
        *,
        rows_S: I64 | None,
        prints: Prints,
        kept_counts: Mapping[str, int],
        batch_rows: Callable[[I64], list[I64]],
        top_k: int,
        catalog_videos: int,
        places_N: I64 | None = None,
        sampled: SampledUsers | None = None,
        promoted: Promoted | None = None,
    ) -> ShardRun:
        """Cut the users to score into batches with `batch_rows`, which take the inputs over: see `ModelInputs.batches`.

        `places_N` are the users' places in the run, where lists are filled.
        """
        mine = inputs if rows_S is None else inputs.take(rows_S)
        run = ShardRun(
            number=number,
            ids=ids,
            rows_S=rows_S,
            prints=prints,
            batches=deque(),
            users=UserColumns.of(inputs),
            wanted_N=inputs.wanted_N(top_k),
            available=Available.of(inputs, top_k, catalog_videos),
            counts={
                "cold_start_users": int(inputs.histories.cold_start_N().sum()),
                "unknown_events": int((inputs.histories.tokens_E < FIRST_ITEM).sum()),
                **kept_counts,
                **_left_out(inputs),
            },
            filled=None if places_N is None else Filled.of(mine, places_N if rows_S is None else places_N[rows_S]),
            promoted=promoted,
            left=len(mine.histories),
            sampled=sampled,
        )
        run.batches.extend(mine.batches(batch_rows(mine.histories.lengths_N)))
        return run

    def __len__(self) -> int:
        return len(self.ids) if self.rows_S is None else len(self.rows_S)

    @property
    def scored_ids(self) -> pl.Series:
        """Ids of the S users."""
        return self.ids if self.rows_S is None else self.ids.gather(self.rows_S)

    @property
    def promoted_SK(self) -> I32 | None:
        """Videos that take a place of the lists of the S users, 0 for none; None where nothing is promoted."""
        if self.promoted is None:
            return None
        return self.promoted.tokens_NK if self.rows_S is None else self.promoted.tokens_NK[self.rows_S]

    @property
    def kept_rows(self) -> I64:
        """Places of the users who are not scored among all N."""
        rows_N = np.arange(len(self.ids))
        return rows_N[:0] if self.rows_S is None else np.setdiff1d(rows_N, self.rows_S)

    def sample(self) -> dict[str, str]:
        """Return the entry of metadata that keeps the sampled users beside the shard's part."""
        return {} if self.sampled is None else {SAMPLE: self.sampled.text()}

    def put(self, rows_B: I64, ranked: Ranked) -> None:
        """Keep what the engine recommends to some of the S users."""
        self.answers.append((rows_B, ranked))
        self.left -= len(rows_B)


def _left_out(inputs: ModelInputs) -> dict[str, int]:
    """Return how many given candidates are left out, and why."""
    if inputs.candidates is None:
        return {}
    excluded = {} if inputs.masks is None else {"excluded_candidates": inputs.excluded_candidates()}
    return {"seen_candidates": inputs.seen_candidates(), **excluded}
