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

from genrec_batch import features
from genrec_batch.core.arrays import F32, FIRST_ITEM, I64, U8, U64, Batch, Ranked
from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import Opening, Selection, decoding_of, prepare
from genrec_batch.engines.decode import Decoding, blend, recommend_all
from genrec_batch.engines.protocol import Engine
from genrec_batch.events import by_user
from genrec_batch.events.dataset import Dataset
from genrec_batch.features.batches import ModelInputs, Vectorizer, mixed
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring import rows as recommendations
from genrec_batch.scoring.engine import open_engine
from genrec_batch.scoring.rows import Ranking


@dataclass(frozen=True, kw_only=True)
class ShardBatches:
    """Users `start`..`stop` of a run: one part of the output, ready for the engine.

    `rows` are those of them to score, None for all; S is their number. What has no S is of all N of them.
    """

    number: int
    start: int
    stop: int
    rows: I64 | None
    prints: U64
    batches: deque[tuple[I64, Batch]]  # places among the S users, and what the engine reads of them
    lengths_S: I64
    cold_S: U8
    feature_scores_S3: F32
    wanted_N: I64  # items that each could get at most
    cold_users: int
    unknown_events: int
    seen_candidates: int  # given ones that are left out

    def __len__(self) -> int:
        return len(self.lengths_S)

    @staticmethod
    def of(
        part: ModelInputs,
        number: int,
        start: int,
        stop: int,
        *,
        rows: I64 | None,
        prints: U64,
        size: int,
        room: int,
        top_k: int,
    ) -> ShardBatches:
        """Cut `rows` of a part into batches as `ModelInputs.spans` does; nothing of the part is held beside them."""
        mine = part if rows is None else part.take(rows)
        return ShardBatches(
            number=number,
            start=start,
            stop=stop,
            rows=rows,
            prints=prints,
            batches=deque((rows_B, mine.batch(rows_B)) for rows_B in mine.spans(size, room=room)),
            lengths_S=mine.histories.lengths_N,
            cold_S=mine.histories.cold_start_N(),
            feature_scores_S3=features.feature_scores(mine.dense_NF),
            wanted_N=part.wanted_N(top_k),
            cold_users=int(part.histories.cold_start_N().sum()),
            unknown_events=int((part.histories.tokens_E < FIRST_ITEM).sum()),
            seen_candidates=part.seen_candidates(),
        )


@dataclass(kw_only=True)
class Scored:
    """A shard whose users come back from the engine batch by batch."""

    shard: ShardBatches
    left: int  # users still on their way
    answers: list[tuple[I64, Ranked]] = field(default_factory=list)  # what came back, and of whom


Handed = tuple[Scored, I64, Batch]  # a batch, whose it is, and their places there


