"""What the four heads predict of an event, from the contract's columns.

Owns: the meaning of each head's label. Must not know: files, the model. In: histories with label columns. Out: a label
from 0 to 1 for each event and head, NaN where it is not known.
"""

from __future__ import annotations

import numpy as np

from genrec_batch.core.arrays import F32, F64, HEADS, Histories
from genrec_batch.core.errors import InputError
from genrec_batch.core.layout import FLAG_COLUMNS

LONG_VIEW_S = 18.0  # watched, from which a view is a recommendation that worked


def head_labels(events: Histories) -> F32:
    """Return the label of each event for each head, [E, H] in the order of `arrays.HEADS`, NaN where it is not known.

    A column of the log that is named for the head decides, such as `engagement_label`. Without one: recommendation is
    complete or watched for 18 s, engagement any of like, favorite, share, comment and follow, retention the watch
    percentage up to 1; monetization has no label.
    """
    derived = {"recommendation": _worked, "engagement": _engaged, "retention": _watched}
    labels_EH = np.full((len(events.time_us_E), len(HEADS)), np.nan, np.float32)
    for place, head in enumerate(HEADS):
        own = events.numbers.get(f"{head}_label")
        if own is not None:
            labels_EH[:, place] = own
        elif head in derived:
            labels_EH[:, place] = derived[head](events)
    return labels_EH


def check_labels(labels_EH: F32, events: Histories, where: str, positive: str | None) -> list[str]:
    """Return the heads that can be trained, in order: those with two different labels.

    Raises:
        InputError: a label column of the log has one value only.
    """
    trained = []
    for place, head in enumerate(HEADS):
        known_E = labels_EH[~np.isnan(labels_EH[:, place]), place]
        if len(known_E) and known_E.min() < known_E.max():
            trained.append(head)
        elif f"{head}_label" in events.numbers and len(known_E):
            named = positive if head == "recommendation" and positive is not None else f"{head}_label"
            raise InputError(
                f"{where}: column {named!r} is {known_E[0]:g} in every event, so the {head} head has nothing to "
                "learn; mend the column, or leave it out"
            )
    return trained


def _worked(events: Histories) -> F64:
    watched_s_E = _number(events, "watch_duration")
    complete_E = _flag(events, "watch_complete")
    return np.fmax(complete_E, np.where(np.isnan(watched_s_E), np.nan, watched_s_E >= LONG_VIEW_S))


def _engaged(events: Histories) -> F64:
    any_E = np.full(len(events.time_us_E), np.nan)
    for name in FLAG_COLUMNS:
        any_E = np.fmax(any_E, _flag(events, name))
    return any_E


def _watched(events: Histories) -> F64:
    return np.clip(_number(events, "watch_percentage"), 0, 1)


def _number(events: Histories, name: str) -> F64:
    values_E = events.numbers.get(name)
    return np.full(len(events.time_us_E), np.nan) if values_E is None else values_E


def _flag(events: Histories, name: str) -> F64:
    codes_E = events.flags.get(name)
    if codes_E is None:
        return np.full(len(events.time_us_E), np.nan)
    return np.where(codes_E < 0, np.nan, codes_E.astype(np.float64))
