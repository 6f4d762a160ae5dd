"""The tables of the demo: a history beside the recommendations, the figures of engines, files and commands.

Owns: Rich tables. Must not know: how the figures are computed. In: rows of the log and of the output. Out: stdout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from genrec_batch.core.arrays import HEADS
from genrec_batch.reports.sections import duration, figure
from genrec_batch.runtime.console import stdout

BESIDE = 150  # columns of a terminal from which two tables are printed side by side
DEEDS = {  # what a person did, by column of the log
    "watch_complete": "watched all",
    "is_liked": "liked",
    "is_favorited": "kept",
    "is_shared": "shared",
    "is_commented": "commented",
    "is_followed_creator": "followed",
}

Row = Mapping[str, Any]


def step(number: int, title: str, command: str) -> None:
    """Print the heading of a step and the command that does the same."""
    stdout.print()
    stdout.rule(Text(f"{number}. {title}"), align="left", style="dim")
    stdout.print(Text(f"$ {command}"), soft_wrap=True, style="bold")


def say(sentence: str) -> None:
    """Print a sentence, wrapped at the terminal's width."""
    stdout.print(Text(sentence))


def beside(user: object, history: Sequence[Row], ranked: Sequence[Row], categories: Mapping[Any, str]) -> None:
    """Print a user's newest events beside the recommendations; one above the other on a narrow terminal."""
    tables = _history(user, history, categories), _ranked(user, ranked, categories)
    if stdout.width < BESIDE:
        for table in tables:
            stdout.print(table)
        return
    both = Table.grid(padding=(0, 4))
    both.add_row(*tables)
    stdout.print(both)


def quality(rows: Sequence[tuple[str, float, float]], titles: Sequence[str]) -> None:
    """Print the metrics of each list, the model's own first."""
    table = _table("", ("list",), titles)
    for name, *values in rows:
        table.add_row(name, *(f"{value:.3f}" for value in values))
    stdout.print(table)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _history(user: object, rows: Sequence[Row], categories: Mapping[Any, str]) -> Table:
    names = ("when (UTC)", "video", *(("category",) if categories else ()), "watched", "and")
    table = _table(f"User {user} watched, newest first", names, ())
    for row in rows:
        seconds, share = row.get("watch_duration"), row.get("watch_percentage")
        watched = [f"{seconds:.0f} s"] if seconds is not None else []
        watched += [f"{share:.0%}"] if share is not None else []
        did = ", ".join(word for column, word in DEEDS.items() if row.get(column))
        category = [categories.get(row["video_id"], "-")] if categories else []
        values = [f"{row['timestamp']:%m-%d %H:%M}", str(row["video_id"]), *category, ", ".join(watched) or "-", did]
        table.add_row(*map(Text, values))
    return table


def _ranked(user: object, rows: Sequence[Row], categories: Mapping[Any, str]) -> Table:
    short = [head[:6] + "." for head in HEADS]
    names = ("rank", "video", *(("category",) if categories else ()))
    table = _table(f"User {user} should see, with the four task scores", names, ("score", *short))
    for row in rows:
        category = [categories.get(row["video_id"], "-")] if categories else []
        values = [str(row["rank"]), str(row["video_id"]), *category, f"{row['score']:.2f}"]
        table.add_row(*map(Text, values), *(f"{row[head]:.3f}" for head in HEADS))
    return table


def engines(rows: Sequence[Row]) -> None:
    """Print latency and throughput by engine and batch size."""
    table = _table("", ("engine",), ("users at once", "typical (p50)", "slow (p95)", "users/s"))
    table.title = None
    for row in rows:
        for point in row["points"]:
            table.add_row(
                f"{row['engine']} {row['precision']}",
                figure(point["batch_users"]),
                duration(point["p50_ms"] / 1e3),
                duration(point["p95_ms"] / 1e3),
                figure(point["users_per_s"]),
            )
    stdout.print(table)


def commands(rows: Sequence[tuple[str, str]]) -> None:
    """Print commands, each under its purpose and without line breaks, so that they can be copied."""
    for purpose, command in rows:
        stdout.print(Text(f"{purpose}:", style="dim"))
        stdout.print(Text(f"  {command}"), soft_wrap=True)


def pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Print names, each with its description."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    stdout.print(table)
