"""The profiles that requests bring: rows of `--users`, as the features and the model read them.

Owns: which fields of a request are a row of `--users`, and their widths. Must not know: events, videos, lists. In:
requests of some users. Out: a `SideTable` of those that have a profile, and the row of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genrec_batch.core.arrays import F32, I32, SideTable
from genrec_batch.core.errors import InputError
from genrec_batch.core.layout import HASHED, VECTOR_LIMIT
from genrec_batch.events import hashing, vectors
from genrec_batch.events.side_tables import PROFILE_VECTOR
from genrec_batch.serving.asks import Ask


def check(ask: Ask, *, extra: int) -> None:
    """Check the profile of a request; `extra` is the number of further features that the model reads.

    Raises:
        InputError: a list has another width, or holds what is no finite number.
    """
    _check_width("profile_vector", ask.profile_vector, PROFILE_VECTOR)
    _check_width("extra_features", ask.extra_features, extra)
    if isinstance(ask.profile, list):
        _finite("profile", ask.profile)
    elif ask.profile is not None:
        hashing.check_values(ask.profile, "profile")


def table(asks: Sequence[Ask], *, extra: int) -> tuple[SideTable | None, I32]:
    """Return the profiles of some users, and the row of each user among them, -1 for none, [N].

    A user without one has zeros, as one who is not in `--users`.
    """
    given = [ask.profile is not None or ask.profile_vector is not None or bool(ask.extra_features) for ask in asks]
    if not any(given):
        return None, np.full(len(asks), -1, np.int32)
    mine = [ask for ask, there in zip(asks, given, strict=True) if there]
    has_dense_R = np.array([ask.profile_vector is not None for ask in mine])
    nothing: I32 = np.zeros(0, np.int32)
    found = SideTable(
        hashed_R200=np.stack([_hashed(ask.profile) for ask in mine]),
        has_hashed_R=np.array([ask.profile is not None for ask in mine]),
        dense_RD=np.stack([_row(ask.profile_vector, PROFILE_VECTOR) for ask in mine]) if has_dense_R.any() else None,
        has_dense_R=has_dense_R if has_dense_R.any() else None,
        creator_R=nothing,
        category_R=nothing,
        extra_RX=np.stack([_row(ask.extra_features, extra) for ask in mine]) if extra else None,
    )
    row_N = np.where(given, np.cumsum(given) - 1, -1).astype(np.int32)
    return found, row_N


def _hashed(profile: list[float] | Mapping[str, object] | None) -> F32:
    if profile is None:
        return np.zeros(HASHED, np.float32)
    if isinstance(profile, list):
        hashed_200: F32 = vectors.projected(_row(profile, len(profile))[None])[0]
        return hashed_200
    return hashing.hash_values(profile)


def _row(values: list[float] | None, width: int) -> F32:
    if values is None:
        return np.zeros(width, np.float32)
    row: F32 = np.clip(np.array(values, np.float64), -VECTOR_LIMIT, VECTOR_LIMIT).astype(np.float32)
    return row


def _check_width(name: str, values: list[float] | None, width: int) -> None:
    if values is None:
        return
    if len(values) != width:
        raise InputError(f"{name}: {len(values)} numbers, and the model reads {width}")
    _finite(name, values)


def _finite(name: str, values: list[float]) -> None:
    try:
        fine = bool(np.isfinite(np.array(values, np.float64)).all())
    except OverflowError:
        fine = False
    if not fine:
        raise InputError(f"{name}: holds NaN, infinity or a number beyond 64 bits")
