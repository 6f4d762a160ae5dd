"""The order of the log, made as it goes: by time, by user, or shuffled, without sorting all of it.

Owns: the sweep over sessions and the cutting of views into chunks. Must not know: columns or files. In: a config. Out:
chunks of views; how large they are changes nothing but where one ends and the next begins.

By time: each user has one next session; a sweep over the clock takes those due, fills them, sorts what is over by the
end of its step and keeps what is not for the next. Memory: one step, plus 16 bytes per user. Shuffled: the same sweep
over a random place instead of the clock. By user: users in blocks, no sweep.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from genrec_batch.core.arrays import I64
from genrec_batch.demo.synthetic.draws import bits, halves, key
from genrec_batch.demo.synthetic.views import Behaviour, Views, joined
from genrec_batch.demo.synthetic.world import EVENT_BITS, SESSION_BITS, Sessions, World

NEVER = np.iinfo(np.int64).max
PLACES = 1 << 40  # places that a shuffled log has


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
    """Yield the same views in chunks of exactly `rows` rows, the last one apart."""
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
    for users in world.blocks(rows):
        count = world.session_counts(users)
        numbers = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        yield behaviour.views(world.sessions(np.repeat(users, count), numbers))


class _Clock:
    """Places sessions and views by their time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.first, self.end = world.first_ms, world.end_ms

    def places(self, users_Z: I64, turns_Z: I64) -> I64:
        """Return where the user's session of that turn stands, [Z]; never falls with the turn."""
        return self.world.starts_ms(users_Z, turns_Z)

    def sessions(self, users_Z: I64, turns_Z: I64) -> Sessions:
        """Return the user's session of that turn, [Z]."""
        return self.world.sessions(users_Z, turns_Z)

    def rows(self, views: Views) -> I64:
        """Return where each view stands, [E]; never before its session."""
        return views.time_ms_E


class _Lottery:
    """Places sessions at random, each user's in turn from a random one on; and views up to 1/64 of the log later."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.first, self.end = 0, PLACES
        self._begin, self._place = key(world.config.seed, 40), key(world.config.seed, 41)
        self._delay = key(world.config.seed, 42)

    def places(self, users_Z: I64, turns_Z: I64) -> I64:
        """Return where the user's session of that turn stands, [Z]: at random in its share of all places."""
        return self._places(users_Z, turns_Z, self.world.session_counts(users_Z))

    def sessions(self, users_Z: I64, turns_Z: I64) -> Sessions:
        """Return the user's session of that turn, [Z]."""
        turns, begin = self._rotation(users_Z)
        return self.world.sessions(users_Z, (turns_Z + begin) % turns)

    def rows(self, views: Views) -> I64:
        """Return where each view stands, [E]; never before its session."""
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
    next_place_U = np.concatenate([order.places(users, np.zeros_like(users)) for users in order.world.blocks(rows)])
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
    """Take all sessions before `edge` off the calendar; return their users and turns, [Z] each."""
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
    """Return the order by place, then user, then number of the event; few rows tie, so only those are sorted twice."""
    order = np.argsort(place_E)
    sorted_place = place_E[order]
    same = sorted_place[1:] == sorted_place[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    rows = order[tied]
    order[tied] = rows[np.lexsort((views.numbers_E[rows], views.users_E[rows], place_E[rows]))]
    return order
