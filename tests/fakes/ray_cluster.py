"""A Ray cluster of several nodes on this machine, as a process that a test drives: a line on stdin kills a node.

Prints the cluster's address, and a line after each kill. A killed node is replaced by a new one. Ray gives a node 30
seconds to start; where the machine is too busy for that, another one is started.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20, "node_ip_address": "127.0.0.1"}
TRIES = 20


def patiently(start):
    """Return what `start` returns, which may fail some times."""
    for _ in range(TRIES - 1):
        try:
            return start()
        except Exception as error:
            print(f"trying again: {error}", file=sys.stderr, flush=True)
    return start()


def main(nodes: int) -> None:
    """Run until stdin ends."""
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=NODE))
    others = [patiently(lambda: cluster.add_node(**NODE)) for _ in range(nodes)]
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(others.pop(0), allow_graceful=False)
        others.append(patiently(lambda: cluster.add_node(**NODE)))
        print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
