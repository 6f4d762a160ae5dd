"""Sessions: what an engine has read of a user, kept from one request to the next, which then reads new events only.

Owns: when a session goes on and what a history is then, the bound in bytes, who is dropped, and the counts. Must not
know: Triton, how an engine reads or what is in a cache. In: a request with its history. Out: the history to answer
with, and the session that it goes on with, if there is one.

Position 0 of a cache holds the features, and every event attends to it. So a session keeps the features of its
beginning, and begins anew after `refresh` events. Positions are absolute, so its oldest event must stay its oldest:
it begins with so few events that there is room for those to come.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec_batch.core.arrays import Batch, Ranked
from genrec_batch.engines.decode import Decoding, recommend
from genrec_batch.engines.protocol import Prefix, State, SteppedEngine
from genrec_batch.serving.asks import Ask, Id
from genrec_batch.serving.histories import History

HIT = "hit"
ANONYMOUS = "anonymous"  # the request has no user_id
NEW = "new"  # nothing is kept of the user, or no longer
PROFILE = "profile"  # the request has another profile, vector or further features
WINDOW = "window"  # its oldest event is no longer among the newest; so every full history ends
CHANGED = "changed"  # an event was changed or taken away, or came late
REFRESH = "refresh"  # so many events are new that the features are computed again
OUTCOMES = (HIT, ANONYMOUS, NEW, PROFILE, WINDOW, CHANGED, REFRESH)
OWN_BYTES = 1024  # of a session beside its prefix

Key = tuple[str, Id]  # arm and user


@dataclass(frozen=True, kw_only=True)
class Session:
    """What was read of a user, and what of the next request must be the same."""

    prefix: Prefix
    oldest: tuple[int, Id]  # time and video of its first event
    events: bytes  # digest of all its events
    given: bytes  # digest of the request's profile, vector and further features
    fresh: int  # events when the features were computed

    @property
    def nbytes(self) -> int:
        """What it takes of the bound."""
        return self.prefix.nbytes + OWN_BYTES


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a request is answered with."""

    key: Key | None
    history: History
    given: bytes = b""
    session: Session | None = None  # None: the features are computed and the whole history is read

    @property
    def prefix(self) -> Prefix | None:
        """What was read for an earlier request."""
        return None if self.session is None else self.session.prefix

    @property
    def left(self) -> int:
        """How many events are to be read one after the other, behind what was read."""
        return 0 if self.prefix is None else len(self.history) - self.prefix.length

    @property
    def kept(self) -> bool:
        """Whether what is read is kept: there is a user, an event, and something new."""
        return self.key is not None and len(self.history) > 0 and (self.prefix is None or self.left > 0)


class Sessions:
    """The sessions of all users of a process, bounded in bytes; whoever has asked for the longest time is dropped."""

    def __init__(self, *, most_bytes: int, refresh: int, max_events: int) -> None:
        self._most_bytes, self._refresh = most_bytes, refresh
        self._begin_events = max_events - refresh + 1
        self._sessions: OrderedDict[Key, Session] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._evicted = 0
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, arm: str, ask: Ask, history: History) -> Found:
        """Return what a request is answered with; `history` has the newest events, as many as a history may have."""
        if ask.user_id is None:
            with self._lock:
                self._counts[ANONYMOUS] += 1
            return Found(key=None, history=history)
        key, given = (arm, ask.user_id), _digest_of(ask)
        with self._lock:
            session = self._sessions.get(key)
            outcome, going_on = (NEW, history) if session is None else self._outcome(session, given, history)
            self._counts[outcome] += 1
            if outcome == HIT:
                self._sessions.move_to_end(key)
                return Found(key=key, history=going_on, given=given, session=session)
        return Found(key=key, history=history.newest(self._begin_events), given=given)

    def _outcome(self, session: Session, given: bytes, history: History) -> tuple[str, History]:
        if session.given != given:
            return PROFILE, history
        start = _place(history, session.oldest)
        if start is None:
            return WINDOW, history
        history = history.newest(len(history) - start)
        if len(history) < session.prefix.length or digest(history, session.prefix.length) != session.events:
            return CHANGED, history
        return (HIT if len(history) - session.fresh < self._refresh else REFRESH), history

    def keep(self, found: Found, prefix: Prefix) -> None:
        """Keep what was read for a request, in the place of what was kept of the user."""
        assert found.key is not None
        kept_E = found.history.kept_E
        columns = found.history.columns
        session = Session(
            prefix=prefix,
            oldest=(int(columns.time_us_E[kept_E[0]]), columns.video[kept_E[0]]),
            events=digest(found.history, len(kept_E)),
            given=found.given,
            fresh=len(kept_E) if found.session is None else found.session.fresh,
        )
        with self._lock:
            if (before := self._sessions.pop(found.key, None)) is not None:
                self.nbytes -= before.nbytes
            self._sessions[found.key] = session
            self.nbytes += session.nbytes
            while self.nbytes > self._most_bytes:
                self.nbytes -= self._sessions.popitem(last=False)[1].nbytes
                self._evicted += 1

    def clear(self) -> None:
        """Forget all users and counts."""
        with self._lock:
            self._sessions.clear()
            self._counts.clear()
            self._evicted = self.nbytes = 0

    def counted(self) -> tuple[Counter[str], int]:
        """Return how many requests had each outcome since the last call, and how many sessions were dropped."""
        with self._lock:
            found = self._counts, self._evicted
            self._counts, self._evicted = Counter(), 0
        return found


def recommend_resumed(
    engine: SteppedEngine, found: Sequence[Found], batch: Batch, decoding: Decoding
) -> tuple[Ranked, dict[int, Prefix]]:
    """Return what `decode.recommend` returns for users who go on, and by row what is to be kept of them."""
    kept: dict[int, Prefix] = {}

    def prefill(batch: Batch, *, steps: int, choices: int = 1) -> State:
        state = engine.resume(batch, [each.prefix for each in found], steps=steps, choices=choices)
        rows = [row for row, each in enumerate(found) if each.kept]
        kept.update(zip(rows, engine.kept(state, rows), strict=True))
        return state

    return recommend(engine, batch, decoding, prefill), kept


def _place(history: History, oldest: tuple[int, Id]) -> int | None:
    """Return the place of an event in a history, None where it is not there."""
    time_us, video = oldest
    times_E = history.columns.time_us_E[history.kept_E]
    for place in range(int(np.searchsorted(times_E, time_us)), len(times_E)):
        if times_E[place] != time_us:
            return None
        if history.columns.video[history.kept_E[place]] == video:
            return place
    return None


def digest(history: History, count: int) -> bytes:
    """Return a digest of all that a request says of the oldest `count` events of a history."""
    columns, kept_E = history.columns, history.kept_E[:count]
    found = hashlib.blake2b(repr([columns.video[place] for place in kept_E]).encode(), digest_size=16)
    found.update(columns.time_us_E[kept_E].tobytes())
    if columns.session_E is not None:  # numbers that tell only which events have the same session
        number_of: dict[int, int] = {}
        numbers = [number_of.setdefault(each, len(number_of)) for each in columns.session_E[kept_E].tolist()]
        found.update(repr(numbers).encode())
    for kind in (columns.numbers, columns.flags, columns.categories):
        for name in sorted(kind):
            found.update(name.encode())
            found.update(kind[name][kept_E].tobytes())
    return found.digest()


def _digest_of(ask: Ask) -> bytes:
    given = (ask.profile, ask.profile_vector, ask.extra_features)
    if given == (None, None, None):
        return b""
    return hashlib.blake2b(json.dumps(given, sort_keys=True).encode(), digest_size=16).digest()
