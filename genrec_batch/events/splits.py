"""Splits of a log: which of a user's events are history, and which came after it.

Owns: leave-one-out, splits by time, and histories as they were at a moment of a user's life. Must not know: files,
features, the model. In: the histories of a whole log (`histories.build` with `max_events=ALL_EVENTS`). Out: `Cuts`, and
`arrays.Histories` as `score` builds them of the events before a cut.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

import numpy as np

from genrec_batch.core.arrays import I64, Histories, Ragged, offsets_of
from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.events.histories import seen_tokens

ALL_EVENTS = 1 << 40  # kept of each user: all of them
DAY_US = 86_400_000_000


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """N moments in users' lives: the events before `place_N` are the history, those up to `stop_N` came after it.

    Places are those of the whole log's flat arrays. A user may have several cuts, or none.
    """

    user_N: I64  # row of the user in the whole log's histories
    place_N: I64  # the first event after the cut
    stop_N: I64  # behind the last event after the cut
    as_of_us_N: I64  # the moment that the history is read at

    def __len__(self) -> int:
        return len(self.user_N)

    def take(self, rows_B: I64) -> Cuts:
        """Return some cuts in the given order."""
        return Cuts(
            user_N=self.user_N[rows_B],
            place_N=self.place_N[rows_B],
            stop_N=self.stop_N[rows_B],
            as_of_us_N=self.as_of_us_N[rows_B],
        )


def leave_out(whole: Histories, count: int = 1) -> Cuts:
    """Cut off the newest `count` events of every user who has more; as of the first of them.

    Raises:
        InputError: no user has more events than that.
    """
    user_N = np.flatnonzero(whole.lengths_N > count)
    if not len(user_N):
        raise InputError(
            f"leave-one-out needs a user with at least {count + 1} events, and the log has at most "
            f"{int(whole.lengths_N.max(initial=0))} a user"
        )
    stop_N = whole.offsets_N1[user_N + 1]
    return Cuts(user_N=user_N, place_N=stop_N - count, stop_N=stop_N, as_of_us_N=whole.time_us_E[stop_N - count])


def from_moment(whole: Histories, moment_us: int, flag: str) -> Cuts:
    """Cut every user who has events from a moment on at that moment; users may have no event before it.

    Raises:
        ConfigError: no event is before the moment, or none from it on; `flag` names the option that gave it.
    """
    before_E = whole.time_us_E < moment_us
    if before_E.all() or not before_E.any():
        first, last = (text(int(t)) for t in (whole.time_us_E.min(), whole.time_us_E.max()))
        side = "from it on" if before_E.all() else "before it"
        raise ConfigError(f"{flag}: the log has no event {side}; it runs from {first} to {last}")
    user_E = np.repeat(np.arange(len(whole)), whole.lengths_N)
    place_N = whole.offsets_N1[:-1] + np.bincount(user_E, before_E, len(whole)).astype(np.int64)
    user_N = np.flatnonzero(place_N < whole.offsets_N1[1:])
    return Cuts(
        user_N=user_N,
        place_N=place_N[user_N],
        stop_N=whole.offsets_N1[user_N + 1],
        as_of_us_N=np.full(len(user_N), moment_us - 1),
    )


def moment_of_share(whole: Histories, share: float, flag: str) -> int:
    """Return the moment from which on about the newest `share` of all events are.

    Raises:
        ConfigError: all events have one time.
    """
    time_us_E = np.sort(whole.time_us_E)
    moment_us = int(time_us_E[min(len(time_us_E) - 1, int(len(time_us_E) * (1 - share)))])
    if moment_us == time_us_E[0]:
        later = time_us_E[np.searchsorted(time_us_E, moment_us, "right") :]
        if not len(later):
            raise ConfigError(f"{flag}: all events are at {text(moment_us)}, so none is newer; use --leave-one-out")
        return int(later[0])
    return moment_us


def has_real_times(whole: Histories) -> bool:
    """Return whether a log's times are those of a clock: they fall on at least three days (UTC)."""
    days = np.unique(whole.time_us_E // DAY_US)
    return len(days) >= 3


def before(whole: Histories, cuts: Cuts) -> Histories:
    """Return the whole log without what came after the cuts; users without a cut keep all their events."""
    return _between(whole, np.arange(len(whole)), whole.offsets_N1[:-1], _stops(whole, cuts))


def kept_before(whole: Histories, cuts: Cuts) -> I64:
    """Return the places of the events that `before` keeps."""
    return places(whole.offsets_N1[:-1], _stops(whole, cuts) - whole.offsets_N1[:-1])[0]


def _stops(whole: Histories, cuts: Cuts) -> I64:
    stop_N = whole.offsets_N1[1:].copy()
    stop_N[cuts.user_N] = cuts.place_N
    return stop_N


def histories_at(whole: Histories, cuts: Cuts, *, max_events: int, seen_limit: int) -> Histories:
    """Return the histories as `score` builds them of the events before each cut, [N cuts].

    Kept are the newest `max_events`; what counts as seen is taken of all events before the cut.
    """
    first_N = whole.offsets_N1[cuts.user_N]
    total_N = cuts.place_N - first_N
    kept = _between(whole, cuts.user_N, np.maximum(first_N, cuts.place_N - max_events), cuts.place_N)
    if not seen_limit:
        nothing = Ragged(offsets_N1=np.zeros(len(cuts) + 1, np.int64), values=np.zeros(0, np.int32))
        return replace(kept, total_events_N=total_N, seen=nothing, as_of_us_N=cuts.as_of_us_N)
    places_R, _ = places(first_N, total_N)
    video_R = whole.video_code_E[places_R]
    token_V = np.ones(int(whole.video_code_E.max(initial=-1)) + 1, np.int32)
    token_V[video_R] = whole.tokens_E[places_R]
    seen = seen_tokens(video_R, total_N, token_V, seen_limit)
    return replace(kept, total_events_N=total_N, seen=seen, as_of_us_N=cuts.as_of_us_N)


def _between(whole: Histories, user_N: I64, first_N: I64, stop_N: I64) -> Histories:
    """Return users' histories of the events at some neighbouring places each; all of them count as seen."""
    lengths_N = stop_N - first_N
    picked_E, _ = places(first_N, lengths_N)
    offsets_N1 = offsets_of(lengths_N)
    tokens_E = whole.tokens_E[picked_E]
    return Histories(
        offsets_N1=offsets_N1,
        time_us_E=whole.time_us_E[picked_E],
        tokens_E=tokens_E,
        video_code_E=whole.video_code_E[picked_E],
        video_row_E=whole.video_row_E[picked_E],
        session_E=None if whole.session_E is None else whole.session_E[picked_E],
        numbers={name: values[picked_E] for name, values in whole.numbers.items()},
        flags={name: values[picked_E] for name, values in whole.flags.items()},
        categories={name: values[picked_E] for name, values in whole.categories.items()},
        total_events_N=lengths_N,
        user_row_N=whole.user_row_N[user_N],
        as_of_us_N=whole.as_of_us_N[user_N],
        seen=Ragged(offsets_N1=offsets_N1, values=tokens_E),
    )


def places(first_N: I64, lengths_N: I64) -> tuple[I64, I64]:
    """Return the places first..first + length of each of N runs, one run after the other, and the run of each."""
    run_E: I64 = np.repeat(np.arange(len(first_N)), lengths_N)
    begins_N = np.cumsum(lengths_N) - lengths_N
    places_E: I64 = np.arange(len(run_E)) + (first_N - begins_N)[run_E]
    return places_E, run_E


def text(time_us: int) -> str:
    """Return a moment as ISO 8601 in UTC."""
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(microseconds=time_us)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
