"""Features: from histories to the 1024 numbers that the model reads at position 0.

Owns: which users are computed together, and the inputs beside the features: profile and video vectors. The formulas
stand in `events.py` (from the log) and `videos.py` (from the videos table), their arithmetic in `segments.py`.
Must not know: files, Polars, the model. No loop over users or events, and no result depends on a user's neighbours;
`tests/reference.py` computes the same row by row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from genrec_batch import layout
from genrec_batch.arrays import F32, U8, Histories, SideTable
from genrec_batch.features import events
from genrec_batch.features import videos as of_videos
from genrec_batch.features.events import Part
from genrec_batch.features.segments import Segments, weighted_sums

PART_EVENTS, PART_USERS = 1 << 14, 1 << 10  # what is computed at once: its arrays stay in a core's own cache


def compute(
    histories: Histories, users: SideTable | None, videos: SideTable | None, *, max_events: int, out: F32 | None = None
) -> F32:
    """Return the 1024 features of N users, float32 [N, 1024].

    Args:
        histories: kept events of N users, at most `max_events` each; some may have none.
        users: the users table, None where there is none.
        videos: the videos table, None where there is none.
        max_events: events that a history keeps, what slot 1000 is a share of.
        out: C-contiguous float32 [N, 1024] to fill and return, whatever it holds.
    """
    dense_NF = np.empty((len(histories), layout.FEATURES), np.float32) if out is None else out
    assert dense_NF.shape == (len(histories), layout.FEATURES), dense_NF.shape
    assert dense_NF.flags.c_contiguous, "out is a whole array, or whole rows of one"
    for start, stop in _parts(histories):
        _fill(dense_NF[start:stop], histories.slice(start, stop), users, videos, max_events)
    return dense_NF


def _fill(dense_NF: F32, histories: Histories, users: SideTable | None, videos: SideTable | None, kept: int) -> None:
    """Fill all slots of one part's users: most of them where a user has events, three blocks where not."""
    dense_NF.fill(0)
    active_N = histories.lengths_N > 0
    if active_N.all():
        _fill_active(dense_NF, histories, videos, kept)
    elif active_N.any():
        dense_AF = np.zeros((int(active_N.sum()), layout.FEATURES), np.float32)
        _fill_active(dense_AF, histories, videos, kept)
        dense_NF[active_N] = dense_AF
    dense_NF[:, layout.SEQUENCE.start + layout.SEQUENCE_NAMES.index("log1p_all_events")] = np.log1p(
        histories.total_events_N
    )
    dense_NF[~active_N, layout.SEQUENCE.start + layout.SEQUENCE_NAMES.index("cold_start")] = 1
    if users is not None:
        there_N = histories.user_row_N >= 0
        rows_N = histories.user_row_N[there_N]
        dense_NF[slice(None) if there_N.all() else there_N, layout.PROFILE] = users.hashed_R200[rows_N]


def _fill_active(dense_GF: F32, histories: Histories, videos: SideTable | None, max_events: int) -> None:
    part = Part(histories=histories, segments=Segments(lengths_G=histories.lengths_N[histories.lengths_N > 0]))
    events.fill(dense_GF, part, max_events=max_events)
    if videos is not None:
        of_videos.fill(dense_GF, part, videos)


def _parts(histories: Histories) -> Iterator[tuple[int, int]]:
    """Cut N users into runs of neighbours that are computed together."""
    start, offsets_N1 = 0, histories.offsets_N1
    while start < len(histories):
        fit = int(np.searchsorted(offsets_N1, offsets_N1[start] + PART_EVENTS, side="right")) - 1
        stop = min(max(fit, start + 1), start + PART_USERS, len(histories))
        yield start, stop
        start = stop


def profile_vectors(histories: Histories, users: SideTable) -> tuple[F32, U8] | None:
    """Return the users' own vectors [N, 256] and who has one [N]; None where the table has no such column.

    A user without one has zeros.
    """
    if users.dense_RD is None or users.has_dense_R is None:
        return None
    vectors_NP = np.zeros((len(histories), users.dense_RD.shape[1]), np.float32)
    has_N = histories.user_row_N >= 0
    has_N[has_N] = users.has_dense_R[histories.user_row_N[has_N]]
    vectors_NP[has_N] = users.dense_RD[histories.user_row_N[has_N]]
    return vectors_NP, has_N


def video_vectors(histories: Histories, videos: SideTable) -> tuple[F32, U8] | None:
    """Return the plain mean of the kept videos' own vectors [N, 512] and who has any [N]; None without such a column.

    The mean is over kept events whose video has a vector; a user without any has zeros.
    """
    if videos.dense_RD is None or videos.has_dense_R is None:
        return None
    has_R, row_E = videos.has_dense_R, histories.video_row_E
    known_E = row_E >= 0
    known_E[known_E] = has_R[row_E[known_E]]
    before_E1 = np.concatenate([[0], np.cumsum(known_E)])
    count_N = np.diff(before_E1[histories.offsets_N1])
    pooled_NV = np.zeros((len(histories), videos.dense_RD.shape[1]), np.float32)
    has_N = count_N > 0
    if has_N.any():
        segments = Segments(lengths_G=count_N[has_N])
        rows_E = row_E[known_E].astype(np.int64)
        summed = weighted_sums(videos.dense_RD, rows_E, np.ones(len(rows_E), np.float32), segments)
        pooled_NV[has_N] = summed / segments.lengths_G[:, None].astype(np.float32)
    return pooled_NV, has_N


def feature_scores(dense_NF: F32) -> F32:
    """Return like rate, mean watch percentage and distinct share of the kept histories, float32 [N, 3]."""
    return dense_NF[:, [layout.LIKE_RATE_ALL, layout.MEAN_PERCENTAGE_ALL, layout.DISTINCT_SHARE]]
