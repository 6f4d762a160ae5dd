"""Make one log of the KuaiRand files: what `train` learns from and `evaluate` tests on.

    python tests/benchmarks/kuairand.py FOLDER log.parquet

FOLDER holds `history.parquet` (each user's earlier videos, of which only the last has a time) and `events.parquet` (six
days). History rows get times that are spread evenly from the first day of the published log to the last row's time;
they have no other column. The day that counts is the log's own `date`, which is local (UTC+8) and differs from
`time_ms` for some rows around midnight: such times are moved to the nearest moment of their day. So `--valid-from` and
`--test-from` with 2022-04-29T16:00 cut exactly at date 20220430.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

FIRST_MS = 1_649_347_200_000  # 2022-04-08 00:00 local, the first day of the published log
DAY_MS, HOUR_MS = 86_400_000, 3_600_000


def history_of(file: Path) -> pl.DataFrame:
    history = pl.read_parquet(file).with_columns(last=pl.col("time_ms").max().over("user_id"))
    share = (pl.col("position") + 1) / (pl.col("position").max().over("user_id") + 1)
    spread = FIRST_MS + ((pl.col("last") - FIRST_MS) * share).cast(pl.Int64)
    return history.sort("user_id", "position").select("user_id", "video_id", time_ms=spread)


def events_of(file: Path) -> pl.DataFrame:
    day = pl.col("date").cast(pl.String).str.to_date("%Y%m%d").cast(pl.Datetime("ms")).dt.epoch("ms") - 8 * HOUR_MS
    return pl.read_parquet(file).with_columns(pl.col("time_ms").clip(day, day + DAY_MS - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    history, events = history_of(asked.folder / "history.parquet"), events_of(asked.folder / "events.parquet")
    log = pl.concat([history, events], how="diagonal")
    log.write_parquet(asked.out)
    print(f"{len(history):,} rows of history and {len(events):,} events: {asked.out}")


if __name__ == "__main__":
    main()
