"""What happens inside sessions: which videos are seen one after the other, for how long, and when.

Owns: the walk through categories and videos that a model can learn, watch times, and which events are faulty. Must not
know: files, the order in which rows are wanted, the columns of a log (`log.py`). In: sessions. Out: their events.
Shapes: Z sessions, E events.

The walk: an event goes on with the category before (another video, or the next one of the same creator), drifts to the
category that always follows it, or starts afresh in one of the user's three favourite categories or, now and then, in
any. A third of the videos is of the creator whom the user is loyal to in that category. So histories tell more about
the next video than popularity does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import I32, I64
from genrec_batch.demo.synthetic.draws import bits, chance, choices, key, quarters
from genrec_batch.demo.synthetic.world import CATEGORIES, CREATOR_VIDEOS, EVENT_BITS, Sessions, World

U8 = npt.NDArray[np.uint8]

AFRESH, SAME, DRIFT = chance(0.30), chance(0.65), chance(0.80)  # cumulative; the rest is the creator's next video
NEXT_CATEGORY = 7  # the category that follows c is c + 7, modulo their number
FAVOURITES = (0.55, 0.25, 0.10, 0.10)  # of fresh starts: the three favourites, any by popularity
LOYAL = chance(0.35)
FAULTS = ("duplicates", "null_ids", "null_values", "zero_durations", "clock_ties")  # codes 1..5, 0 is none


@dataclass(frozen=True, kw_only=True)
class Views:
    """Events in any order, a row each."""

    users_E: I64  # from 0
    numbers_E: I32  # of the event within the user's history, from 0
    sessions_E: I32  # of the session within the user, from 0
    places_E: I32  # within the session, from 0
    time_ms_E: I64
    videos_E: I32  # from 0
    watch_ds_E: I32  # tenths of a second
    fondness_E: U8  # 0 (any category) to 3 (the favourite one, or the creator the user is loyal to)
    faults_E: U8  # 0 for none, else the place in FAULTS, from 1
    returns_E: npt.NDArray[np.bool_]  # the session's `returns_Z`

    def __len__(self) -> int:
        return len(self.users_E)

    def take(self, rows: I64 | npt.NDArray[np.bool_] | slice) -> Views:
        """Return some rows, in the given order."""
        return Views(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def joined(parts: list[Views]) -> Views:
    """Return the rows of several parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    return Views(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Views)})


def _watch_shares() -> I32:
    """Watched share of a video in thousandths, [4 fondnesses, 4096 draws]: skipped, left half way, finished, again."""
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
    """Fills sessions with events; the same events for the same session, whatever else is asked for beside it."""

    def __init__(self, world: World) -> None:
        self.world = world
        seed = world.config.seed
        self._walk, self._item, self._fault = key(seed, 10), key(seed, 11), key(seed, 12)
        self._fresh = choices(FAVOURITES, 12).astype(np.uint8)
        self._shares = _watch_shares()
        self._pauses_ms = (300 + 8000 * ((np.arange(256) + 0.5) / 256) ** 4).astype(np.int64)
        self._sizes = np.diff(world.category_starts)

    def views(self, sessions: Sessions) -> Views:
        """Return the events of the sessions, one after the other; a duplicate stands beside its original."""
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
        gaps_ms[np.flatnonzero(faults_E == len(FAULTS)) - 1] = 0  # a clock tie: no time since the event before
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
        """Walk: return each event's video and fondness, and 16 random bits that are still unused, [E] each."""
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
        """Return each event's category: that of the last fresh start, moved on by the drifts since."""
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
        """Return each event's fault; a session's first event has no clock tie, having nothing before it."""
        faulty = int(self.world.config.dirt * 2**32)
        if not faulty:
            return np.zeros(len(counter_E), np.uint8)
        draw = bits(self._fault, counter_E) >> np.uint64(32)
        kind = np.where(draw < faulty, 1 + draw * np.uint64(len(FAULTS)) // np.uint64(faulty), 0).astype(np.uint8)
        return np.where((kind == len(FAULTS)) & (places_E == 0), np.uint8(0), kind)
