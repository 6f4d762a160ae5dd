"""The parts of a run handed out to workers: to whoever is free, again where a worker was lost, at last not at all.

Owns: who has which part, how often one has failed, and when all are done. Must not know: processes, messages, what a
part is. In: groups of numbers, and what became of them. Out: which group a worker gets next.

A worker gets further groups while it has some, so that its threads stay busy, but no more than its share of what is
left, so that all end at about the same time. Where a worker is lost, each part that it had may be the cause: such a
part is given to a worker that has nothing else, after all others. One that fails `MOST` times is left out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Sequence

MOST = 3  # times that a part may fail


class Handout:
    """Parts by number, and the workers that have them."""

    def __init__(self, groups: Iterable[Sequence[int]], workers: int) -> None:
        """Begin with all groups at hand; `workers` is how many share them."""
        self._fresh = deque(tuple(group) for group in groups if group)
        self._again: deque[int] = deque()  # parts that a lost worker had
        self._held: dict[Hashable, set[int]] = {}
        self._failures: Counter[int] = Counter()
        self._workers = workers
        self.left_out: dict[int, str] = {}  # parts that failed too often, and why at last

    @property
    def left(self) -> int:
        """Number of parts that are neither done nor left out."""
        held = sum(map(len, self._held.values()))
        return sum(map(len, self._fresh)) + len(self._again) + held

    def held(self, worker: Hashable) -> frozenset[int]:
        """Return the parts that a worker has."""
        return frozenset(self._held.get(worker, ()))

    def take(self, worker: Hashable) -> tuple[int, ...] | None:
        """Return the next group for a worker, None where it gets none now."""
        held = self._held.setdefault(worker, set())
        if any(self._failures[number] for number in held):
            return None
        waiting = sum(map(len, self._fresh))
        if self._fresh and (not held or len(held) <= waiting // self._workers):
            group = self._fresh.popleft()
        elif self._again and not held and not self._fresh:
            group = (self._again.popleft(),)
        else:
            return None
        held.update(group)
        return group

    def done(self, worker: Hashable, number: int) -> None:
        """Note that a part is written."""
        self._held[worker].discard(number)

    def lost(self, worker: Hashable, why: str) -> None:
        """Note that a worker has ended before its parts were done."""
        for number in sorted(self._held.pop(worker, ())):
            self._failures[number] += 1
            if self._failures[number] >= MOST:
                self.left_out[number] = why
            else:
                self._again.append(number)

    def failures(self, where: str) -> str:
        """Return the error about the parts that were left out; `where` is where the others are."""
        whys = "; ".join(f"part {number}: {why}" for number, why in sorted(self.left_out.items()))
        return (
            f"parts that failed {MOST} times each were left out, {len(self.left_out)} in all; the others are written "
            f"and stay in {where}, and the same command tries only these again. {whys}"
        )
