"""The feature slots that need the videos table: what was watched, who made it, of which category.

Owns: the formulas of slots 800-999 and 1012-1015. Must not know: files, Polars, other users.
"""

from __future__ import annotations

import numpy as np

from genrec_batch.core import layout
from genrec_batch.core.arrays import F32, I32, SideTable
from genrec_batch.features.from_log import PERCENTAGE_LIMIT, Chunk
from genrec_batch.features.segments import Segments, distinct, groups, weighted_sums


def fill(dense_GF: F32, chunk: Chunk, videos: SideTable) -> None:
    """Fill the slots of G users whose videos the table may have, float32 [G, 1024]."""
    row_E = chunk.histories.video_row_E
    kept_G = chunk.segments.lengths_G
    first = layout.SEQUENCE.start + layout.SEQUENCE_NAMES.index("distinct_creators_share")
    creators_G, _ = distinct(_codes(row_E, videos.creator_R), chunk.segments)
    categories_G, entropy_G, commonest_G = groups(_codes(row_E, videos.category_R), chunk.segments)
    shares_G4 = np.stack([creators_G / kept_G, categories_G / kept_G, entropy_G, commonest_G], axis=1)
    dense_GF[:, first : first + 4] = shares_G4
    _fill_mean(dense_GF, chunk, videos)


def _codes(row_E: I32, codes_R: I32) -> I32:
    """Return each event's code, -1 where the table lacks its video or the code is null, [E]."""
    return np.append(codes_R, np.int32(-1)).take(row_E, mode="wrap")  # row -1 is the last one


def _fill_mean(dense_GF: F32, chunk: Chunk, videos: SideTable) -> None:
    """Fill the mean of the watched videos' floats, weighted by watch percentage.

    A null percentage weighs 1; where all of a user's weights are 0, every video weighs the same.
    """
    known_E = chunk.histories.video_row_E >= 0
    known_E[known_E] = videos.has_hashed_R[chunk.histories.video_row_E[known_E]]
    known_G = chunk.segments.counts(known_E)
    some_G = known_G > 0
    if not some_G.any():
        return
    segments = Segments(lengths_G=known_G[some_G])
    percentage = chunk.histories.numbers.get("watch_percentage")
    if percentage is None:
        weights_E = np.ones(int(segments.ends_G[-1]))
    else:
        weights_E = np.clip(percentage[known_E], 0, PERCENTAGE_LIMIT)
        weights_E[np.isnan(weights_E)] = 1
    total_G = np.bincount(segments.owners_E, weights_E, len(segments))  # in order
    weightless_G = total_G == 0
    if weightless_G.any():
        weights_E[np.repeat(weightless_G, segments.lengths_G)] = 1
        total_G = np.where(weightless_G, segments.lengths_G, total_G)
    rows_E = chunk.histories.video_row_E[known_E].astype(np.int64)
    summed_GD = weighted_sums(videos.hashed_R200, rows_E, weights_E.astype(np.float32), segments)
    dense_GF[slice(None) if some_G.all() else some_G, layout.VIDEOS] = summed_GD / total_G[:, None].astype(np.float32)
