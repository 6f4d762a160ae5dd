"""What rules read of `--videos`, as arrays by token.

Owns: caps, boosts and likeness as arrays of all videos of the catalog, and the faults of columns. Must not know: users,
scores, how a list is composed. In: the table in the order of the catalog's tokens. Out: arrays of V = 2 + videos rows,
of which the first two, for padding and unknown, are as null.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrec_batch.core.arrays import F32, F64, FIRST_ITEM, I32
from genrec_batch.core.errors import ConfigError, InputError, nearest
from genrec_batch.core.layout import HASHED
from genrec_batch.events import hashing, vectors
from genrec_batch.model.catalog import Catalog

WHOLE_LENGTH = 4096  # of a vector of whole numbers: float32 adds up products of two such without rounding
LARGEST = 1e30  # of a boost


def codes(videos: pl.DataFrame, names: Iterable[str], flag: str) -> I32:
    """Return columns as codes from 0, equal where values are equal, -1 for null, [V, D].

    Raises:
        ConfigError: the table has no such column.
        InputError: a column holds lists.
    """
    columns = [column_of(videos, name, flag) for name in names]
    for column in columns:
        if column.dtype.is_nested():
            raise InputError(
                f"--videos: column {column.name!r} of {flag} is {column.dtype}, expected one value a video"
            )
    coded = [(column.rank("dense").cast(pl.Int32) - 1).fill_null(-1).to_numpy() for column in columns]
    return _by_token(np.stack(coded, axis=1), -1) if coded else np.zeros((FIRST_ITEM + len(videos), 0), np.int32)


def boosts(videos: pl.DataFrame, weights: dict[str, float], catalog: Catalog) -> F64:
    """Return what is added to the score of each video, [V]: the sum of weight times value, null as 0.

    Raises:
        ConfigError: the table has no such column.
        InputError: a column is neither numeric nor Boolean, or holds NaN, infinity or a number beyond any use.
    """
    total: F64 = np.zeros(len(videos))
    for name, weight in weights.items():
        column = column_of(videos, name, "--boost")
        if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
            raise InputError(
                f"--boost {name}: the column of --videos is {column.dtype}, expected a number or a Boolean; "
                "make it one, as in CASE WHEN ... THEN 1 ELSE 0 END"
            )
        added = weight * column.cast(pl.Float64).fill_null(0.0).to_numpy()
        odd = np.flatnonzero(~(np.abs(added) <= LARGEST))
        if len(odd):
            video, value = catalog.items["video_id"][int(odd[0])], column[int(odd[0])]
            raise InputError(
                f"--boost {name}: {len(odd):,} values of the column of --videos are NaN, infinite or too large, such "
                f"as {value} of video {video!r}; write null where there is no value"
            )
        total += added
    return _by_token(total, 0.0)


def likeness(videos: pl.DataFrame, by: tuple[str, ...]) -> tuple[F32, F64, I32]:
    """Return what `--diversify` compares: vectors of whole numbers [V, E], one over their lengths [V], codes [V, G].

    Either E or G is 0. Vectors are those of the column `embedding` (200 numbers of it, where it has more), else all
    columns hashed as the features' are; a video without one is like no other.

    Raises:
        ConfigError: there is nothing to compare, or no such column.
        InputError: a column of codes holds lists.
    """
    rows = FIRST_ITEM + len(videos)
    if by:
        return np.zeros((rows, 0), np.float32), np.zeros(rows), codes(videos, by, "--diversify-by")
    if "embedding" in videos.columns:
        floats_RE = vectors.matrix(videos["embedding"], None)[0]
        floats_RE = vectors.projected(floats_RE) if floats_RE.shape[1] > HASHED else floats_RE
    else:
        floats_RE = hashing.hash_columns(videos)
    if not floats_RE.any():
        raise ConfigError(
            "--diversify: --videos has neither a column `embedding` with a value nor columns to hash, so no two videos "
            "are alike; add one, or name columns with --diversify-by"
        )
    whole_VE = _by_token(_whole(floats_RE), 0)
    squares_V = np.einsum("ve,ve->v", whole_VE, whole_VE, dtype=np.float64)
    one_over_V = np.divide(1.0, np.sqrt(squares_V), out=np.zeros(rows), where=squares_V > 0)
    return whole_VE, one_over_V, np.zeros((rows, 0), np.int32)


def column_of(videos: pl.DataFrame, name: str, flag: str) -> pl.Series:
    """Return a column of `--videos` that a flag names.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in videos.columns:
        raise ConfigError(
            f"{flag} {name}: --videos has no such column.{nearest(name, videos.columns)} Its columns: "
            f"{', '.join(videos.columns[:40])}"
        )
    return videos[name]


def _whole(floats_RE: F32) -> F32:
    """Return vectors rounded to whole numbers, in their own directions, of a length of at most WHOLE_LENGTH."""
    long_R = np.sqrt(np.einsum("re,re->r", floats_RE, floats_RE, dtype=np.float64))
    room = WHOLE_LENGTH - np.sqrt(floats_RE.shape[1])  # rounding may add half a number to each
    scale_R = np.divide(room, long_R, out=np.zeros(len(long_R)), where=long_R > 0)
    whole_RE: F32 = np.rint(floats_RE * scale_R[:, None]).astype(np.float32)
    return whole_RE


def _by_token(values_R: npt.NDArray[Any], nothing: float) -> npt.NDArray[Any]:
    """Return values with a row of nothing for padding and one for unknown before them, [V, ...]."""
    shape = (FIRST_ITEM, *values_R.shape[1:])
    return np.ascontiguousarray(np.concatenate([np.full(shape, nothing, values_R.dtype), values_R]))
