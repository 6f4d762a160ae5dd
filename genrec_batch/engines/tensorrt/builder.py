"""Build TensorRT engines from ONNX, in the same way for `tensorrt` 8.6 to 11 and for `tensorrt_rtx`.

Owns: the differences between the libraries' builders. Must not know: the model, the cache, CUDA buffers. In: serialized
ONNX with static shapes. Out: a serialized engine and its tensors. `tensorrt_rtx` can build for a given architecture on
a machine without a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from genrec_batch.core.errors import EngineError
from genrec_batch.engines.driver import INSTALL
from genrec_batch.engines.onnx_graph import PINNED

Progress = Callable[[str, float], None]  # the builder's phase, and the share of it that is done (0..1)

PRECISIONS = ("fp32", "fp16", "bf16")
PLUGIN_LEVEL = 2  # optimization level, 0 to 5: with the kernels there is little to choose; level 3 is no faster
PLAIN_LAYERS = 2  # of one engine: on an H200 a slate took 33.7 ms with two layers an engine and 57.2 ms with all in one
RECIPE = 4  # rises whenever the builder's settings change, so that engines of the old settings are not used
WORKSPACE_BYTES = 24 << 30
RTX_INSTALL = "pip install tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings"


@dataclass(frozen=True, kw_only=True)
class Library:
    """An imported TensorRT."""

    name: str  # "tensorrt" or "tensorrt_rtx"
    version: str
    api: Any  # the module
    log: BuilderLog

    @property
    def strongly_typed(self) -> bool:
        """Whether the ONNX graph decides the precision, rather than a flag of the builder."""
        return hasattr(self.api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def segment_layers(self) -> int:
        """Layers of one plain engine, 0 for all: TensorRT 8 computes six layers in one engine slower than in three."""
        return 0 if self.strongly_typed else PLAIN_LAYERS

    @property
    def label(self) -> str:
        """Return name and version."""
        return f"{self.name} {self.version}"


class BuilderLog:
    """The errors that the library reported; its other messages are dropped."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def last(self) -> str:
        """Return the latest errors in one line, and forget all."""
        text = " | ".join(self.errors[-3:]) or "the library gave no reason"
        self.errors.clear()
        return text


def load_library(name: str | None = None) -> Library:
    """Import `tensorrt` or `tensorrt_rtx`; None means `tensorrt`, or `tensorrt_rtx` where only that is installed.

    Raises:
        EngineError: it is not installed, or cannot be loaded.
    """
    if name is None:
        alone = not importlib.util.find_spec("tensorrt") and importlib.util.find_spec("tensorrt_rtx_bindings")
        name = "tensorrt_rtx" if alone else "tensorrt"
    try:
        if name == "tensorrt_rtx":
            importlib.import_module("tensorrt_rtx_libs")  # loads the shared libraries that the bindings link to
            api = importlib.import_module("tensorrt_rtx_bindings")
        else:
            api = importlib.import_module(name)
    except (ImportError, OSError) as error:
        install = RTX_INSTALL if name == "tensorrt_rtx" else INSTALL
        raise EngineError(f"the tensorrt engine needs {name}, which cannot be loaded ({error}): {install}") from error
    return wrap(name, api)


def wrap(name: str, api: Any) -> Library:
    """Return a Library for an imported module; all libraries of one module share a log."""
    log = _kept(api, "genrec_batch_log", BuilderLog)
    return Library(name=name, version=str(api.__version__), api=api, log=log)


def _kept(api: Any, name: str, make: Callable[[], Any]) -> Any:
    """Return an attribute that lives as long as the module, made at the first call."""
    if not hasattr(api, name):
        setattr(api, name, make())
    return getattr(api, name)


def logger(library: Library) -> Any:
    """Return the logger object for the library's constructors: one for each module, which lives as long as the module.

    TensorRT keeps the first logger of a process, and writes to it even after its engine is gone.
    """
    base: Any = library.api.ILogger
    log = library.log

    class Collector(base):  # type: ignore[misc] # the base class is known at run time only
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.ERROR, base.INTERNAL_ERROR):
                log.errors.append(message[:500])

    return _kept(library.api, "genrec_batch_logger", Collector)


@dataclass(frozen=True, kw_only=True)
class Built:
    """A serialized engine."""

    plan: bytes
    timings: bytes | None  # of the kernels, for the next build; None where the library cannot reuse them


def check_precision(library: Library, precision: str) -> None:
    """Raise EngineError where the library has no such precision for this network."""
    if precision not in PRECISIONS:
        have = ", ".join(p for p in PRECISIONS if p != "bf16" or library.strongly_typed)
        raise EngineError(
            f"--precision {precision}: the tensorrt engine has {have} with {library.label}; {precision} needs scales "
            "that no model directory holds, and without them it does not keep 98% of fp32's top 10"
        )
    if precision == "bf16" and not library.strongly_typed:
        raise EngineError(f"--precision bf16 needs TensorRT 9 or newer, this is {library.label}; fp16 is as fast")


