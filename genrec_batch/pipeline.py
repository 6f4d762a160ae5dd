"""The whole job: events in, histories, features, batches through an engine, ranked rows out.

Owns: the order of the steps, shards, batches, lineage, and the summary. Must not know: how any step does its work, or
who called. Users go through in id order, a shard at a time; within a shard, batches hold users of like history length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from genrec_batch import __version__, console, features, layout, output, recommendations
from genrec_batch.arrays import F32, FIRST_ITEM, I64, Batch, Histories
from genrec_batch.config import HistoryConfig, ScoreConfig, resolved
from genrec_batch.console import LOG
from genrec_batch.engines import Engine
from genrec_batch.errors import ConfigError
from genrec_batch.generate import Decoding, blend, recommend
from genrec_batch.job import Job, prepare, read_log
from genrec_batch.profiling import Stages, peak_rss_mib
from genrec_batch.recommendations import Ranking
from genrec_batch.selection import Selection, sample_rows, select

BATCH_USERS = 256  # on a CPU more gains nothing
SHORT = "users have fewer than --top-k videos left to recommend and get fewer rows"


def score(config: ScoreConfig, source: str, target: str | None, stages: Stages | None = None) -> dict[str, Any]:
    """Score a log and write its recommendations; return the run's summary, and the rows themselves without a target.

    Raises:
        GenrecError: see its subclasses; each carries the exit code of its kind.
    """
    stages = stages or Stages()
    if target is not None:
        output.check(Path(target))
    events, facts, log = read_log(source, config, stages)
    inputs: dict[str, object] = {"events": log.snapshot()}
    job = prepare(config, events, stages, path=source, facts=facts, inputs=inputs, candidates=config.candidates)
    scoring = Scoring.of(config, job, stages)
    identity = lineage(config, job, engine=scoring.selection.engine)
    if target is None:
        tables = [scoring.shard(start, stop) for start, stop in shards(len(job), config.shard_users)]
        return summary("score", job, stages, identity, scoring.report()) | {"rows": pa.concat_tables(tables)}
    return run("score", config, job, scoring.shard, identity, Path(target), stages, scoring.report)


def write_features(config: HistoryConfig, source: str, target: str) -> dict[str, Any]:
    """Write what the model would read of each user: user_id, features, tokens (newest last), history_length."""
    stages = Stages()
    output.check(Path(target))
    events, facts, log = read_log(source, config, stages)
    job = prepare(config, events, stages, path=source, facts=facts, inputs={"events": log.snapshot()})
    identity = lineage(config, job, engine=None)

    def shard(start: int, stop: int) -> pa.Table:
        part = job.histories.slice(start, stop)
        with stages.time("features"):
            dense_NF = features.compute(part, job.users, job.videos, max_events=config.max_events)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(dense_NF.reshape(-1)), layout.FEATURES)
        tokens = pa.ListArray.from_arrays(pa.array(part.offsets_N1.astype(np.int32)), pa.array(part.tokens_E))
        ids = job.user_ids.slice(start, stop - start).to_arrow(compat_level=pl.CompatLevel.oldest())
        columns = [ids, flat.cast(pa.list_(pa.float32())), tokens, pa.array(part.lengths_N.astype(np.int32))]
        return pa.table(columns, names=["user_id", "features", "tokens", "history_length"])

    return run("features", config, job, shard, identity, Path(target), stages, dict)


@dataclass(kw_only=True)
class Scoring:
    """A job with its engine: turns shards of users into tables of recommendations."""

    config: ScoreConfig
    job: Job
    stages: Stages
    selection: Selection
    decoding: Decoding
    short_users: int = 0
    padding: list[int] = field(default_factory=lambda: [0, 0])  # real tokens, tokens computed

    @staticmethod
    def of(config: ScoreConfig, job: Job, stages: Stages, selection: Selection | None = None) -> Scoring:
        """Open the engine of a run, or go on with one that is open.

        Raises:
            ConfigError: the history and the decoded items do not fit the model's positions.
            EngineError: what was asked for is not there.
        """
        need, have = 1 + config.max_events + config.top_k, job.model.config.positions
        if need > have:
            raise ConfigError(
                f"--max-events {config.max_events} with --top-k {config.top_k} needs {need} positions, of {have}"
            )
        decoding = Decoding(
            mode=config.decode,
            top_k=config.top_k,
            num_candidates=min(config.num_candidates, job.model.tokens),
            beam_width=config.beam_width,
        )
        if selection is not None:
            return Scoring(config=config, job=job, stages=stages, selection=selection, decoding=decoding)
        rows = sample_rows(job.histories.lengths_N)
        with stages.time("engine"):
            sample = next(iter(_batches(config, job, job.histories.take(rows), rows, [0, 0], len(rows))))[1]
            selection = select(
                job.model, sample, decoding, name=config.engine, device=config.device, precision=config.precision
            )
        LOG.info("engine: %s", selection.why)
        return Scoring(config=config, job=job, stages=stages, selection=selection, decoding=decoding)

    def shard(self, start: int, stop: int, advance: console.Advance = console.nowhere) -> pa.Table:
        """Return the recommendations of users start..stop of the job, in id order."""
        job, config, stages = self.job, self.config, self.stages
        part = job.histories.slice(start, stop)
        with stages.time("features"):
            dense_NF = features.compute(part, job.users, job.videos, max_events=config.max_events)
        weights = config.blend()
        ranking = Ranking.empty(stop - start, config.top_k)
        everybody = np.arange(start, stop)
        size = BATCH_USERS if config.batch_size == "auto" else int(config.batch_size)
        for rows_B, batch in _batches(config, job, part, everybody, self.padding, size, dense_NF):
            with stages.time("model run"):
                ranked = recommend(self.selection.engine, batch, self.decoding)
            ranking.put(rows_B, ranked, blend(ranked, weights))
            advance(len(batch))
        wanted_N = config.top_k if job.candidates is None else np.minimum(config.top_k, _given(job, start, stop))
        self.short_users += int(((ranking.tokens_NK > 0).sum(axis=1) < wanted_N).sum())
        with stages.time("rows"):
            return recommendations.table(
                job.user_ids.slice(start, stop - start),
                ranking,
                catalog=job.catalog,
                video_type=job.video_type,
                feature_scores_N3=features.feature_scores(dense_NF),
                history_length_N=part.lengths_N,
                cold_start_N=_cold_start(part),
                nested=config.layout == "nested",
            )

    def report(self) -> dict[str, Any]:
        """Return what the summary says of the engine and the decoding."""
        engine, (real, computed) = self.selection.engine, self.padding
        if self.short_users:
            LOG.warning("%s %s", f"{self.short_users:,}", SHORT)
        return {
            "engine": engine.name,
            "device": engine.device,
            "precision": engine.precision,
            "engine_why": self.selection.why,
            "short_users": self.short_users,
            "padding_share": round(1 - real / computed, 4) if computed else 0.0,
        }


def _given(job: Job, start: int, stop: int) -> I64:
    assert job.candidates is not None
    return job.candidates.slice(start, stop).lengths_N


def _cold_start(part: Histories) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    known_E = (part.tokens_E >= FIRST_ITEM).astype(np.int64)
    user_E = np.repeat(np.arange(len(part)), part.lengths_N)
    cold: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.bincount(user_E, known_E, len(part)) == 0
    return cold


def _batches(
    config: ScoreConfig,
    job: Job,
    part: Histories,
    users_N: I64,
    padding: list[int],
    size: int,
    dense_NF: F32 | None = None,
) -> Iterator[tuple[I64, Batch]]:
    """Yield (rows of `part`, batch), users of like length together, longest first; `users_N` are rows of the job."""
    if dense_NF is None:
        dense_NF = features.compute(part, job.users, job.videos, max_events=config.max_events)
    profile = features.profile_vectors(part, job.users) if job.users is not None else None
    video = features.video_vectors(part, job.videos) if job.videos is not None else None
    tokens = part.token_rows()
    order_N = np.argsort(-part.lengths_N, kind="stable")
    for first, stop in cuts(part.lengths_N[order_N], size):
        rows_B = order_N[first:stop]
        tokens_BS = tokens.padded(rows_B)
        seen_BX = np.zeros((len(rows_B), 1), np.int32) if config.include_seen else part.seen.padded(rows_B)
        lengths_B = part.lengths_N[rows_B].astype(np.int32)
        padding[0] += int(lengths_B.sum()) + len(rows_B)
        padding[1] += tokens_BS.size + len(rows_B)
        yield (
            rows_B,
            Batch(
                dense_BF=dense_NF[rows_B],
                tokens_BS=tokens_BS,
                lengths_B=lengths_B,
                seen_BX=seen_BX,
                candidates_BC=None if job.candidates is None else job.candidates.padded(users_N[rows_B]),
                profile_BP=None if profile is None else profile[0][rows_B],
                has_profile_B=None if profile is None else profile[1][rows_B],
                video_BV=None if video is None else video[0][rows_B],
                has_video_B=None if video is None else video[1][rows_B],
            ),
        )


def cuts(falling_N: I64, size: int) -> list[tuple[int, int]]:
    """Return the (start, stop) of batches over falling history lengths: at most `size` users, little padding.

    A batch of at least a quarter of `size` ends where a row would be padded to more than 1.3 times its positions.
    """
    positions_N = falling_N + 1
    batches, start = [], 0
    while start < len(positions_N):
        long_enough = int(np.searchsorted(-positions_N, -positions_N[start] / 1.3, side="right"))
        stop = min(len(positions_N), start + size, max(long_enough, start + max(1, size // 4)))
        batches.append((start, stop))
        start = stop
    return batches


def shards(users: int, size: int) -> list[tuple[int, int]]:
    """Return the (start, stop) of each part of `size` users."""
    return [(start, min(users, start + size)) for start in range(0, users, size)]


def lineage(config: HistoryConfig, job: Job, engine: Engine | None) -> dict[str, Any]:
    """Return what decides a run's bytes: version, fingerprints, engine, config, inputs. No clock, no machine."""
    return {
        "version": __version__,
        "model": job.model.fingerprint,
        "catalog": job.catalog.fingerprint(),
        "layout": layout.fingerprint(),
        "engine": engine.name if engine else "none",
        "precision": engine.precision if engine else "none",
        "config": resolved(config),
        "input": job.inputs,
    }


