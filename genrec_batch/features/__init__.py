"""Features: from histories to the 1024 numbers that the model reads at position 0.

Owns: which users are computed together, by which of two kernels, and the inputs besides the features: profile and video
vectors. The formulas are in `from_log` and `from_videos` and their arithmetic in `segments`: that is the kernel
`numpy`. The kernel `numba` (`numba.fill` and its four passes) computes the same bits; it needs numba, and a run long
enough to be worth its start. Must not know: files, Polars, the model. No result depends on a user's neighbours;
`tests/twins/features.py` computes the same row by row.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Literal

import numpy as np

from genrec_batch.core import layout
from genrec_batch.core.arrays import F32, U8, Histories, SideTable, offsets_of
from genrec_batch.features import from_log, from_videos
from genrec_batch.features.from_log import Chunk
from genrec_batch.features.segments import CACHE_LINE, CHUNK_EVENTS, Segments, chunks, weighted_sums
from genrec_batch.runtime import compiled

Kernel = Literal["numba", "numpy"]
COMPILED_FROM = 100_000  # users of a run from which loading numba and its kernels pays


def kernel_name(users: int) -> Kernel:
    """Return which kernel computes the features of all users of a run, given their number.

    `numba` from `COMPILED_FROM` users on, where numba is installed; else `numpy`. Both compute the same bits.
    """
    return "numpy" if users < COMPILED_FROM else _fastest()


@cache
def _fastest() -> Kernel:
    def load() -> None:
        from genrec_batch.features.numba import fill  # noqa: F401 - does it load?

    return "numba" if compiled.loads(load, "NumPy computes the features") else "numpy"


def compute(
    histories: Histories,
    users: SideTable | None,
    videos: SideTable | None,
    *,
    max_events: int,
    kernel: Kernel = "numpy",
) -> F32:
    """Return the 1024 features of N users, float32 [N, 1024], with the X further ones of the users table behind them.

    A user without further features has zeros there.

    Args:
        histories: kept events of N users, at most `max_events` each; some may have none.
        users: the users table, None where there is none.
        videos: the videos table, None where there is none.
        max_events: events that a history keeps, what slot 1000 is a share of.
        kernel: what computes, by `kernel_name`; `numba` releases the GIL.

    Raises:
        ModuleNotFoundError: `kernel` is `numba`, which is not installed.
    """
    dense_NF = _of_layout(histories, users, videos, max_events, kernel)
    if users is None or users.extra_RX is None:
        return dense_NF
    extra_NX = np.zeros((len(histories), users.extra_RX.shape[1]), np.float32)
    there_N = histories.user_row_N >= 0
    extra_NX[there_N] = users.extra_RX[histories.user_row_N[there_N]]
    return np.concatenate([dense_NF, extra_NX], axis=1)


def _of_layout(
    histories: Histories, users: SideTable | None, videos: SideTable | None, max_events: int, kernel: Kernel
) -> F32:
    dense_NF, histories = _rows(len(histories)), _within_limits(histories)
    if kernel == "numba":
        from genrec_batch.features.numba import fill

        filler = fill.Filler(histories, users, videos, max_events=max_events)
        for start, stop in chunks(histories.offsets_N1, fill.CHUNK_EVENTS):
            filler.fill(start, stop, dense_NF[start:stop])
        return dense_NF
    for start, stop in chunks(histories.offsets_N1, CHUNK_EVENTS):
        rows_NF = dense_NF[start:stop]
        _fill(rows_NF, histories.slice(start, stop), users, videos, max_events)
        rows_NF += np.float32(0)  # no zero has a sign
    return dense_NF


def _within_limits(histories: Histories) -> Histories:
    """Return histories whose numbers are within the layout's limits: the model reads products of them in float32."""
    numbers = dict(histories.numbers)
    for name, (low, high) in layout.LIMITS.items():
        values_E = numbers.get(name)
        if values_E is None or not len(values_E):
            continue
        if np.fmin.reduce(values_E) < low or np.fmax.reduce(values_E) > high:  # seldom, and looking costs less
            numbers[name] = np.clip(values_E, low, high)
    return replace(histories, numbers=numbers)


def _rows(users: int) -> F32:
    """Return an empty array [N, 1024] for features, aligned to cache lines: each row fills whole ones."""
    raw = np.empty(users * layout.FEATURES + CACHE_LINE // 4, np.float32)
    first = -raw.ctypes.data % CACHE_LINE // 4
    return raw[first : first + users * layout.FEATURES].reshape(users, layout.FEATURES)


def _fill(dense_NF: F32, histories: Histories, users: SideTable | None, videos: SideTable | None, kept: int) -> None:
    """Fill all slots of one chunk of users: most of them where a user has events, three blocks where not."""
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
    chunk = Chunk(histories=histories, segments=Segments(lengths_G=histories.lengths_N[histories.lengths_N > 0]))
    from_log.fill(dense_GF, chunk, max_events=max_events)
    if videos is not None:
        from_videos.fill(dense_GF, chunk, videos)


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


def video_vectors(histories: Histories, videos: SideTable, *, kernel: Kernel = "numpy") -> tuple[F32, U8] | None:
    """Return the plain mean of the kept videos' own vectors [N, 512] and who has any [N]; None without such a column.

    The mean is over kept events whose video has a vector; a user without any has zeros.
    """
    if videos.dense_RD is None or videos.has_dense_R is None:
        return None
    if kernel == "numba":
        from genrec_batch.features.numba.fill import video_means

        return video_means(videos.dense_RD, videos.has_dense_R, histories)
    has_R, row_E = videos.has_dense_R, histories.video_row_E
    known_E = row_E >= 0
    known_E[known_E] = has_R[row_E[known_E]]
    before_E1 = offsets_of(known_E.astype(np.int64))
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
