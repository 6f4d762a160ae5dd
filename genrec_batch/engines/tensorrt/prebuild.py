"""`model build`: build the engines of a run before it.

Owns: the static shapes and precisions that a run with these options needs, and the messages while they are built. Must
not know: how an engine is built, stored or run. In: options and a model directory. Out: engines in the cache and a
summary. Two processes that build the same engines at once wait for each other and build each engine once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec_batch.core.errors import EngineError, ModelError
from genrec_batch.engines.choose import mode_of
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.plan_cache import EngineCache
from genrec_batch.engines.tensorrt import builder, store
from genrec_batch.engines.tensorrt.network import Shape, TensorRtNetwork
from genrec_batch.engines.tensorrt.options import BuildConfig
from genrec_batch.engines.tensorrt.shapes import LENGTHS, PLAIN_ROWS, ShapeRule
from genrec_batch.model import opening
from genrec_batch.model.catalog import Catalog
from genrec_batch.model.weights import Model, weights_fingerprint
from genrec_batch.runtime import console
from genrec_batch.runtime.console import LOG

AUTO_PRECISIONS = ("fp32", "fp16")  # that `score --precision auto` opens on a GPU


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where engines will run, and how they are built."""

    plans: store.PlanStore
    network: Callable[[Shape], TensorRtNetwork]
    label: str  # library and GPU
    variant: str  # with or without the plugin, and why not
    rule: ShapeRule  # of the static shapes


def build(config: BuildConfig, directory: Path) -> dict[str, Any]:
    """Build the engines of a model, by its directory or `registry:NAME`, that the cache lacks; return the summary.

    Raises:
        ModelError: the model or its catalog is missing.
        EngineError: the library, GPU, driver or precision is missing; the message says how to get it.
    """
    started = time.monotonic()
    loaded = _with_catalog(directory, config.registry)
    cache = EngineCache()
    size = None if config.batch_size == "auto" else int(config.batch_size)
    precisions = AUTO_PRECISIONS if config.precision == "auto" else (config.precision,)
    targets = [_target(config, loaded, precision, cache, size) for precision in precisions]
    LOG.info("%s, %s", targets[-1].label, targets[-1].variant)
    jobs = [
        (precision, target, engine)
        for precision, target in zip(precisions, targets, strict=True)
        for engine in _engines(config, loaded, target, compared=len(targets) > 1 and target is targets[0])
    ]
    engines = []
    with console.progress("engines", len(jobs), "built") as advance:
        for number, (precision, target, engine) in enumerate(jobs, 1):
            engines.append(_one(f"{number} of {len(jobs)}: {engine.name} in {precision}", precision, target, engine))
            advance(1)
    built = sum(engine["built"] for engine in engines)
    seconds = time.monotonic() - started
    if not built:
        LOG.info("already built: all %d engines are in %s", len(engines), cache.directory)
    else:
        LOG.info("%d engines built, %d were there, %.1f s: %s", built, len(engines) - built, seconds, cache.directory)
    return {
        "status": "ok",
        "command": "model build",
        "library": targets[-1].label,
        "variant": targets[-1].variant,
        "cache": str(cache.directory),
        "batch_users": targets[-1].rule.batch_size,
        "built": built,
        "already_built": len(engines) - built,
        "seconds": round(seconds, 3),
        "engines": engines,
    }


def _with_catalog(directory: Path, registry: str | None = None) -> Model:
    loaded = opening.open_model(str(directory), registry, "DIR")
    assert loaded.directory is not None
    file = loaded.directory / "catalog.parquet"
    if not file.exists():
        raise ModelError(
            f"{file} is missing: the number of videos is part of an engine; make the model with --catalog-from, or let "
            "`score --engine tensorrt` build what it needs for its log"
        )
    return loaded.with_catalog(len(Catalog.read(file, vocabulary=loaded.config.vocabulary)))


