"""How far two inputs meet: the ids of the log, and those of the model's catalog and of every table beside the log.

Owns: match rates, how they are said, and how little is too little. Must not know: files, what the ids are for. A rate
is the share of the smaller side's distinct ids that the other side has too: a table may be larger than the log or
smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from genrec_batch.core.arrays import FIRST_ITEM, I32
from genrec_batch.core.errors import GateError, GenrecError, InputError, ModelError
from genrec_batch.core.options import NEXT_TO_NONE
from genrec_batch.events.survey import Survey
from genrec_batch.model.catalog import Catalog
from genrec_batch.runtime.console import LOG

HALF = 0.5  # rates below it are a warning
FEW = 3  # ids: where the smaller side has fewer, none in common may be chance
FEW_OF_A_BLOCK = 100  # where the log is one block of many, which can have new users and videos alone
SHOWN = 3  # ids of each side in an error
NAMED = 5  # videos of the log that a model does not know


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a join: what it is called in errors, and its distinct ids."""

    name: str
    ids: pl.Series

    def some(self) -> str:
        """Return some ids as text."""
        return ", ".join(repr(value) for value in self.ids.head(SHOWN))


@dataclass(frozen=True, kw_only=True)
class Joins:
    """The log's side of every join, and what the joins found, by name, for the summary."""

    where: str  # names the log in errors
    users: pl.Series  # of the log, distinct
    videos: pl.Series
    least: float  # --min-match
    few: int = FEW
    found: dict[str, dict[str, object]] = field(default_factory=dict)

    @staticmethod
    def of(found: Survey, where: str, least: float, *, block: bool = False) -> Joins:
        """Begin with what a survey found; `block` says that the log is one block of a larger one."""
        few = FEW_OF_A_BLOCK if block else FEW
        return Joins(where=where, users=found.users["user_id"], videos=found.videos["video_id"], least=least, few=few)

    def log(self, key: str) -> Side:
        """Return the log's side of a join on `user_id` or `video_id`."""
        return Side(name=self.where, ids=self.users if key == "user_id" else self.videos)

    def table(self, name: str, table: Side, key: str) -> None:
        """Compare a table's ids with those of the log, of the same type.

        Raises:
            InputError: the table has no rows, or next to none of the ids meet.
            GateError: fewer meet than `--min-match` asks for.
        """
        if not len(table.ids):
            raise InputError(f"{table.name}: no rows, so nothing to join; give a table with rows, or omit the option")
        self._judge(name, table, self.log(key), _met(table, self.log(key)), key, InputError)

    def users_only(self, listed: Side, ids: pl.Series) -> None:
        """Compare the users to score with all that there are, in the log and in the tables.

        Raises:
            InputError: next to none of them is there.
            GateError: fewer are than `--min-match` asks for.
        """
        there = Side(name=f"{self.where} and its tables", ids=ids)
        met = _met(listed, there)
        self._judge("users_only", listed, there, met, "user_id", InputError, few=1 if self.few == FEW else self.few)
        if met < len(listed.ids):
            LOG.warning("%s: %s of its users are in no input and not scored", listed.name, f"{len(listed.ids) - met:,}")

    def catalog(self, catalog: Catalog, token_V: I32, events_V: pl.Series, name: str) -> None:
        """Compare the model's catalog with the log, whose videos have these tokens and numbers of events.

        Raises:
            ModelError: next to none of the ids meet.
            GateError: fewer meet than `--min-match` asks for.
        """
        if not len(token_V):
            return
        known_V = token_V >= FIRST_ITEM
        events = events_V.to_numpy().astype(np.int64)
        share = float(events[known_V].sum() / events.sum())
        side = Side(name=name, ids=catalog.items["video_id"])
        self._judge("catalog", side, self.log("video_id"), int(known_V.sum()), "video_id", ModelError)
        self.found["catalog"]["share_of_events"] = round(share, 4)
        if share < HALF:
            LOG.warning(
                "%s: only %s of the log's events are of videos that the model knows; train on this log, or with a "
                "larger vocabulary",
                name, f"{share:.1%}",
            )  # fmt: skip

    def candidates(self, side: Side, catalog: Catalog) -> None:
        """Compare given candidates with the catalog.

        Raises:
            InputError: there are none, or next to none of them is in the catalog.
            GateError: fewer are than `--min-match` asks for.
        """
        if not len(side.ids):
            raise InputError(f"{side.name}: no video in any of its lists, so nothing to score")
        met = int((catalog.tokens(side.ids) >= FIRST_ITEM).sum())
        ours = Side(name="the model's catalog", ids=catalog.items["video_id"])
        self._judge("candidate_videos", side, ours, met, "video_id", InputError, few=1)

    def rule(self, name: str, side: Side, catalog: Catalog) -> None:
        """Compare the videos of a rule with those of the catalog and of the log; one that is in neither has no effect.

        Raises:
            InputError: none of them is in either.
        """
        known = (catalog.tokens(side.ids) >= FIRST_ITEM) | side.ids.is_in(self.videos.implode())
        met = int(known.sum())
        self.found[name] = {"ids": len(side.ids), "against": "catalog and log", "met": met}
        said = f"{side.name}: {met:,} of its {len(side.ids):,} video_id are in the model's catalog or in {self.where}"
        if not met and self.least:
            raise InputError(
                f"{said}, so the rule has no effect; its video_id: {side.some()}; there: "
                f"{Side(name='', ids=catalog.items['video_id']).some()}. Give the one whose ids are those of this log, "
                "or --min-match 0 to go on all the same"
            )
        LOG.info("%s", said)

    def _judge(
        self, name: str, table: Side, other: Side, met: int, key: str, error: type[GenrecError], few: int | None = None
    ) -> None:
        smaller = min(len(table.ids), len(other.ids))
        share = met / smaller if smaller else 1.0
        self.found[name] = {
            "ids": len(table.ids),
            "against": "catalog" if name == "candidate_videos" else "log",
            "against_ids": len(other.ids),
            "met": met,
            "share": round(share, 4),
        }
        said = f"{table.name}: {met:,} of its {len(table.ids):,} {key} are among the {len(other.ids):,} of {other.name}"
        LOG.info("%s", said)
        if share >= max(self.least, HALF):
            return
        shown = f"its {key}: {table.some()}; there: {other.some()}"
        if share < min(self.least, NEXT_TO_NONE) and smaller >= (few or self.few):
            raise error(
                f"{said}, so next to nothing joins; {shown}. Give the one whose ids are those of this log, or "
                "--min-match 0 to go on all the same"
            )
        if share < self.least and self.least > NEXT_TO_NONE:
            raise GateError(f"{said}, a share of {share:.3f} of the smaller side, less than --min-match {self.least}")
        LOG.warning("%s, under half of the smaller side: %s", said, shown)


def not_in_catalog(videos: pl.DataFrame, token_V: I32, model: Path | None) -> dict[str, object]:
    """Return how many videos of a log (columns video_id and count, tokens V) a model does not know, and some of them.

    Nothing where the catalog has all of them, or is that of the log itself because there is no `model`.
    """
    missing = videos.filter(pl.Series(token_V < FIRST_ITEM, dtype=pl.Boolean))
    if model is None or not len(missing):
        return {}
    most = missing.sort(["count", "video_id"], descending=[True, False]).head(NAMED)
    views = int(missing["count"].sum())
    LOG.info(
        "%s videos of the log, with %s views, are not in the model's catalog and cannot be recommended by it; most "
        "viewed: %s",
        f"{len(missing):,}", f"{views:,}", ", ".join(map(str, most["video_id"])),
    )  # fmt: skip
    return {
        "videos_not_in_catalog": {
            "videos": len(missing),
            "views": views,
            "most_viewed": [{"video_id": video, "views": count} for video, count in most.iter_rows()],
        }
    }


def _met(one: Side, other: Side) -> int:
    return int(one.ids.is_in(other.ids.implode()).sum())
