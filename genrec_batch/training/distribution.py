"""What a model read and scored at the end of its training: the distribution that later runs are compared with.

Owns: which users and moments these are. Must not know: which quantities are watched (`features/sampled.py`), files. In:
all events of the training and an engine with the weights that are saved. Out: `core.drift.Distribution`.

Users are read as a run of `score` on the training's log would read them, each with the newest history, and are scored
with those very weights in each mode of decoding. The rows of the validation would not do: its users are those with
events after the cut, so not those of a run, and its weights are of before the last phase.
"""

from __future__ import annotations

import numpy as np

from genrec_batch.core.arrays import F32, I64
from genrec_batch.core.drift import Bins, Distribution
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.feed import batch_rows
from genrec_batch.engines.protocol import Engine
from genrec_batch.events import splits
from genrec_batch.events.splits import Cuts
from genrec_batch.features import sampled
from genrec_batch.features.batches import ModelInputs
from genrec_batch.features.sampled import RANKS, SCORES
from genrec_batch.training.inputs import Events
from genrec_batch.training.validate import ROWS_AT_ONCE, SEEN_LIMIT

MOST_USERS = 2048  # that are sampled, about: scoring them in both modes takes a second on a GPU


def recorded(events: Events, engine: Engine, features: int, items: int) -> Distribution:
    """Return the distribution of the users of a training.

    Args:
        events: all of the training, nothing held out.
        engine: has the weights that are saved.
        features: that the model reads.
        items: videos of the catalog.
    """
    inputs = inputs_at_the_end(events)
    everybody = np.arange(len(inputs.histories))
    return Distribution(
        users=len(everybody),
        inputs=sampled.distributions(sampled.names_of(features), sampled.quantities(inputs, everybody)),
        scores={mode: _scores(inputs, engine, mode, items) for mode in ("slate", "candidates")},
    )


def inputs_at_the_end(events: Events) -> ModelInputs:
    """Return what the model reads of sampled users with events, with all these in their histories."""
    whole = events.whole
    user_N: I64 = np.flatnonzero(whole.lengths_N)
    user_N = user_N[sampled.rows_of(0, len(user_N), len(user_N), MOST_USERS)]
    end_N = whole.offsets_N1[user_N + 1]
    cuts = Cuts(user_N=user_N, place_N=end_N, stop_N=end_N, as_of_us_N=whole.as_of_us_N[user_N])
    vectors = events.vectors(cuts)
    return ModelInputs(
        histories=splits.histories_at(whole, cuts, max_events=events.window.history, seen_limit=SEEN_LIMIT),
        dense_NF=vectors.dense_KF,
        profile=vectors.profile,
        video=vectors.video,
        candidates=None,
        include_seen=events.include_seen,
    )


def _scores(inputs: ModelInputs, engine: Engine, mode: str, items: int) -> dict[str, Bins]:
    """Return the distribution of log_prob at each place of the lists of one mode."""
    log_prob_NR: F32 = np.full((len(inputs.histories), RANKS), np.nan, np.float32)
    spans = batch_rows(inputs.histories.lengths_N, ROWS_AT_ONCE)
    decoding = Decoding(mode=mode, top_k=RANKS, num_candidates=min(RANKS, items))
    for rows_B, ranked in zip(spans, recommend_all(engine, map(inputs.batch, spans), decoding), strict=True):
        width = min(RANKS, ranked.tokens_BK.shape[1])
        found_BK = np.where(ranked.tokens_BK > 0, ranked.log_prob_BK, np.float32(np.nan))
        log_prob_NR[rows_B, :width] = found_BK[:, :width]
    return dict(sampled.distributions(SCORES, sampled.rounded(log_prob_NR)))
