"""A finished output of any layout, made without a model."""

from __future__ import annotations

import json

import polars as pl

from genrec_batch.io import output
from genrec_batch.io.recommended import FORM

ITEMS = ["rank", "video_id", "score", "title"]


def rows(users, *, night=0, top_k=3):
    """Long rows of users 0, 1, 2, ...; the titles and ids name the night."""
    ids = pl.DataFrame({"user_id": range(users)})
    ranks = pl.DataFrame({"rank": pl.Series(range(1, top_k + 1), dtype=pl.Int32)})
    long = ids.join(ranks, how="cross")
    return long.with_columns(
        video_id=pl.col("user_id") * 100 + pl.col("rank") + 1_000_000 * night,
        score=(-pl.col("rank") / 8).cast(pl.Float32),
        title=pl.format('night {}, "{}"', pl.lit(night), "rank"),
        about=pl.struct(like=pl.col("user_id") / 4, tags=pl.concat_list(pl.lit("a"), pl.lit("b"))),
    )


def write(path, users, *, night=0, layout="long", shard=7, top_k=3):
    """Write an output of `layout`, in parts of `shard` users."""
    long = rows(users, night=night, top_k=top_k)
    about = {FORM: json.dumps({"items": ITEMS, "layout": layout}), "genrec.users": str(users)}
    out = output.open_output(path, {"night": night, "users": users, "layout": layout}, "overwrite")
    out.metadata |= about
    for number, start in enumerate(range(0, users, shard)):
        some = long.filter(pl.col("user_id").is_between(start, start + shard - 1))
        out.write(number, shaped(some, layout, top_k).to_arrow(compat_level=pl.CompatLevel.oldest()))
    out.finish()
    return long


def shaped(long, layout, top_k):
    """Return long rows in a layout."""
    if layout == "long":
        return long
    by_user = long.group_by("user_id", "about", maintain_order=True)
    if layout == "nested":
        return by_user.agg("video_id", "score", "title")
    items = ("video_id", "score", "title")
    places = [pl.col(name).get(rank - 1).alias(f"{name}_{rank}") for name in items for rank in range(1, top_k + 1)]
    return by_user.agg(places)