def _target(config: BuildConfig, loaded: Model, precision: str, cache: EngineCache, size: int | None) -> Target:
    library = builder.load_library(None if config.library == "auto" else config.library)
    builder.check_precision(library, precision)
    if config.compute_capability is None:
        return _here(config, loaded, precision, cache, size, library)
    architecture = "sm_" + config.compute_capability.replace(".", "")
    builder.check_architecture(library, architecture)
    plans = store.PlanStore(
        library,
        cache,
        weights_sha256=weights_fingerprint(loaded.weights),
        precision=precision,
        architecture=architecture,
        elsewhere=True,
        progress=_phase,
    )

    def network(_shape: Shape) -> TensorRtNetwork:
        return TensorRtNetwork(
            config=loaded.config,
            weights=loaded.weights,
            tokens=loaded.tokens,
            precision=precision,
            plugin=False,
            segment_layers=library.segment_layers,
        )

    label = f"{library.label} for {architecture}"
    return Target(
        plans=plans,
        network=network,
        label=label,
        variant="plain ONNX engines: a plugin is built where it runs",
        rule=ShapeRule(loaded.config, size or PLAIN_ROWS, LENGTHS),
    )


def _here(
    config: BuildConfig, loaded: Model, precision: str, cache: EngineCache, size: int | None, library: builder.Library
) -> Target:
    from genrec_batch.engines.tensorrt.engine import TensorRtEngine

    device = "cuda:0" if config.device in ("auto", "cuda") else config.device
    try:
        engine = TensorRtEngine(
            loaded,
            device=device,
            precision=precision,
            batch_size=size,
            cache=cache,
            library=library,
            progress=_phase,
        )
    except EngineError as error:
        raise EngineError(
            f"{error}. Engines for the GPU of another machine are built by tensorrt_rtx: --compute-capability 8.9"
        ) from error
    if Decoding(mode=mode_of(config.decode, config.beam_width, loaded), beam_width=config.beam_width).greedy:
        mean = config.max_events if config.mean_events is None else config.mean_events
        engine.expect(longest=config.max_events, mean=mean + 1, steps=config.top_k)
    return Target(
        plans=engine.store,
        network=engine.network,
        label=engine.hardware(),
        variant=engine.variant,
        rule=engine.shapes,
    )


def _engines(config: BuildConfig, loaded: Model, target: Target, *, compared: bool) -> Iterator[store.Wanted]:
    """Yield the engines of a run, longest histories first; only these for a precision that is only `compared` with."""
    mode = mode_of(config.decode, config.beam_width, loaded)
    choices = min(config.num_candidates, loaded.tokens) if mode == "candidates" else 0
    steps, vectors = 1 if choices else config.top_k, {"profile": config.profile_vectors, "video": config.video_vectors}
    if target.rule.packing is not None:
        shapes = target.rule.runs(steps=steps, seen_limit=config.seen_limit, **vectors)
    else:
        shapes = target.rule.all(
            max_events=config.max_events, steps=steps, seen_limit=config.seen_limit, **vectors, shorter=not compared
        )
    for shape in shapes:
        network = target.network(shape)
        yield from store.wanted(network, shape, choices=choices, beam_width=min(config.beam_width, loaded.tokens))


def _one(title: str, precision: str, target: Target, engine: store.Wanted) -> dict[str, Any]:
    """Build one engine or find it in the cache; log which; return its entry in the summary."""
    LOG.debug("%s, %s", title, engine.sizes)
    plan = target.plans.plan(engine.name, engine.shape, engine.graph())
    size_mb = len(plan.content) / 1e6
    if plan.built:
        LOG.info("%s, %s: built in %.1f s, %.1f MB", title, engine.sizes, plan.seconds, size_mb)
    else:
        LOG.info("%s, %s: already built, %.1f MB", title, engine.sizes, size_mb)
    return {
        "name": engine.name,
        "precision": precision,
        "users": engine.shape.rows,
        "events": engine.shape.positions - 1,
        "seen": engine.shape.seen,
        "built": plan.built,
        "seconds": round(plan.seconds, 3),
        "megabytes": round(size_mb, 1),
    }


def _phase(what: str, done: float) -> None:
    LOG.debug("  %s, %d%%", what, 100 * done)
    console.doing(f"{what}, {done:.0%}" if done < 1 else "")
