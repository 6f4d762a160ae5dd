"""Shares of the host's cores: which of them each of N processes gets.

Owns: the order in which cores are divided, so that a process has neighbours of one NUMA node and both threads of a
core. Must not know: what the processes do. In: the cores that this process may use. Out: disjoint shares of them, or
where there are more processes than cores, cores that several share.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

SYSTEM = Path("/sys/devices/system")


def shares(count: int, cores: Sequence[int] | None = None, system: Path = SYSTEM) -> list[list[int]]:
    """Return the cores of each of `count` processes, by default of those that this process may use.

    Neighbours are cores of one NUMA node, then threads of one core. `system` is where the kernel describes them.
    """
    known = sorted(os.sched_getaffinity(0)) if cores is None else list(cores)
    node = {core: number for number, of_node in enumerate(_nodes(system)) for core in of_node}
    order = sorted(known, key=lambda core: (node.get(core, 0), *_place(system, core), core))
    if count >= len(order):
        return [[order[number % len(order)]] for number in range(count)]
    cuts = [number * len(order) // count for number in range(count + 1)]
    return [order[start:stop] for start, stop in itertools.pairwise(cuts)]


def _nodes(system: Path) -> list[list[int]]:
    files = sorted(system.glob("node/node*/cpulist"), key=lambda file: int(file.parent.name.removeprefix("node")))
    return [listed(file.read_text()) for file in files]


def _place(system: Path, core: int) -> tuple[int, int]:
    """Return the socket and the number of a core there; its threads have the same ones."""
    folder = system / f"cpu/cpu{core}/topology"
    found = [folder / name for name in ("physical_package_id", "core_id")]
    if not all(file.is_file() for file in found):
        return 0, core
    package, number = (int(file.read_text()) for file in found)
    return package, number


def listed(text: str) -> list[int]:
    """Return the numbers of the kernel's form of a list: "0-3,8" is 0, 1, 2, 3 and 8."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
