"""Rows per second from Parquet to padded histories, against peers that give the same bytes.

    python tests/benchmarks/bench_histories.py [--rows 4000000] [--rounds 5] [--threads 1 2]

The task: of each user the newest 50 videos by (timestamp, input order), oldest first, as tokens of a catalog by falling
frequency, padded with 0: int32 [N, 50], and each user's length. Peers: one Polars query, pandas, DuckDB SQL, and the
class that many start with, a Python object per user (on a part of the rows). Logs of three columns, in any order and in
time order. Nobody hashes the input here, as a job does beside the reading for its lineage. Prints what scanning the
three columns takes first, then medians of interleaved rounds, then the two-pass way through spill files. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KEPT, SLOW_ROWS = 50, 400_000


def make_log(path, rows, order):
    import numpy as np
    import polars as pl

    random = np.random.default_rng(7)
    users = max(1, rows // 50)
    weight = random.lognormal(0, 1, users)
    user = random.choice(users, rows, p=weight / weight.sum())
    video = (random.zipf(1.3, rows) % 20_000).astype(np.int64) + 1_000_000
    moment = random.integers(0, 28 * 86_400_000_000, rows) + 1_774_828_800_000_000
    if order == "time":
        moment.sort()
    frame = pl.DataFrame({"user_id": user + 10_000, "video_id": video, "timestamp": moment})
    frame.cast({"timestamp": pl.Datetime("us", "UTC")}).write_parquet(path, row_group_size=262_144)


def ours(path, memory="64GiB", way="memory"):
    import numpy as np

    from genrec_batch.core.options import HistoryConfig
    from genrec_batch.events import by_user, histories
    from genrec_batch.events.log import EventLog
    from genrec_batch.events.sorter_choice import fastest
    from genrec_batch.events.survey import survey
    from genrec_batch.io import read
    from genrec_batch.model.catalog import Catalog
    from genrec_batch.runtime import threads

    source = read.scan(path, "INPUT", hashed=False)
    log = EventLog.of(source, None, "INPUT")
    found = survey(log, None, threads.cores(), fastest())
    users = by_user.Users(ids=found.users["user_id"], events_N=found.users["count"].to_numpy().astype(np.int64))
    catalog = Catalog.from_counts(found.videos, vocabulary=10_000)
    videos = histories.video_rows(found.videos["video_id"], catalog, None)
    reader = by_user.RecordReader.of(log, found, users.ids, fastest())
    limit = HistoryConfig(memory_limit=memory).memory_bytes()
    padded_NS = np.zeros((len(users), KEPT), np.int32)
    lengths_N = np.minimum(users.events_N, KEPT)
    with tempfile.TemporaryDirectory() as folder:
        store = by_user.store(
            reader, users, found, shard_users=16_384, memory_bytes=limit, spill_to=Path(folder), workers=threads.cores()
        )
        assert store.way == way, store.way

        def load(bucket):
            built = histories.build(
                store.load(bucket),
                reader.record,
                start=bucket.start,
                total_N=users.events_N[bucket.start : bucket.stop],
                videos=videos,
                user_row_N=np.zeros(0, np.int32),
                as_of_us=found.as_of_us,
                max_events=KEPT,
                seen_limit=1000,
                sorter=reader.sorter,
            )
            store.done(bucket)
            padded_NS[bucket.start : bucket.stop] = built.token_rows().padded(
                np.arange(bucket.stop - bucket.start), KEPT
            )

        for _ in threads.ordered(load, store.buckets, workers=threads.cores(), name="load"):
            pass
        store.close()
    return padded_NS, lengths_N


def with_polars(path):
    import numpy as np
    import polars as pl

    frame = pl.read_parquet(path)
    catalog = (frame.group_by("video_id").len().sort(["len", "video_id"], descending=[True, False]).head(9_998)).select(
        "video_id", token=pl.int_range(2, pl.len() + 2, dtype=pl.Int32)
    )
    grouped = (
        frame.join(catalog, on="video_id", how="left", maintain_order="left")
        .with_columns(pl.col("token").fill_null(1))
        .sort("user_id", "timestamp", maintain_order=True)
        .group_by("user_id", maintain_order=True)
        .agg(pl.col("token").tail(KEPT))
    )
    lengths_N = grouped["token"].list.len().to_numpy().astype(np.int64)
    flat = grouped["token"].explode().to_numpy()
    padded_NS = np.zeros((len(grouped), KEPT), np.int32)
    padded_NS[np.arange(KEPT) < lengths_N[:, None]] = flat
    return padded_NS, lengths_N


def with_pandas(path):
    import numpy as np
    import pandas as pd

    frame = pd.read_parquet(path)
    counts = frame["video_id"].value_counts(sort=False).rename_axis("video_id").reset_index(name="n")
    counts = counts.sort_values(["n", "video_id"], ascending=[False, True]).head(9_998)
    token = pd.Series(np.arange(2, len(counts) + 2, dtype=np.int32), index=counts["video_id"])
    frame["token"] = frame["video_id"].map(token).fillna(1).astype(np.int32)
    frame = frame.sort_values(["user_id", "timestamp"], kind="stable")
    frame = frame.groupby("user_id", sort=False).tail(KEPT)
    lengths_N = frame.groupby("user_id", sort=True).size().to_numpy()
    padded_NS = np.zeros((len(lengths_N), KEPT), np.int32)
    padded_NS[np.arange(KEPT) < lengths_N[:, None]] = frame["token"].to_numpy()
    return padded_NS, lengths_N


def with_duckdb(path):
    import duckdb
    import numpy as np

    connection = duckdb.connect(config={"threads": len(os.sched_getaffinity(0))})
    table = connection.execute(  # the path and the number are ours
        f"""
        WITH log AS (SELECT user_id, video_id, timestamp, file_row_number AS place
                     FROM read_parquet('{path}', file_row_number = true)),
        catalog AS (SELECT video_id, (row_number() OVER (ORDER BY count(*) DESC, video_id) + 1)::INTEGER AS token
                    FROM log GROUP BY video_id ORDER BY count(*) DESC, video_id LIMIT 9998),
        ranked AS (SELECT user_id, coalesce(token, 1)::INTEGER AS token, timestamp, place,
                          row_number() OVER (PARTITION BY user_id ORDER BY timestamp DESC, place DESC) AS r
                   FROM log LEFT JOIN catalog USING (video_id))
        SELECT user_id, token FROM ranked WHERE r <= {KEPT} ORDER BY user_id, r DESC
        """  # noqa: S608
    ).fetchnumpy()
    user_E, token_E = np.asarray(table["user_id"]), np.asarray(table["token"])
    begins = np.flatnonzero(np.concatenate([[True], user_E[1:] != user_E[:-1]]))
    lengths_N = np.diff(begins, append=len(user_E))
    padded_NS = np.zeros((len(lengths_N), KEPT), np.int32)
    padded_NS[np.arange(KEPT) < lengths_N[:, None]] = token_E
    return padded_NS, lengths_N


class UserHistory:
    """What many start with: an object per user."""

    def __init__(self):
        self.events = []

    def add(self, moment, video):
        self.events.append((moment, video))

    def newest(self):
        return sorted(self.events, key=lambda event: event[0])[-KEPT:]


def with_classes(path):
    import collections

    import numpy as np
    import polars as pl

    users, counts = {}, collections.Counter()
    for row in pl.read_parquet(path).iter_rows(named=True):
        users.setdefault(row["user_id"], UserHistory()).add(row["timestamp"], row["video_id"])
        counts[row["video_id"]] += 1
    best = sorted(counts, key=lambda video: (-counts[video], video))[:9_998]
    token = {video: place for place, video in enumerate(best, start=2)}
    padded_NS = np.zeros((len(users), KEPT), np.int32)
    lengths_N = np.zeros(len(users), np.int64)
    for row, user in enumerate(sorted(users)):
        kept = [token.get(video, 1) for _, video in users[user].newest()]
        padded_NS[row, : len(kept)], lengths_N[row] = kept, len(kept)
    return padded_NS, lengths_N


def scan(path):
    import polars as pl

    return pl.scan_parquet(path).select("user_id", "video_id", "timestamp").collect()


def measure(arguments):
    """In a process of its own, which has its threads set: every peer in turn, round by round."""
    import numpy as np

    from genrec_batch.runtime.malloc import keep_freed_memory

    keep_freed_memory()  # as the command line does; the peers have it too
    peers = {"ours": ours, "polars": with_polars, "pandas": with_pandas, "duckdb": with_duckdb}
    report = {}
    for order in ("any", "time"):
        path, small = f"{arguments.folder}/{order}.parquet", f"{arguments.folder}/{order}-small.parquet"
        expected = ours(path)
        for name, peer in peers.items():
            got = peer(path)  # the warm-up
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True)), f"{name} gives other bytes"
        assert all(np.array_equal(a, b) for a, b in zip(with_classes(small), ours(small), strict=True))
        taken = {name: [] for name in ("scan", *peers, "spill", "class")}
        for _ in range(arguments.rounds):
            for name, peer in (("scan", scan), *peers.items()):
                taken[name].append(clocked(peer, path) / arguments.rows)
            taken["spill"].append(clocked(lambda p: ours(p, arguments.spill_memory, "spill"), path) / arguments.rows)
            taken["class"].append(clocked(with_classes, small) / SLOW_ROWS)
        report[order] = {name: statistics.median(times) for name, times in taken.items()}
    print(json.dumps(report))


def clocked(work, path):
    start = time.perf_counter()
    work(path)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--spill-memory", default="256MiB")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        measure(arguments)
        return
    last = {"bench": "histories", "rows": arguments.rows, "threads": {}}
    with tempfile.TemporaryDirectory() as folder:
        for order in ("any", "time"):
            make_log(f"{folder}/{order}.parquet", arguments.rows, order)
            make_log(f"{folder}/{order}-small.parquet", SLOW_ROWS, order)
        for threads in arguments.threads:
            environment = os.environ | {"POLARS_MAX_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
            cores = sorted(os.sched_getaffinity(0))[:threads]
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--folder", folder],
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=lambda cores=cores: os.sched_setaffinity(0, cores),
            )
            report = json.loads(done.stdout.splitlines()[-1])
            last["threads"][threads] = report
            for order, seconds in report.items():
                print(f"{threads} thread(s), rows in {order} order:")
                for name, each in seconds.items():
                    ratio = each / seconds["ours"]
                    print(f"  {name:8s} {1 / each / 1e6:8.2f} M rows/s, {ratio:7.2f} of ours' time")
    print(json.dumps(last))


if __name__ == "__main__":
    main()
