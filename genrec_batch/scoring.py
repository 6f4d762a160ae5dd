"""Parts of users through an engine: batches in, ranked rows out, the device never waiting for one part to end.

Owns: the engine of a run, batches across parts, what happens when a device is full, and each part's counts. Must not
know: where histories come from, files. In: parts of users in id order. Out: a table of recommendations for each.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from genrec_batch import carrying, console, features, recommendations
from genrec_batch.arrays import FIRST_ITEM, I64, Batch, Ranked
from genrec_batch.batching import Part
from genrec_batch.config import ScoreConfig
from genrec_batch.console import LOG
from genrec_batch.errors import ConfigError, DeviceMemoryError
from genrec_batch.generate import Decoding, blend, recommend_all
from genrec_batch.job import Job
from genrec_batch.profiling import Stages
from genrec_batch.recommendations import Ranking
from genrec_batch.selection import Selection, decoding_of, reference_engine, sample_rows, select
from genrec_batch.verifying import measured


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Users `start`..`stop` of a job: one part of the output.

    `rows` are those of them to score, whom alone `part` is about; None for all. `prints` are everybody's fingerprints.
    """

    number: int
    start: int
    stop: int
    part: Part
    prints: carrying.U64
    rows: I64 | None


@dataclass(kw_only=True)
class Scored:
    """A shard whose users come back from the engine batch by batch."""

    shard: Shard
    ranking: Ranking
    left: int  # users still on their way


