"""What rules cost a whole run: `score` with all of them beside `score` without, in turns, Parquet to Parquet.

    python tests/benchmarks/bench_rules_run.py --users 10000000 --folder WORK [--device cuda] [--json FILE]

The log is that of `bench_end_to_end.py` (5 to 50 events a user); both kinds of runs read the same tables of users and
videos. The rules: videos banned for all and for a tenth of the users, an allow list of 80% of the videos, no repeats of
an earlier output, a largest age, two videos of a creator and four of a category, mmr, a boost, a tenth promoted, 5%
explored, and popular videos of a country for short lists. `--json` keeps the result; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
from pathlib import Path

import numpy as np
import polars as pl
from bench_end_to_end import run, write_log

from genrec_batch import __version__

VIDEOS, FIRST_VIDEO, FIRST_USER, NUMBERS = 9_000, 500_000, 1_000_000, 64
DAY_US, END_US = 86_400_000_000, 1_774_828_800_000_000 + 28 * 86_400_000_000


def write_tables(folder: Path, users: int) -> None:
    """Write the tables of users, videos, and those that the rules name."""
    random = np.random.default_rng(3)
    ids = np.arange(VIDEOS) + FIRST_VIDEO
    embedding = random.standard_normal((VIDEOS, NUMBERS), np.float32)
    pl.DataFrame(
        {
            "video_id": ids,
            "creator_id": random.integers(0, 900, VIDEOS),
            "category": random.integers(0, 30, VIDEOS),
            "quality": random.random(VIDEOS, np.float32),
            "created_at": pl.Series(END_US - random.integers(0, 400 * DAY_US, VIDEOS)).cast(pl.Datetime("us", "UTC")),
            "embedding": pl.Series(embedding).cast(pl.List(pl.Float32)),
        }
    ).write_parquet(folder / "videos.parquet")
    countries = pl.Series(np.array(["BR", "DE", "ID", "US"])[random.integers(0, 4, users)])
    pl.DataFrame({"user_id": np.arange(users) + FIRST_USER, "country": countries}).write_parquet(
        folder / "users.parquet"
    )
    banned = random.choice(ids, 300, replace=False)
    pl.DataFrame({"video_id": banned}).write_parquet(folder / "banned.parquet")
    some = random.choice(users, users // 10, replace=False) + FIRST_USER
    pl.DataFrame({"user_id": np.repeat(some, 3), "video_id": random.choice(ids, 3 * len(some))}).write_parquet(
        folder / "hidden.parquet"
    )
    pl.DataFrame({"video_id": random.choice(ids, int(0.8 * VIDEOS), replace=False)}).write_parquet(
        folder / "allowed.parquet"
    )
    pl.DataFrame({"video_id": random.choice(ids, 50, replace=False)}).write_parquet(folder / "promoted.parquet")


def rules(folder: Path, earlier: str, *, composes: bool) -> list[str]:
    """Return the options of all rules, or of those that come before the list is chosen and of the fallback."""
    which = [
        f"--exclude={folder}/banned.parquet",
        f"--exclude={folder}/hidden.parquet",
        f"--only={folder}/allowed.parquet",
        f"--exclude-recommended={earlier}",
        "--max-age=created_at=365d",
        "--fallback=popular:7d:by=country",
    ]
    composed = [
        "--max-per=creator_id=2,category=4",
        "--diversify=mmr=0.3",
        "--boost=quality=0.1",
        f"--promote={folder}/promoted.parquet",
        "--promote-share=0.1",
        "--explore=0.05",
    ]
    return which + (composed if composes else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--decode", nargs="+", default=["candidates", "slate"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    folder = asked.folder
    log = folder / "log"
    if not log.exists():
        write_log(log, "5-50", asked.users)
        write_tables(folder, asked.users)
    shared = [
        f"--users={folder}/users.parquet", f"--videos={folder}/videos.parquet", f"--engine={asked.engine}",
        f"--device={asked.device}", f"--precision={asked.precision}", "--memory-limit=48GiB",
    ]  # fmt: skip
    earlier = folder / "earlier"
    if not (earlier / "_SUCCESS").exists():
        run(str(log), str(earlier), [*shared, "--decode=slate", "--as-of=2026-04-26T00:00:00"], "numba")
    found: dict[str, object] = {
        "version": __version__,
        "users": asked.users,
        "device": asked.device,
        "hardware": platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
    }
    for decode in asked.decode:
        kinds = {"without": [], "with": rules(folder, str(earlier), composes=decode == "candidates")}
        times: dict[str, list[float]] = {name: [] for name in kinds}
        cpu: dict[str, list[float]] = {name: [] for name in kinds}
        summaries = {}
        for _ in range(asked.rounds):
            for name, options in kinds.items():
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                wall, summaries[name] = run(
                    str(log), str(folder / "out"), [*shared, f"--decode={decode}", *options], "numba"
                )
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                times[name].append(wall)
                cpu[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
                print(decode, name, round(wall, 1), "s,", round(cpu[name][-1], 1), "s of processors", flush=True)
        found[decode] = {
            name: {
                "seconds": round(statistics.median(times[name]), 2),
                "cpu_seconds": round(statistics.median(cpu[name]), 2),
                "stages_s": summaries[name]["stages_s"],
                "short_users": summaries[name]["short_users"],
                "peak_rss_mib": summaries[name]["peak_rss_mib"],
            }
            for name in kinds
        }
        found[decode]["slower"] = round(statistics.median(times["with"]) / statistics.median(times["without"]) - 1, 4)
        found[decode]["more_cpu"] = round(statistics.median(cpu["with"]) / statistics.median(cpu["without"]) - 1, 4)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
