"""Requests of the users of a log, as a feed would send them: what a server is asked in tests and benchmarks."""

from __future__ import annotations

import json

import polars as pl

from genrec_batch.events.columns import REQUIRED, SCORED


def events_of(log: pl.DataFrame, columns=tuple(SCORED)) -> dict:
    """Return each user's rows as lists by column, in the order of the log; times are epoch us."""
    names = [name for name in log.columns if name in columns and name != "user_id"]
    usable = log.filter(pl.all_horizontal(pl.col([n for n in REQUIRED if n in log.columns]).is_not_null()))
    rows = usable.select("user_id", *names)
    if "timestamp" in names and rows.schema["timestamp"] == pl.Datetime:
        rows = rows.with_columns(pl.col("timestamp").dt.epoch("us"))
    lists = rows.group_by("user_id", maintain_order=True).agg(names)
    return {row.pop("user_id"): row for row in lists.iter_rows(named=True)}


def request(events: dict, **fields) -> bytes:
    """Return the bytes of one request."""
    return json.dumps({"events": events, **fields}).encode()


HEADS = ("recommendation", "engagement", "retention", "monetization")


def rows_of(answers: dict) -> pl.DataFrame:
    """Return answers by user as `score` writes them: a row for each recommendation, by user and rank."""
    rows = [
        {
            "user_id": user,
            "rank": rank + 1,
            "video_id": answer.video_K[rank],
            "score": answer.score_K[rank],
            "log_prob": answer.log_prob_K[rank],
            "step": answer.step_K[rank],
            **dict(zip(HEADS, answer.heads_KH[rank], strict=True)),
        }
        for user, answer in answers.items()
        for rank in range(len(answer))
    ]
    return pl.DataFrame(rows, infer_schema_length=None).sort("user_id", "rank")


def differences(mine: pl.DataFrame, recs: pl.DataFrame) -> dict[str, float]:
    """Return the largest difference of each number of two outputs, which have the same users, ranks, videos and steps.

    Videos whose scores are the same in fp32 but for its last bits may change places: none do in these logs.
    """
    keys = ["user_id", "rank", "video_id", "step"]
    theirs = recs.sort("user_id", "rank").select(keys)
    assert mine.select(keys).cast(theirs.schema).equals(theirs)
    numbers = ["score", "log_prob", *HEADS]
    recs = recs.sort("user_id", "rank")
    return {name: float((mine[name].cast(pl.Float64) - recs[name]).abs().max()) for name in numbers}