def run(
    command: str,
    config: HistoryConfig,
    job: Job,
    shard: Any,
    identity: dict[str, Any],
    target: Path,
    stages: Stages,
    report: Any,
) -> dict[str, Any]:
    """Compute the shards that are not there yet, write each as a part, put the output in place."""
    out = output.open_output(target, identity, config.if_exists)
    parts = shards(len(job), config.shard_users)
    users = {"genrec.users": str(len(job))}
    plain = {key: value if isinstance(value, str) else _json(value) for key, value in identity.items()}
    out.metadata |= {f"genrec.{key}": value for key, value in plain.items()} | users
    if out.complete:
        LOG.info("%s was finished by an identical run; nothing to do", target)
        return summary(command, job, stages, identity, report()) | {"output": str(target), "already_complete": True}
    resumed = len(out.parts_done)
    if resumed:
        LOG.info("going on after %d of %d parts that an identical run left", resumed, len(parts))
    try:
        with console.progress(command, len(job), "users") as advance:
            for number, (start, stop) in enumerate(parts):
                if number in out.parts_done:
                    advance(stop - start)
                    continue
                table = shard(start, stop, advance) if command == "score" else shard(start, stop)
                with stages.time("write"):
                    out.write(number, table)
        with stages.time("write"):
            done = out.finish()
    finally:
        out.close()
    written = {"output": str(target), "resumed_parts": resumed, **done}
    return summary(command, job, stages, identity, report()) | written


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def summary(command: str, job: Job, stages: Stages, identity: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Return the run's summary: what was read, who was scored, by what, how long it took."""
    model_s = stages.seconds.get("model run", 0.0)
    return {
        "status": "ok",
        "command": command,
        "version": __version__,
        "run_id": output.run_id(identity),
        "model": job.model.fingerprint[:16],
        "trained": job.model.trained,
        **job.facts,
        **report,
        "seconds": round(stages.elapsed_s, 3),
        "users_per_s": round(len(job) / model_s, 1) if model_s else None,
        "stages_s": {name: round(seconds, 3) for name, seconds in stages.seconds.items()},
        "peak_rss_mib": round(peak_rss_mib(), 1),
        "warnings": job.warnings,
    }