def build(
    library: Library,
    graph: bytes,
    *,
    precision: str,
    architecture: str | None = None,
    progress: Progress | None = None,
    timings: bytes | None = None,
) -> Built:
    """Build an engine from serialized ONNX.

    Args:
        library: the TensorRT to build with.
        graph: ONNX with static shapes, in the given precision.
        precision: "fp32", "fp16" or "bf16".
        architecture: of the GPU to build for, such as `sm_89`; this machine needs no GPU then (`tensorrt_rtx` only).
            None builds for the GPU of this machine.
        progress: called from the builder's threads where the library reports it (10 and newer), and at the end.
        timings: `Built.timings` of an earlier build with the same library on the same GPU.

    Raises:
        EngineError: the library cannot parse or build the graph, or start at all (no GPU, no driver).
    """
    check_precision(library, precision)
    keeper = logger(library)
    try:
        builder = library.api.Builder(keeper)
    except TypeError as error:  # pybind11 raises it where a factory returned nothing
        raise EngineError.of_device(
            f"{library.label} cannot start without a GPU and its driver: {library.log.last()}"
        ) from error
    network = builder.create_network(_network_flags(library))
    parser = library.api.OnnxParser(network, keeper)
    if not parser.parse(graph):
        faults = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(f"{library.label} cannot read the graph: {faults}")
    config = _configure(library, builder, network, precision, architecture)
    # 8.6 refuses a stored timing cache ("Myelin error from unknown graph"); tensorrt_rtx times nothing when it builds.
    keeps_timings = library.name == "tensorrt" and library.strongly_typed
    if keeps_timings:
        timing_cache = config.create_timing_cache(timings or b"")
        config.set_timing_cache(timing_cache, ignore_mismatch=False)
    monitor = _monitor(library, progress) if progress else None
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{library.label} cannot build the engine: {library.log.last()}")
    if progress:
        progress("built", 1.0)
    stored = bytes(timing_cache.serialize()) if keeps_timings else None
    return Built(plan=bytes(plan), timings=stored)


def _network_flags(library: Library) -> int:
    kinds = library.api.NetworkDefinitionCreationFlag
    name = "STRONGLY_TYPED" if library.strongly_typed else "EXPLICIT_BATCH"
    return 1 << int(getattr(kinds, name))


def _configure(library: Library, builder: Any, network: Any, precision: str, architecture: str | None) -> Any:
    api, config = library.api, builder.create_builder_config()
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(api.BuilderFlag.TF32)  # on by default, and less precise than fp32
    config.max_aux_streams = 0  # a captured graph then needs only one stream
    if library.name == "tensorrt":
        config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    if architecture is not None:
        _set_architecture(library, config, architecture)
    if not library.strongly_typed:
        # Neither cuBLAS nor cuDNN: TensorRT's own products are faster here, and neither library must be installed.
        kept = (api.TacticSource.EDGE_MASK_CONVOLUTIONS, api.TacticSource.JIT_CONVOLUTIONS)
        config.set_tactic_sources(sum(1 << int(source) for source in kept))
        if any(network.get_layer(i).type == api.LayerType.PLUGIN_V2 for i in range(network.num_layers)):
            config.builder_optimization_level = PLUGIN_LEVEL
        if precision == "fp16":
            config.set_flag(api.BuilderFlag.FP16)
            config.set_flag(api.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            _pin_fp32(api, network)
    return config


def _pin_fp32(api: Any, network: Any) -> None:
    """Keep the pinned layers in fp32, which the FP16 flag would let the builder change."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name.startswith(PINNED) and layer.type not in (api.LayerType.CONSTANT, api.LayerType.CAST):
            layer.precision = api.DataType.FLOAT
            layer.set_output_type(0, api.DataType.FLOAT)


def check_architecture(library: Library, architecture: str) -> None:
    """Raise EngineError where the library cannot build for this architecture without its GPU."""
    kinds = getattr(library.api, "ComputeCapability", None)
    if kinds is None or not hasattr(library.api.IBuilderConfig, "set_compute_capability"):
        raise EngineError(
            f"{library.label} builds only for the GPU of this machine, not for {architecture}; tensorrt_rtx can: "
            f"{RTX_INSTALL}"
        )
    if architecture.replace("sm_", "SM") not in kinds.__members__:
        known = ", ".join(kind.replace("SM", "sm_") for kind in kinds.__members__ if kind.startswith("SM"))
        raise EngineError(f"{library.label} cannot build for {architecture}; it knows {known}")


def _set_architecture(library: Library, config: Any, architecture: str) -> None:
    check_architecture(library, architecture)
    config.num_compute_capabilities = 1
    config.set_compute_capability(library.api.ComputeCapability.__members__[architecture.replace("sm_", "SM")], 0)


def _monitor(library: Library, progress: Progress) -> Any:
    """Return an object that passes the builder's phases on, or None where the library has no such interface."""
    base: Any = getattr(library.api, "IProgressMonitor", None)
    if base is None:
        return None

    class Monitor(base):  # type: ignore[misc] # the base class is known at run time only
        def __init__(self) -> None:
            base.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = max(num_steps, 1)
            if parent_phase is None:
                progress(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, (step + 1) / self._steps[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
