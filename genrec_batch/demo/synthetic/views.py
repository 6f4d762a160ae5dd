"""What happens inside sessions, and in which order the log has it.

Owns: which videos are seen one after the other, for how long and when; which events are faulty; the sweep that arranges
views by time, by user, or shuffled, without sorting all of them. Must not know: files, the columns of a log (`log`).
In: a `World`. Out: views in chunks; the size of a chunk changes nothing but where a chunk ends.
Shapes: Z sessions, E events, U users.

The walk: an event continues in the category before (another video, or the next video of the same creator), drifts to
the category that always follows it, or starts afresh in one of the user's three favourite categories or, now and then,
in any category. A third of the videos come from the creator to whom the user is loyal in that category. So histories
say more about the next video than popularity does, and a model can learn from them.

The order by time: each user has one next session. A sweep over the clock takes the sessions that are due, fills them
with views, sorts the views before the end of its step and keeps the others for the next step. Memory: one step, plus 16
bytes per user. Shuffled: the same sweep over a random place instead of the clock. By user: groups of users, no sweep.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import I32, I64
from genrec_batch.demo.synthetic.world import (
    CATEGORIES,
    CREATOR_VIDEOS,
    EVENT_BITS,
    SESSION_BITS,
    Sessions,
    World,
    bits,
    chance,
    choices,
    halves,
    key,
    quarters,
)

U8 = npt.NDArray[np.uint8]

AFRESH, SAME, DRIFT = chance(0.30), chance(0.65), chance(0.80)  # cumulative; the rest is the creator's next video
NEXT_CATEGORY = 7  # the category that follows c is c + 7, modulo their number
FAVOURITES = (0.55, 0.25, 0.10, 0.10)  # of fresh starts: the three favourites, any by popularity
LOYAL = chance(0.35)
FAULTS = ("duplicates", "null_ids", "null_values", "zero_durations", "clock_ties")  # codes 1..5, 0 is none
NEVER = np.iinfo(np.int64).max
PLACES = 1 << 40  # places that a shuffled log has


@dataclass(frozen=True, kw_only=True)
class Views:
    """Views in any order, one row each."""

    users_E: I64  # from 0
    numbers_E: I32  # of the view within the user's history, from 0
    sessions_E: I32  # of the session within the user, from 0
    places_E: I32  # within the session, from 0
    time_ms_E: I64
    videos_E: I32  # from 0
    watch_ds_E: I32  # tenths of a second
    fondness_E: U8  # 0 (any category) to 3 (the favourite category); the loyal creator's videos have at least 1
    faults_E: U8  # 0 for none, else the index in FAULTS plus 1
    returns_E: npt.NDArray[np.bool_]  # the session's `returns_Z`

    def __len__(self) -> int:
        return len(self.users_E)

    def take(self, rows: I64 | npt.NDArray[np.bool_] | slice) -> Views:
        """Return some rows, in the given order."""
        return Views(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def joined(chunks: list[Views]) -> Views:
    """Return the rows of several chunks, one chunk after the other."""
    if len(chunks) == 1:
        return chunks[0]
    return Views(**{f.name: np.concatenate([getattr(chunk, f.name) for chunk in chunks]) for f in fields(Views)})


def _watch_shares() -> I32:
    """Return the watched share of a video in thousandths, [4 fondnesses, 4096 draws]: skipped, partly, whole, again."""
    shares = np.empty((4, 4096), np.int32)
    for fondness, (skip, finish) in enumerate(((0.55, 0.12), (0.40, 0.22), (0.28, 0.33), (0.16, 0.46))):
        u = (np.arange(4096) + 0.5) / 4096
        left = 1 - finish
        again = 1 - 0.15 * finish
        shares[fondness] = np.select(
            [u < skip, u < left, u < again],
            [20 + 230 * u / skip, 250 + 700 * (u - skip) / (left - skip), np.full_like(u, 1000)],
            1000 + 1600 * (u - again) / (1 - again),
        )
    return shares


class Behaviour:
    """Fills sessions with views. A session always has the same views, whichever other sessions are filled with it."""

    def __init__(self, world: World) -> None:
        self.world = world
        seed = world.config.seed
        self._walk, self._item, self._fault = key(seed, 10), key(seed, 11), key(seed, 12)
        self._fresh = choices(FAVOURITES, 12).astype(np.uint8)
        self._shares = _watch_shares()
        self._pauses_ms = (300 + 8000 * ((np.arange(256) + 0.5) / 256) ** 4).astype(np.int64)
        self._sizes = np.diff(world.category_starts)

    def views(self, sessions: Sessions) -> Views:
        """Return the views of the sessions, one after the other; a duplicate follows its original."""
        events_Z = sessions.events_Z
        rows = int(events_Z.sum())
        owner_E = np.repeat(np.arange(len(events_Z)), events_Z)
        first_E = np.repeat(np.cumsum(events_Z) - events_Z, events_Z)
        places_E = np.arange(rows) - first_E
        users_E = sessions.users_Z[owner_E]
        numbers_E = sessions.first_event_Z[owner_E] + places_E
        counter_E = (users_E << EVENT_BITS) | numbers_E
        videos_E, fondness_E, spare = self._choose(sessions, counter_E, owner_E, places_E)
        faults_E = self._faults(counter_E, places_E)
        watch_ds_E = np.maximum(1, self._shares[fondness_E, spare >> 4] * self.world.length_ds_V[videos_E] // 1000)
        gaps_ms = watch_ds_E * np.int64(100) + self._pauses_ms[(spare * np.uint16(40503)) >> 8]
        gaps_ms[np.flatnonzero(faults_E == len(FAULTS)) - 1] = 0  # a clock tie: the time of the event before
        elapsed_ms = np.cumsum(gaps_ms) - gaps_ms
        views = Views(
            users_E=users_E,
            numbers_E=numbers_E.astype(np.int32),
            sessions_E=sessions.numbers_Z[owner_E].astype(np.int32),
            places_E=places_E.astype(np.int32),
            time_ms_E=sessions.start_ms_Z[owner_E] + elapsed_ms - elapsed_ms[first_E],
            videos_E=videos_E,
            watch_ds_E=watch_ds_E,
            fondness_E=fondness_E,
            faults_E=faults_E,
            returns_E=sessions.returns_Z[owner_E],
        )
        return views.take(np.repeat(np.arange(rows), 1 + (faults_E == 1))) if self.world.config.dirt else views

    def _choose(
        self, sessions: Sessions, counter_E: I64, owner_E: I64, places_E: I64
    ) -> tuple[I32, U8, npt.NDArray[np.uint16]]:
        """Return each event's video and fondness, and 16 random bits that are still unused, [E] each."""
        step, start, loyal, spare = quarters(bits(self._walk, counter_E))
        item = bits(self._item, counter_E) >> np.uint64(32)
        row_E = np.arange(len(counter_E))
        fresh = (step < AFRESH) | (places_E == 0)
        onward = ~fresh & (step >= DRIFT)
        category_E = self._categories(sessions, owner_E, start, fresh, ~fresh & (step >= SAME) & ~onward)

        table = self.world.rank_table
        rank_E = table[item & np.uint64(len(table) - 1)]
        home = loyal < LOYAL
        lucky = (sessions.people.loyalty_U[owner_E] + category_E * np.uint16(40503)).astype(np.uint16)
        creator = self.world.creator_table[lucky] * CREATOR_VIDEOS + (item >> np.uint64(29)).astype(np.int32)
        rank_E = np.where(home, creator, rank_E)

        base = np.maximum.accumulate(np.where(onward, 0, row_E))
        further = (row_E - base).astype(np.int32)
        rank_E = rank_E[base]
        rank_E = (rank_E - rank_E % CREATOR_VIDEOS) + (rank_E + further) % CREATOR_VIDEOS
        videos_E = (self.world.category_starts[category_E] + rank_E % self._sizes[category_E]).astype(np.int32)

        first, second, third = (sessions.people.favourites_U3[owner_E, i] == category_E for i in range(3))
        fondness = np.maximum(np.maximum(first * np.uint8(3), second * np.uint8(2)), (third | home[base]) * np.uint8(1))
        return videos_E, fondness, spare

    def _categories(
        self,
        sessions: Sessions,
        owner_E: I64,
        draw_E: npt.NDArray[np.uint16],
        fresh_E: npt.NDArray[np.bool_],
        drift_E: npt.NDArray[np.bool_],
    ) -> U8:
        """Return each event's category: the category of the last fresh start, shifted by the drifts since then."""
        begin = np.flatnonzero(fresh_E)
        draw, owner = draw_E[begin], owner_E[begin]
        place = self._fresh[draw >> 4]
        anywhere = self.world.category_table[(draw * np.uint16(40503)) >> 4].astype(np.uint8)
        wanted = np.concatenate([sessions.people.favourites_U3[owner], anywhere[:, None]], axis=1)
        category = wanted[np.arange(len(begin)), place]
        since = np.cumsum(fresh_E) - 1
        drifts = np.cumsum(drift_E)
        moved: U8 = ((category[since] + NEXT_CATEGORY * (drifts - drifts[begin][since])) % len(CATEGORIES)).astype(
            np.uint8
        )
        return moved

    def _faults(self, counter_E: I64, places_E: I64) -> U8:
        """Return each event's fault. A session's first event has no clock tie, since no event precedes it."""
        faulty = int(self.world.config.dirt * 2**32)
        if not faulty:
            return np.zeros(len(counter_E), np.uint8)
        draw = bits(self._fault, counter_E) >> np.uint64(32)
        kind = np.where(draw < faulty, 1 + draw * np.uint64(len(FAULTS)) // np.uint64(faulty), 0).astype(np.uint8)
        return np.where((kind == len(FAULTS)) & (places_E == 0), np.uint8(0), kind)


def arranged(world: World, rows: int) -> Iterator[Views]:
    """Yield the whole log in the config's order, in chunks of about `rows` rows (never empty)."""
    behaviour = Behaviour(world)
    if world.config.order == "user":
        yield from _by_user(world, behaviour, rows)
    elif world.config.order == "time":
        yield from _swept(_Clock(world), behaviour, rows)
    else:
        yield from _swept(_Lottery(world), behaviour, rows)


def exactly(chunks: Iterator[Views], rows: int) -> Iterator[Views]:
    """Yield the same views in chunks of exactly `rows` rows; the last chunk may be shorter."""
    waiting: list[Views] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(map(len, waiting)) < rows:
            continue
        views = joined(waiting)
        whole = len(views) // rows * rows
        for first in range(0, whole, rows):
            yield views.take(slice(first, first + rows))
        waiting = [views.take(slice(whole, None))]
    if sum(map(len, waiting)):
        yield joined(waiting)


def _by_user(world: World, behaviour: Behaviour, rows: int) -> Iterator[Views]:
    for users in world.user_groups(rows):
        count = world.session_counts(users)
        numbers = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        yield behaviour.views(world.sessions(np.repeat(users, count), numbers))


class _Clock:
    """Places sessions and views by their time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.first, self.end = world.first_ms, world.end_ms

    def places(self, users_Z: I64, turns_Z: I64) -> I64:
        """Return the place of the user's session of that turn, [Z]; it never falls with the turn."""
        return self.world.starts_ms(users_Z, turns_Z)

    def sessions(self, users_Z: I64, turns_Z: I64) -> Sessions:
        """Return the user's session of that turn, [Z]."""
        return self.world.sessions(users_Z, turns_Z)

    def rows(self, views: Views) -> I64:
        """Return the place of each view, [E]; it is never before its session's."""
        return views.time_ms_E


class _Lottery:
    """Places sessions at random, a user's in turn from a random one on, and each view up to 1/64 of the log later."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.first, self.end = 0, PLACES
        self._begin, self._place = key(world.config.seed, 40), key(world.config.seed, 41)
        self._delay = key(world.config.seed, 42)

    def places(self, users_Z: I64, turns_Z: I64) -> I64:
        """Return the place of the user's session of that turn, [Z]: random within the turn's share of all places."""
        return self._places(users_Z, turns_Z, self.world.session_counts(users_Z))

    def sessions(self, users_Z: I64, turns_Z: I64) -> Sessions:
        """Return the user's session of that turn, [Z]."""
        turns, begin = self._rotation(users_Z)
        return self.world.sessions(users_Z, (turns_Z + begin) % turns)

    def rows(self, views: Views) -> I64:
        """Return the place of each view, [E]; it is never before its session's."""
        turns, begin = self._rotation(views.users_E)
        delay = bits(self._delay, (views.users_E << EVENT_BITS) | views.numbers_E) >> np.uint64(64 - 34)
        return self._places(views.users_E, (views.sessions_E - begin) % turns, turns) + delay.astype(np.int64)

    def _places(self, users_Z: I64, turns_Z: I64, count_Z: I64) -> I64:
        within, _ = halves(bits(self._place, (users_Z << SESSION_BITS) | turns_Z))
        return ((turns_Z + within / 2**32) / count_Z * PLACES).astype(np.int64)

    def _rotation(self, users_Z: I64) -> tuple[I64, I64]:
        turns = self.world.session_counts(users_Z)
        return turns, (bits(self._begin, users_Z) >> np.uint64(32)).astype(np.int64) % turns


def _swept(order: _Clock | _Lottery, behaviour: Behaviour, rows: int) -> Iterator[Views]:
    config = order.world.config
    steps = -(-round(config.users * config.events_per_user) // rows)
    edges = np.linspace(order.first, order.end, steps + 1)[1:].astype(np.int64)
    edges[-1] = NEVER
    next_place_U = np.concatenate(
        [order.places(users, np.zeros_like(users)) for users in order.world.user_groups(rows)]
    )
    next_turn_U = np.zeros(config.users, np.int64)
    carried: list[Views] = []
    for edge in edges:
        due = _due(order, next_place_U, next_turn_U, int(edge))
        views = joined([*carried, behaviour.views(order.sessions(*due))])
        place_E = order.rows(views)
        over = place_E < edge
        carried = [views.take(~over)]
        if over.any():
            ready, place_E = views.take(over), place_E[over]
            yield ready.take(_sorted(place_E, ready))


def _due(order: _Clock | _Lottery, next_place_U: I64, next_turn_U: I64, edge: int) -> tuple[I64, I64]:
    """Remove all sessions before `edge` from the calendar; return their users and turns, [Z] each."""
    due: list[tuple[I64, I64]] = []
    users = np.flatnonzero(next_place_U < edge)
    while len(users):
        turns = next_turn_U[users]
        due.append((users, turns))
        next_turn_U[users] = turns + 1
        more = turns + 1 < order.world.session_counts(users)
        next_place_U[users[~more]] = NEVER
        users = users[more]
        next_place_U[users] = order.places(users, turns[more] + 1)
        users = users[next_place_U[users] < edge]
    empty = np.empty(0, np.int64)
    return np.concatenate([empty, *(users for users, _ in due)]), np.concatenate([empty, *(turns for _, turns in due)])


def _sorted(place_E: I64, views: Views) -> I64:
    """Return the order by place, user and number of the view. Few places tie, so only tied rows are sorted twice."""
    order = np.argsort(place_E)
    sorted_place = place_E[order]
    same = sorted_place[1:] == sorted_place[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    rows = order[tied]
    order[tied] = rows[np.lexsort((views.numbers_E[rows], views.users_E[rows], place_E[rows]))]
    return order
