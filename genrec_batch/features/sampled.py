"""What of a user's input is watched for drift: a few named quantities, of users that are spread evenly over a run.

Owns: the quantities, and which users are sampled. Must not know: what is compared (`scoring/drift.py`), files. In: what
the model reads of users. Out: numbers, a row for each sampled user.

A block of the feature layout is watched by the Euclidean norm of its slots, a one-hot block by the category of the
newest event. The weekdays of single events are left out: those of the newest events are others every night. The time
since the newest event stands for itself, in hours, since it moves where a log ends early.

Shapes: C sampled users, Q quantities.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from genrec_batch.core import layout
from genrec_batch.core.arrays import F32, FIRST_ITEM, I64
from genrec_batch.core.drift import Bins, Distribution
from genrec_batch.features.batches import ModelInputs

MOST_USERS = 16_384  # of a run that are sampled; a smaller run's are all
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: its multiples fill the circle evenly (Knuth, vol. 3, 6.4)
NORMS: dict[str, slice | list[int]] = {
    "watch duration": layout.WATCH_DURATION,
    "watch percentage": layout.WATCH_PERCENTAGE,
    "interaction flags": layout.FLAGS,
    "hour of day": layout.HOUR,
    "recommendation position": layout.POSITION,
    "statistics": slice(layout.DURATION_STATISTICS.start, layout.KEPT_EVENTS + 1),
    "user profile": layout.PROFILE,
    "videos": layout.VIDEOS,
    "sequence": [slot for slot in range(layout.SEQUENCE.start, layout.SEQUENCE.stop) if slot != layout.RECENCY],
}
CATEGORIES = {column.replace("_", " "): column for column in layout.ONE_HOTS}
LABELS = {name: layout.CATEGORIES[column] for name, column in CATEGORIES.items()}
EXTRA, AGE = "extra features", "hours since newest event"
LENGTH, KNOWN = "history length", "share of known videos"
RANKS = 10  # places of a list whose log_prob is watched
SHOWN = (LENGTH, KNOWN, AGE, "log_prob 1")  # of a training, in short
SCORES = tuple(f"log_prob {place}" for place in range(1, RANKS + 1))


def rows_of(start: int, count: int, total: int, most: int = MOST_USERS) -> I64:
    """Return which of the `count` users from place `start` of a run on are sampled, in order.

    About `most` of the run's `total` users are, all where it has no more; which ones does not depend on how the run is
    cut into shards. Any pattern in the order of the users, such as every second one, meets the sample evenly.
    """
    rows_N = np.arange(count)
    if total <= most:
        return rows_N
    place_N = (rows_N.astype(np.uint64) + np.uint64(start)) * np.uint64(GOLDEN)
    return rows_N[place_N < np.uint64(int(2**64 * most / total))]


def names_of(features: int) -> tuple[str, ...]:
    """Return the quantities of users whose model reads so many features, in the order of `quantities`."""
    extra = (EXTRA,) if features > layout.FEATURES else ()
    return (*NORMS, *extra, *CATEGORIES, AGE, LENGTH, KNOWN)


def quantities(inputs: ModelInputs, rows_C: I64) -> F32:
    """Return the quantities of C users, [C, Q]; NaN where a user has none."""
    whole = len(rows_C) == len(inputs.dense_NF)
    dense_CF = inputs.dense_NF if whole else inputs.dense_NF[rows_C]
    blocks = [*NORMS.values(), *([slice(layout.FEATURES, None)] if dense_CF.shape[1] > layout.FEATURES else [])]
    columns = [_norms(dense_CF[:, block]) for block in blocks]
    columns += [
        _newest(dense_CF[:, layout.ONE_HOTS[name]], len(layout.CATEGORIES[name])) for name in CATEGORIES.values()
    ]
    histories = inputs.histories
    lengths_C = histories.lengths_N[rows_C].astype(np.float32)
    before_E1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(histories.tokens_E >= FIRST_ITEM)])
    known_C = np.diff(before_E1[histories.offsets_N1])[rows_C]
    share_C = np.divide(known_C, lengths_C, out=np.full(len(rows_C), np.nan, np.float32), where=lengths_C > 0)
    age_C = np.where(lengths_C > 0, np.expm1(dense_CF[:, layout.RECENCY]), np.float32(np.nan))
    return np.stack([*columns, _four_digits(age_C), lengths_C, share_C], axis=1)


def _norms(slots_CF: F32) -> F32:
    """Return the norm of each row to four digits, so that no rounding of sums divides users with the same input."""
    return _four_digits(np.sqrt(np.einsum("cf,cf->c", slots_CF, slots_CF)))


def _four_digits(values_C: F32) -> F32:
    digits_C = 10.0 ** (3 - np.floor(np.log10(np.maximum(np.abs(values_C), 1e-30))))
    rounded_C: F32 = (np.round(values_C * digits_C) / digits_C).astype(np.float32)
    return rounded_C


def _newest(slots_CF: F32, categories: int) -> F32:
    """Return the category of the newest event, NaN where there is none."""
    newest_CK = slots_CF[:, :categories]
    code_C: F32 = np.where(newest_CK.any(axis=1), newest_CK.argmax(axis=1), np.nan).astype(np.float32)
    return code_C


def distributions(names: tuple[str, ...], values_CQ: F32) -> Mapping[str, Bins]:
    """Return how the quantities of C users, at least one, are distributed; each value of a category has a bin."""
    return {
        name: Bins.of(values_CQ[:, place], range(len(LABELS[name])) if name in LABELS else None)
        for place, name in enumerate(names)
    }


def rounded(log_prob: F32) -> F32:
    """Return log_prob to two digits, about what formats of numbers differ by: many users may have one input."""
    result: F32 = np.round(log_prob, 2)
    return result


def in_short(found: Distribution, mode: str) -> list[tuple[str, float | None, float | None]]:
    """Return name, mean and median of the main quantities; `mode` is that of the scores."""
    both = {**found.inputs, **found.scores.get(mode, {})}
    return [(name, both[name].mean, both[name].median) for name in SHOWN if name in both]
