"""Write an output in a store, as a process of its own, which a test kills.

Usage: python -m tests.io.commit TARGET SEED IF_EXISTS FOLDER [COLUMN].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl

from genrec_batch.core.errors import GenrecError
from genrec_batch.io import stored_output

PARTS = 3


def part(seed, number):
    """Return the rows and the fingerprints of a part; two parts have equal rows in no two runs."""
    users = pl.int_range(number * 10, number * 10 + 10, eager=True).alias("user_id")
    rows = pl.DataFrame({"user_id": users}).with_columns(
        video_id=pl.col("user_id") * 7 + seed, rank=pl.lit(1, pl.Int32), source=pl.lit("a")
    )
    return rows.to_arrow(), pl.DataFrame({"user_id": users, "print": users * seed}).to_arrow()


def write(target, seed, if_exists, folder, column=None):
    """Write all parts that are not there and finish; return what was resumed."""
    identity = {"seed": seed, "input": {}}
    out = stored_output.open_output(target, identity, if_exists, column, Path(folder))
    try:
        if out.complete:
            return "complete"
        resumed = len(out.parts_done)
        for number in range(PARTS):
            if number not in out.parts_done:
                rows, prints = part(seed, number)
                out.write(number, rows, {"users": 10}, prints)
        out.finish({"scope": 1})
        return resumed
    finally:
        out.close()


if __name__ == "__main__":
    try:
        print(json.dumps(write(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])))
    except GenrecError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
