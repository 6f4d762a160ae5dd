"""The command `export`.

Owns: its arguments and what it prints. Must not know: how anything is exported.
"""

from __future__ import annotations

from typing import Annotated

import typer

from genrec_batch.cli.exits import done
from genrec_batch.cli.flags import beginning, options
from genrec_batch.core.options import LogConfig
from genrec_batch.runtime import console


@options(LogConfig)
def export(
    recs: Annotated[str, typer.Argument(metavar="RECS", help="What `score` wrote: a .parquet file or a directory.")],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A file that ends in .jsonl, .ndjson or .csv (.gz and .zst compress it), or redis://HOST:PORT/DB; the "
            "password is that of the URL, else of REDISCLI_AUTH.",
        ),
    ],
    *,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns to export, in this order. Default: all; to Redis video_id,score."),
    ] = None,
    key: Annotated[str, typer.Option(help="Redis: key of a user's recommendations.")] = "recs:{user_id}",
    value: Annotated[
        str,
        typer.Option(
            help="Redis: json, a list of objects with the columns; or ids, video ids with commas between.",
            autocompletion=beginning(("json", "ids")),
        ),
    ] = "json",
    pointer: Annotated[
        str | None,
        typer.Option(help="Redis: key that names the live version. Default: that of --key with `live` as its user."),
    ] = None,
    ttl: Annotated[
        str | None, typer.Option(help="Redis: time after which the new version expires, such as 2d. Default: never.")
    ] = None,
    keep_old: Annotated[
        str, typer.Option(help="Redis: time after which the version before expires, for readers that still use it.")
    ] = "1h",
    if_exists: Annotated[str, typer.Option(help="What to do if the file exists: error or overwrite.")] = "error",
) -> None:
    """Export a finished output: to JSON lines, to CSV, or to Redis for an online store.

    Example: genrec-batch export recs.parquet redis://localhost:6379/0 --ttl 2d
    """
    from genrec_batch.exports.run import Export, exported

    wanted = Export(
        recs=recs,
        target=target,
        columns=columns,
        key=key,
        value=value,
        pointer=pointer,
        ttl=ttl,
        keep_old=keep_old,
        if_exists=if_exists,
    )
    summary = exported(wanted)
    with done("the export itself is done"):
        console.last_line(summary)
