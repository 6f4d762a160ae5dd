"""The TensorRT engines of one model, from the cache or from the builder.

Owns: what makes two engines equal (`EngineKey`), and which engines a way of decoding needs. Must not know: CUDA,
buffers, batches. In: names, static shapes, serialized ONNX. Out: serialized engines. It needs no GPU where the library
can build for the GPU of another machine.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

from genrec_batch.engines.plan_cache import EngineCache, EngineKey
from genrec_batch.engines.tensorrt import builder, graphs, side_graphs
from genrec_batch.engines.tensorrt.network import Shape, TensorRtNetwork


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A serialized engine and its origin."""

    content: bytes
    seconds: float  # to build it or to read it
    built: bool  # False where it was in the cache


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One engine that a run needs."""

    name: str
    shape: Shape
    graph: Callable[[], bytes]  # returns the ONNX graph, which holds the weights

    @property
    def sizes(self) -> str:
        """Return the static sizes in words."""
        return f"{self.shape.rows:,} users x {self.shape.positions - 1:,} events, {self.shape.seen:,} seen"


class PlanStore:
    """Engines of one model in one precision, for one library and GPU architecture."""

    def __init__(
        self,
        library: builder.Library,
        cache: EngineCache,
        *,
        weights_sha256: str,
        precision: str,
        architecture: str,
        elsewhere: bool = False,
        progress: builder.Progress | None = None,
    ) -> None:
        """Open the store of a model's engines.

        Args:
            library: the TensorRT to build with.
            cache: of built engines.
            weights_sha256: fingerprint of the weights.
            precision: "fp32", "fp16" or "bf16".
            architecture: of the GPU that runs the engines, such as `sm_90`.
            elsewhere: that GPU is in another machine.
            progress: called with the builder's phases.
        """
        self._library, self._cache, self._progress = library, cache, progress
        self._target = architecture if elsewhere else None
        self._key = EngineKey(
            name="",
            weights_sha256=weights_sha256,
            graph_sha256="",
            precision=precision,
            shape={},
            library=library.label,
            architecture=architecture,
            options={"builder": str(builder.RECIPE)},
        )

    def plan(self, name: str, shape: Shape, graph: bytes) -> Plan:
        """Return an engine from the cache, which builds it if it is missing.

        Raises:
            EngineError: the engine cannot be built, or the cache is not private.
        """
        started, built = time.monotonic(), []
        graph_sha256 = hashlib.sha256(graph).hexdigest()
        sizes = asdict(shape)
        if not shape.masked:
            del sizes["masked"]  # so that engines built before there were masks are found
        key = replace(self._key, name=name, graph_sha256=graph_sha256, shape=sizes)

        def build() -> bytes:
            timings = replace(self._key, name="timings", weights_sha256="")
            made = builder.build(
                self._library,
                graph,
                precision=key.precision,
                architecture=self._target,
                progress=self._progress,
                timings=self._cache.read(timings),
            )
            if made.timings is not None:
                self._cache.write(timings, made.timings)
            built.append(made)
            return made.plan

        content = self._cache.get(key, build)
        return Plan(content=content, seconds=time.monotonic() - started, built=bool(built))


def wanted(network: TensorRtNetwork, shape: Shape, *, choices: int = 0, beam_width: int = 1) -> Iterator[Wanted]:
    """Yield the engines that one static shape needs.

    Args:
        network: the model.
        shape: of a batch.
        choices: candidates that are chosen and scored in one pass; 0 for a slate.
        beam_width: slates kept while decoding.
    """

    def one(name: str, where: Shape, make: Callable[[], bytes]) -> Wanted:
        return Wanted(name=name, shape=where, graph=make)

    def segments(name: str, where: Shape, make: Callable[[TensorRtNetwork, Shape, int], bytes]) -> Iterator[Wanted]:
        for number, title in enumerate(network.titles(name)):
            yield one(title, where, partial(make, network, where, number))

    yield from segments("prefill", shape, graphs.prefill)
    if choices:
        count = side_graphs.padded_count(choices)
        yield one(f"choose_{choices}", shape, lambda: side_graphs.choose(network, shape, choices))
        yield one(f"score_{count}", shape, lambda: side_graphs.score(network, shape, count))
        return
    if beam_width == 1:
        yield from segments("decode", shape, graphs.decode)
        return
    rows = shape.rows * beam_width
    beams, least = replace(shape, rows=rows), side_graphs.padded_count(1)
    yield one(f"select_{rows}", shape, lambda: side_graphs.select(network, shape, rows))
    yield from segments("decode", beams, graphs.decode)
    yield one(f"choose_{beam_width}", beams, lambda: side_graphs.choose(network, beams, beam_width))
    yield one(f"lookup_{least}", beams, lambda: side_graphs.lookup(network, beams, least))
    yield one(f"select_{rows}", beams, lambda: side_graphs.select(network, beams, rows))