@dataclass(kw_only=True)
class Scoring:
    """A data set with its engine: turns shards of users into rankings."""

    config: ScoreConfig
    dataset: Dataset
    vectorizer: Vectorizer
    stages: Stages
    selection: Selection
    decoding: Decoding
    batch_users: int = 0  # of a batch, at most; halved where the device is too small
    scored_users: int = 0
    padding: list[int] = field(default_factory=lambda: [0, 0])  # real tokens, tokens computed
    _pending: deque[Handed] = field(default_factory=deque)  # given to the engine, not back yet
    _empty: deque[Scored] = field(default_factory=deque)

    @staticmethod
    def of(
        config: ScoreConfig,
        dataset: Dataset,
        stages: Stages,
        selection: Selection | None = None,
        ahead: Opening | None = None,
    ) -> Scoring:
        """Open the engine of a run, or go on with one that is open; `ahead` is a head start.

        Raises:
            EngineError: what was asked for is not there.
            GateError: `--verify-sample` found that it does not agree with fp32.
        """
        decoding = decoding_of(config, dataset.model)
        vectorizer = Vectorizer.of(dataset, include_seen=config.include_seen)
        if selection is None:
            selection = open_engine(config, dataset, vectorizer, stages, ahead)
        elif not config.candidates:
            prepare(selection.engine, decoding, longest=config.max_events, mean=dataset.users.mean_events)
        return Scoring(
            config=config,
            dataset=dataset,
            vectorizer=vectorizer,
            stages=stages,
            selection=selection,
            decoding=decoding,
        )

    def __post_init__(self) -> None:
        asked = self.config.batch_size
        self.batch_users = self.selection.batch_users if asked == "auto" else int(asked)

    @property
    def room(self) -> int:
        """Positions of a batch whose rows the engine lays end to end, 0 where it does not."""
        return self.selection.engine.room(self.batch_users)

    def rank(self, shards: Iterator[ShardBatches], advance: console.Advance = console.nowhere) -> Iterator[Scored]:
        """Yield each shard, in order, with what the engine recommends to its users.

        Where the device runs out of memory, what is left goes on in batches of half the size, down to one user.
        """
        batches = self._cut(shards)
        while True:
            answers = recommend_all(self.selection.engine, self._handed(batches), self.decoding, self.stages.add)
            try:
                while True:
                    with self.stages.time("model run"):
                        ranked = next(answers, None)
                    if ranked is None:
                        yield from self._whole(None)
                        return
                    scored, rows_B, _ = self._pending.popleft()
                    self._put(scored, rows_B, ranked)
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

    def _cut(self, shards: Iterator[ShardBatches]) -> Iterator[Handed]:
        for shard in shards:
            scored = Scored(shard=shard, left=len(shard))
            if not len(shard):
                self._empty.append(scored)
            while shard.batches:
                rows_B, batch = shard.batches.popleft()
                yield from _pieces(scored, rows_B, batch, self.batch_users, self.room)

    def _handed(self, batches: Iterator[Handed]) -> Iterator[Batch]:
        waiting = iter(batches)
        while True:
            with self.stages.time("wait"):
                handed = next(waiting, None)
            if handed is None:
                return
            self._pending.append(handed)
            yield handed[2]

    def _smaller(self, batches: Iterator[Handed], error: DeviceMemoryError) -> Iterator[Handed]:
        """Return what is left in batches of half the size.

        Raises:
            DeviceMemoryError: one user alone does not fit.
        """
        lost = list(self._pending)
        self._pending.clear()
        size = max((len(batch) for _, _, batch in lost), default=1)
        if size == 1:
            if self.decoding.beam_width == 1:
                raise error
            raise DeviceMemoryError(
                f"one user's {self.decoding.beam_width:,} beams do not fit: lower --beam-width"
            ) from error
        self.batch_users = size // 2
        self.selection.engine.resize(self.batch_users)
        LOG.warning("out of memory with %d users in a batch, going on with %d (%s)", size, size // 2, error)
        again = [piece for handed in lost for piece in _pieces(*handed, self.batch_users, self.room)]
        return itertools.chain(again, batches)

    def _put(self, scored: Scored, rows_B: I64, ranked: Ranked) -> None:
        lengths_B = scored.shard.lengths_S[rows_B]
        scored.answers.append((rows_B, ranked))
        scored.left -= len(rows_B)
        self.padding[0] += int(lengths_B.sum()) + len(rows_B)
        self.padding[1] += self.selection.engine.computed(lengths_B)
        self.scored_users += len(rows_B)

    def table(self, scored: Scored) -> tuple[pa.Table, dict[str, int]]:
        """Return the rows of a shard's scored users in id order, and the counts: `short_users` of them, else of all."""
        dataset, shard = self.dataset, scored.shard
        ids = dataset.users.ids.slice(shard.start, shard.stop - shard.start)
        with self.stages.time("rows", rows=len(shard)):
            ranking, weights = Ranking.empty(len(shard), self.config.top_k), self.config.blend()
            for rows_B, ranked in scored.answers:
                ranking.put(rows_B, ranked, blend(ranked, weights))
            wanted_S = shard.wanted_N if shard.rows is None else shard.wanted_N[shard.rows]
            short = int(((ranking.tokens_NK > 0).sum(axis=1) < wanted_S).sum())
            rows = recommendations.table(
                ids if shard.rows is None else ids.gather(shard.rows),
                ranking,
                catalog=dataset.catalog,
                video_type=dataset.video_type,
                feature_scores_N3=shard.feature_scores_S3,
                history_length_N=shard.lengths_S,
                cold_start_N=shard.cold_S,
                nested=self.config.layout == "nested",
            )
        return rows, {
            "cold_start_users": shard.cold_users,
            "unknown_events": shard.unknown_events,
            "short_users": short,
            **({"seen_candidates": shard.seen_candidates} if dataset.tables.candidates is not None else {}),
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
            "features_kernel": features.kernel_name(len(self.dataset.users)),
            **_device_peak(engine),
            "scored_users": self.scored_users,
            "padding_share": round(1 - real / computed, 4) if computed else 0.0,  # of the scored ones
        }


def _device_peak(engine: Engine) -> dict[str, float]:
    peak_bytes = engine.peak_bytes()
    return {} if peak_bytes is None else {"device_peak_mib": round(peak_bytes / 2**20, 1)}


def _pieces(scored: Scored, rows_B: I64, batch: Batch, most: int, room: int) -> Iterator[Handed]:
    """Yield a batch in pieces of at most `most` users, and `room` positions if it is not 0; one no larger as it is."""
    lengths_B = batch.lengths_B.astype(np.int64)
    if len(batch) <= most and (not room or int(lengths_B.sum()) + len(batch) <= room):
        yield scored, rows_B, batch
        return
    pairs = mixed(lengths_B, most, room) if room else by_user.shards(len(batch), most)
    for start, stop in pairs:
        yield scored, rows_B[start:stop], batch.rows(start, stop)