@dataclass(kw_only=True)
class Scoring:
    """A job with its engine: turns parts of users into rankings."""

    config: ScoreConfig
    job: Job
    stages: Stages
    selection: Selection
    decoding: Decoding
    batch_users: int = 0  # of a batch, at most; halved where the device is too small
    scored_users: int = 0
    short_users: int = 0
    padding: list[int] = field(default_factory=lambda: [0, 0])  # real tokens, tokens computed
    _pending: deque[tuple[Scored, I64]] = field(default_factory=deque)  # given to the engine, not back yet
    _empty: deque[Scored] = field(default_factory=deque)

    @staticmethod
    def of(config: ScoreConfig, job: Job, stages: Stages, selection: Selection | None = None) -> Scoring:
        """Open the engine of a run, or go on with one that is open.

        Raises:
            ConfigError: the history and the decoded items do not fit the model's positions.
            EngineError: what was asked for is not there.
            GateError: `--verify-sample` found that it does not agree with fp32.
        """
        read = config.top_k if config.decode == "slate" and not config.candidates else 1  # items read after the history
        need, have = 1 + config.max_events + read, job.model.config.positions
        if need > have:
            raise ConfigError(
                f"--max-events {config.max_events} with --top-k {config.top_k} needs {need} positions, the model has "
                f"{have}"
            )
        decoding = decoding_of(config, job.model)
        if selection is not None:
            return Scoring(config=config, job=job, stages=stages, selection=selection, decoding=decoding)

        with stages.time("engine"):
            first = job.first_shard()
            rows = sample_rows(first.lengths_N)
            sample = Part.of(job, first, 0, config, rows).batch(np.arange(len(rows)))
            selection = select(
                job.model,
                sample,
                decoding,
                name=config.engine,
                device=config.device,
                precision=config.precision,
                batch_size=config.batch_size,
            )
        LOG.info("engine: %s", selection.why)
        if config.verify_sample:
            with stages.time("verify"):
                rows = sample_rows(job.first_shard().lengths_N, most=config.verify_sample)
                reference = reference_engine(job.model)
                found = measured(config, job, decoding, rows, selection.engine, reference)
            LOG.info("verified over %d users: %s", len(rows), found.as_dict())
            found.check(min_topk_overlap=config.min_topk_overlap, min_top1=0.0, max_difference=None)
        return Scoring(config=config, job=job, stages=stages, selection=selection, decoding=decoding)

    def __post_init__(self) -> None:
        asked = self.config.batch_size
        self.batch_users = self.selection.batch_users if asked == "auto" else int(asked)

    def rank(self, shards: Iterator[Shard], advance: console.Advance = console.nowhere) -> Iterator[Scored]:
        """Yield each shard, in order, with what the engine recommends to its users.

        Where the device runs out of memory, what is left goes on in batches of half the size, down to one user.
        """
        batches = self._cut(shards)
        weights = self.config.blend()
        while True:
            answers = recommend_all(self.selection.engine, self._handed(batches), self.decoding)
            try:
                while True:
                    with self.stages.time("model run"):
                        ranked = next(answers, None)
                    if ranked is None:
                        yield from self._whole(None)
                        return
                    scored, rows_B = self._pending.popleft()
                    self._put(scored, rows_B, ranked, blend(ranked, weights))
                    advance(len(rows_B))
                    yield from self._whole(scored)
            except DeviceMemoryError as error:
                batches = self._smaller(batches, error)

    def _whole(self, scored: Scored | None) -> Iterator[Scored]:
        """Yield a shard whose users are all back, and those that had nobody to score."""
        if scored is not None and not scored.left:
            yield scored
        while self._empty:
            yield self._empty.popleft()

    def _cut(self, shards: Iterator[Shard]) -> Iterator[tuple[Scored, I64]]:
        for shard in shards:
            users = len(shard.part.histories)
            scored = Scored(shard=shard, ranking=Ranking.empty(users, self.config.top_k), left=users)
            if not users:
                self._empty.append(scored)
                continue
            spans = deque(shard.part.spans(self.batch_users))
            while spans:
                rows_B = spans.popleft()
                if len(rows_B) > self.batch_users:  # it has become smaller since they were cut
                    spans.extendleft(reversed(_pieces(rows_B, self.batch_users)))
                else:
                    yield scored, rows_B

    def _handed(self, batches: Iterator[tuple[Scored, I64]]) -> Iterator[Batch]:
        for scored, rows_B in batches:
            with self.stages.time("batch", rows=len(rows_B)):
                batch = scored.shard.part.batch(rows_B)
            self._pending.append((scored, rows_B))
            yield batch

    def _smaller(self, batches: Iterator[tuple[Scored, I64]], error: DeviceMemoryError) -> Iterator[tuple[Scored, I64]]:
        """Return what is left in batches of half the size.

        Raises:
            DeviceMemoryError: one user alone does not fit.
        """
        lost = list(self._pending)
        self._pending.clear()
        size = max((len(rows_B) for _, rows_B in lost), default=1)
        if size == 1:
            raise error
        self.batch_users = size // 2
        LOG.warning("out of memory with %d users in a batch, going on with %d (%s)", size, size // 2, error)
        again = [(scored, piece) for scored, rows_B in lost for piece in _pieces(rows_B, self.batch_users)]
        return itertools.chain(again, batches)

    def _put(self, scored: Scored, rows_B: I64, ranked: Ranked, score_BK: Any) -> None:
        lengths_B = scored.shard.part.histories.lengths_N[rows_B]
        scored.ranking.put(rows_B, ranked, score_BK)
        scored.left -= len(rows_B)
        self.padding[0] += int(lengths_B.sum()) + len(rows_B)
        self.padding[1] += (int(lengths_B.max()) + 1) * len(rows_B)
        self.scored_users += len(rows_B)

    def table(self, scored: Scored) -> tuple[pa.Table, dict[str, int]]:
        """Return the rows of a shard in id order, and its counts."""
        job, shard = self.job, scored.shard
        part, ranking = shard.part, scored.ranking
        ids = job.users.ids.slice(shard.start, shard.stop - shard.start)
        with self.stages.time("rows", rows=len(part.histories)):
            short = int(((ranking.tokens_NK > 0).sum(axis=1) < part.wanted_N(self.config.top_k)).sum())
            cold_N = part.histories.cold_start_N()
            rows = recommendations.table(
                ids if shard.rows is None else ids.gather(shard.rows),
                ranking,
                catalog=job.catalog,
                video_type=job.video_type,
                feature_scores_N3=features.feature_scores(part.dense_NF),
                history_length_N=part.histories.lengths_N,
                cold_start_N=cold_N,
                nested=self.config.layout == "nested",
            )
        return rows, {
            "cold_start_users": int(cold_N.sum()),
            "unknown_events": int((part.histories.tokens_E < FIRST_ITEM).sum()),
            "short_users": short,
            **({"seen_candidates": part.seen_candidates()} if part.candidates is not None else {}),
        }

    def report(self) -> dict[str, Any]:
        """Return what the summary says of the engine and the decoding."""
        engine, (real, computed) = self.selection.engine, self.padding
        return {
            "engine": engine.name,
            "device": engine.device,
            "precision": engine.precision,
            "engine_why": self.selection.why,
            "batch_users": self.batch_users,
            "features_kernel": features.kernel_name(len(self.job)),
            "scored_users": self.scored_users,
            "padding_share": round(1 - real / computed, 4) if computed else 0.0,  # of the scored ones
        }


def _pieces(rows_B: I64, most: int) -> list[I64]:
    return [rows_B[start : start + most] for start in range(0, len(rows_B), most)]
