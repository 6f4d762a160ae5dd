"""Runs of `score` with many sets of rules over one log, model and engine, without opening these again."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import polars as pl

from genrec_batch.core.options import ScoreConfig
from genrec_batch.events.dataset import Dataset, open_model
from genrec_batch.runtime.clock import Stages
from genrec_batch.scoring.model_run import Scoring
from tests.conftest import START

AS_OF = START + dt.timedelta(days=40)
names = itertools.count()


@dataclass(repr=False)
class Job:
    """Runs in one folder."""

    folder: Path
    model_dir: Path
    log: pl.DataFrame
    opened: object = None
    earlier: list[tuple[str, dict[int, set[int]]]] = field(default_factory=list)

    def __repr__(self):
        return f"job in {self.folder}"  # short, in what Hypothesis tells of a failure

    @cached_property
    def catalog(self):
        return frozenset(pl.read_parquet(self.model_dir / "catalog.parquet")["video_id"])

    def options(self, **options):
        fixed = {"model": str(self.model_dir), "engine": "torch", "precision": "fp32", "min_match": 0.0}
        return ScoreConfig(**{**fixed, "as_of": AS_OF.isoformat(), **options})

    def part(self, config):
        """Return the rows of all users by user, why lists are short, and counts."""
        model, tokens, selection = self.opened or (open_model(config), 0, None)
        dataset = Dataset.open(self.log, config, Stages(), model=model)
        scoring = Scoring.of(config, dataset, Stages(), selection if tokens == dataset.model.tokens else None)
        self.opened = (model, dataset.model.tokens, scoring.selection)
        (done,) = (scoring.results().part(shard) for shard in scoring.ranked(scoring.shards()))
        rows = {}
        for row in pl.DataFrame(done.table).drop("feature_scores").iter_rows(named=True):
            rows.setdefault(row["user_id"], []).append(row)
        why = pl.DataFrame(done.fingerprints).select("user_id", "shortfall")
        return rows, dict(why.iter_rows()), done.counts

    def write(self, frame):
        path = self.folder / f"{next(names)}.parquet"
        frame.write_parquet(path)
        return str(path)

    def listed(self, videos, counting=True):
        """Write a table for all users, whose rows count at as-of or do not."""
        frame = pl.DataFrame({"video_id": sorted(videos)}, {"video_id": pl.Int64})
        day = dt.timedelta(days=1)
        return self.write(frame if counting is True else frame.with_columns(until=pl.lit(AS_OF - day)))

    def own(self, lists):
        """Write a table of each user's own videos."""
        rows = [(user, video) for user, videos in lists.items() for video in sorted(videos)]
        return self.write(pl.DataFrame(rows, {"user_id": pl.Int64, "video_id": pl.Int64}, orient="row"))

    def promotions(self, rows):
        """Write a table of user, video and place, without the user where it is for all."""
        types = {"user_id": pl.Int64, "video_id": pl.Int64, "rank": pl.Int32}
        frame = pl.DataFrame(rows, types, orient="row")
        return self.write(frame.drop("user_id") if rows[0][0] is None else frame)

    def given(self, lists):
        """Write lists of candidates."""
        return self.write(pl.DataFrame({"user_id": list(lists), "video_id": list(lists.values())}))
