"""`shares`: the cores of a host divided among processes."""

from __future__ import annotations

import os

from genrec_batch.runtime.shares import listed, shares


def host(tmp_path, nodes, topology):
    """Describe a host as the kernel does: cores of each node, and (socket, core) of each thread."""
    for number, cores in enumerate(nodes):
        folder = tmp_path / f"node/node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cores + "\n")
    for thread, (socket, core) in enumerate(topology):
        folder = tmp_path / f"cpu/cpu{thread}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{socket}\n")
        (folder / "core_id").write_text(f"{core}\n")
    return tmp_path


def test_a_process_has_cores_of_one_node_and_both_threads_of_each(tmp_path):
    threads = [(number // 2 % 2, number % 2) for number in range(8)]  # threads 0-3 and their siblings 4-7
    system = host(tmp_path, ["0-1,4-5", "2-3,6-7"], threads)
    assert shares(2, range(8), system) == [[0, 4, 1, 5], [2, 6, 3, 7]]
    assert shares(4, range(8), system) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert shares(2, [0, 1, 2], system) == [[0], [1, 2]]


def test_more_processes_than_cores_share_them(tmp_path):
    assert shares(3, [4, 5], tmp_path) == [[4], [5], [4]]
    assert sorted(core for each in shares(1) for core in each) == sorted(os.sched_getaffinity(0))
    assert listed("0-2,7\n") == [0, 1, 2, 7]
