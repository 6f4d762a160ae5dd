"""The TensorRT engine: prefill, decode and choice run on the GPU between one small copy in and one small copy out.

Owns: the methods of `protocol.SteppedEngine` on TensorRT; which static shapes exist, when their engines are built, and
which memory is in use. Must not know: users, files except the engine cache, torch. `slate` is the fast path: whole
batches run as captured graphs, and one batch is copied while another is computed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from genrec_batch.core.arrays import F32, HEADS, I32, I64, Batch, Ranked
from genrec_batch.core.errors import DeviceMemoryError, EngineError
from genrec_batch.engines.driver import Device, Stream
from genrec_batch.engines.plan_cache import EngineCache
from genrec_batch.engines.protocol import Recorder, SteppedEngine
from genrec_batch.engines.tensorrt import builder, side_graphs
from genrec_batch.engines.tensorrt.loop import TensorRtSlateLoop
from genrec_batch.engines.tensorrt.memory import Slot, SlotPool
from genrec_batch.engines.tensorrt.network import Shape, TensorRtNetwork
from genrec_batch.engines.tensorrt.plugin import LONGEST
from genrec_batch.engines.tensorrt.plugin.library import load, toolchain, unfit
from genrec_batch.engines.tensorrt.program import Exchange, Executable, Program, TensorRtState, padded
from genrec_batch.engines.tensorrt.shapes import LENGTHS, PLAIN_ROWS, PLUGIN_ROWS, Packing, ShapeRule, rounded
from genrec_batch.engines.tensorrt.store import PlanStore
from genrec_batch.model.weights import Model, weights_fingerprint

MOST_CHOICES = 3840  # limit of TensorRT's TopK
PLUGIN_STEPS = 63  # limit of the kernels' tile of earlier steps


class TensorRtEngine(SteppedEngine):
    """A model on one NVIDIA GPU; `engines.protocol.SteppedEngine` describes each method."""

    name = "tensorrt"
    has_slate_loop = True

    def __init__(
        self,
        model: Model,
        *,
        device: str = "cuda",
        precision: str = "fp16",
        batch_size: int | None = None,
        lengths: Sequence[int] = LENGTHS,
        cache: EngineCache | None = None,
        progress: builder.Progress | None = None,
        library: builder.Library | None = None,
    ) -> None:
        """Open the device and the library. Engines are loaded or built when a batch first needs them.

        Args:
            model: sizes and weights.
            device: "cuda" or "cuda:<number>".
            precision: "fp32", "fp16" or "bf16".
            batch_size: rows of every engine, rounded up to a multiple of 64; by default 4,096 with the plugin's
                kernels, 2,048 without.
            lengths: tokens of the longest history that engines are built for; a batch takes the shortest that fits.
            cache: of built engines; the user's own cache by default.
            progress: called with what is being built and the share that is done.
            library: an imported TensorRT; by default `tensorrt`, or `tensorrt_rtx` where only that is installed.

        Raises:
            EngineError: no GPU, no driver, no library, no such precision, or a cache that other users may write to.
        """
        self.library = library or builder.load_library()
        builder.check_precision(self.library, precision)
        self._gpu = Device(device)
        self.device, self.precision = self._gpu.name, precision
        self._lengths = tuple(lengths)
        self._packing: Packing | None = None
        self._config, self._weights, self._tokens = model.config, model.weights, model.tokens
        self.resize(batch_size or PLAIN_ROWS)
        self._cache = cache or EngineCache()
        self._progress, self._making = progress, ""  # the engine that is being loaded or built
        self.store = PlanStore(
            self.library,
            self._cache,
            weights_sha256=weights_fingerprint(model.weights),
            precision=precision,
            architecture=self._gpu.architecture,
            progress=self._report,
        )
        self._log = builder.logger(self.library)
        self._runtime = self.library.api.Runtime(self._log)
        self.plugin, self.variant = self._load_plugin()
        if batch_size is None and self.plugin:
            self.resize(PLUGIN_ROWS)
        self._compute = Stream(self._gpu)
        self._exchange = Exchange(self._gpu, self._compute)
        self._programs: dict[Shape, Program] = {}
        self._pool = SlotPool(self._gpu, self._compute)
        self._loop = TensorRtSlateLoop(self._gpu, self._compute, self._pool, self._ready)

    def _load_plugin(self) -> tuple[bool, str]:
        """Return whether the plugin's kernels run, and a description that says why not."""
        why = unfit(self._config, self.precision, self._gpu.architecture)
        tools = why or toolchain()
        if isinstance(tools, str):
            return False, f"plain ONNX engines, without the plugin: {tools}"
        version = self.library.version
        core = f"libnvinfer.so.{version.split('.')[0]}"
        load(self._cache, tools, library=core, version=version, architecture=self._gpu.architecture)
        return True, "engines with the plugin's kernels"

    def free_bytes(self) -> int:
        """Return the device memory that is free now; the memory of idle batches counts as used."""
        return self._gpu.free_bytes()

    def peak_bytes(self) -> int:
        """Return the most device memory in use since the engine was opened."""
        return self._gpu.most_taken()

    def wait(self) -> None:
        """Return once the device has done all queued work."""
        self._compute.synchronize()

    @property
    def rows(self) -> int:
        """Rows of every batch; smaller batches are padded."""
        return self.shapes.batch_size

    def resize(self, rows: int) -> None:
        """Use engines of this number of rows from now on, rounded up to a multiple of 64."""
        self.shapes = ShapeRule(self._config, rows, self._lengths, self._packing)

    def expect(self, *, longest: int, mean: float, steps: int) -> None:
        """Prepare for a run of slates; with the plugin's kernels, rows are packed end to end."""
        short = any(longest <= length < LONGEST for length in self.shapes.lengths)
        fits = self.plugin and short and steps <= PLUGIN_STEPS
        self._packing = Packing(longest=longest, mean=mean) if fits else None
        self.resize(self.rows)

    def computed(self, lengths_B: I64) -> int:
        """Return the positions that a batch computes, spare rows included."""
        places = self.shapes.places or self.rows * (self.shapes.padded_length(int(lengths_B.max())) + 1)
        return max(places, int(lengths_B.sum()) + len(lengths_B))

    def room(self, users: int) -> int:  # noqa: ARG002 (the engines' rows decide)
        """Return the positions that a batch has room for, 0 where rows are padded."""
        return self.shapes.places

    @contextmanager
    def _smaller_when_full(self) -> Iterator[None]:
        """Halve the engines' rows if the device is too small: half of this batch then takes half the memory."""
        try:
            yield
        except DeviceMemoryError:
            self.resize(max(1, self.rows // 2))
            raise

    def hardware(self) -> str:
        """Return the GPU's architecture and memory, the library's version, and whether the plugin runs."""
        plugged = ", plugin" if self.plugin else ""
        return f"{self._gpu.architecture}, {self._gpu.total_bytes() >> 30} GiB, {self.library.label}{plugged}"

    def prefill(self, batch: Batch, *, steps: int, choices: int = 1) -> TensorRtState:
        """Read the features and histories.

        Raises:
            EngineError: more choices than TensorRT's TopK has.
            ConfigError: history and steps do not fit the model's positions.
            DeviceMemoryError: the batch does not fit the device.
        """
        if min(choices, self._tokens) > MOST_CHOICES:
            raise EngineError(f"the tensorrt engine offers at most {MOST_CHOICES} choices per step, not {choices}")
        self._gpu.use()
        shape = self.shapes.of(batch, steps)
        program = self._program(shape)
        with self._smaller_when_full():
            program.load(decode=False)
            slot = self._pool.acquire(program.network, shape)
        state = self._own(TensorRtState(program=program, slot=slot, rows=len(batch), choices=choices))
        slot.fill(batch)
        slot.send(self._compute)
        self._compute.record(slot.arrived)
        self.arrived()
        program.prefill(slot, self._compute)
        self._compute.record(slot.computed)
        return state

    def decode(self, state: TensorRtState, tokens_B: I32 | None = None) -> None:
        """Read one item per row; `tokens_B` None reads the choice on the device."""
        assert state.step < state.slot.shape.steps, "`steps` of prefill is the most that can be read"
        if tokens_B is not None:
            self._read_given(state, tokens_B)
        state.program.decode(state.slot, state.step, self._compute)
        self._compute.record(state.slot.computed)
        state.step += 1

    def choose(self, state: TensorRtState) -> tuple[I32, F32]:
        """Return the best items of the next position."""
        if state.choices > 1:
            return self._choose_many(state)
        slot, step, rows = state.slot, state.step, state.rows
        self._copy_results(slot)
        place = slot.results["read"]
        token_B = slot.host_out.view(place.start, place.shape, place.kind)[step, :rows].copy()
        log_prob_B = slot.ranked(rows, step + 1).log_prob_BK[:, step]
        return token_B[:, None], log_prob_B[:, None]

    def _choose_many(self, state: TensorRtState) -> tuple[I32, F32]:
        slot, rows, count = state.slot, state.slot.shape.rows, min(state.choices, self._tokens)
        engine = self._side(state, f"choose_{count}", lambda n, s: side_graphs.choose(n, s, count))
        addresses = slot.state() | {"hidden": slot.address(state.hidden), "step": slot.step_address(state.step - 1)}
        sizes = {"tokens": ((rows, count), np.int32), "values": ((rows, count), np.float32)}
        found = self._exchange.run(engine, addresses, sizes | {"log_sum": ((rows, 1), np.float32)})
        return side_graphs.best_first({name: array[: state.rows] for name, array in found.items()}, state.choices)

    def log_probs(self, state: TensorRtState, tokens_BC: I32) -> F32:
        """Return the log-probability of given items right after the history, [B, C]; -inf for token 0."""
        return np.where(tokens_BC > 0, self._lookup(state, "first_hidden", tokens_BC), np.float32(-np.inf))

    def _lookup(self, state: TensorRtState, hidden: str, tokens_BC: I32) -> F32:
        count = side_graphs.padded_count(tokens_BC.shape[1])
        engine = self._side(state, f"lookup_{count}", lambda n, s: side_graphs.lookup(n, s, count))
        buffer = self._exchange.upload(padded(tokens_BC, state.slot.shape.rows, count))
        addresses = {"hidden": state.slot.address(hidden), "tokens": buffer.address}
        found = self._exchange.run(engine, addresses, {"log_prob": ((state.slot.shape.rows, count), np.float32)})
        return np.ascontiguousarray(found["log_prob"][: state.rows, : tokens_BC.shape[1]])

    def score(self, state: TensorRtState, tokens_BC: I32) -> F32:
        """Return the heads [B, C, H] of C items, each read alone right after the history."""
        rows, count = state.slot.shape.rows, side_graphs.padded_count(tokens_BC.shape[1])
        engine = self._side(state, f"score_{count}", lambda n, s: side_graphs.score(n, s, count))
        buffer = self._exchange.upload(padded(tokens_BC, rows, count))
        sizes = {"heads": ((rows, count, len(HEADS)), np.float32)}
        heads = self._exchange.run(engine, state.slot.state() | {"tokens": buffer.address}, sizes)["heads"]
        heads = heads[: state.rows, : tokens_BC.shape[1]]
        return np.where(tokens_BC[:, :, None] == 0, np.float32(0), heads)

    def select(self, state: TensorRtState, rows_R: I64) -> TensorRtState:
        """Return a state whose row r is a copy of row `rows_R[r]`."""
        rows_out = rounded(len(rows_R), self.shapes.batch_size)
        old = state.slot.shape
        shape = replace(old, rows=rows_out)
        program = self._program(shape)
        slot = self._pool.acquire(program.network, shape)
        taken = self._own(
            TensorRtState(program=program, slot=slot, rows=len(rows_R), choices=state.choices, step=state.step)
        )
        engine = self._side(state, f"select_{rows_out}", lambda n, s: side_graphs.select(n, s, rows_out))
        rows = np.zeros(rows_out, np.int32)
        rows[: len(rows_R)] = rows_R
        buffer = self._exchange.upload(rows)
        targets = {f"chosen_{name}": address for name, address in slot.state().items()}
        engine.launch(state.slot.state() | targets | {"rows": buffer.address}, self._compute)
        self._compute.synchronize()  # another batch may use the old state's memory after this
        return taken

    def collect(self, state: TensorRtState) -> Ranked:
        """Return all items read so far with their log-probabilities and heads."""
        self._copy_results(state.slot)
        return state.slot.ranked(state.rows, state.step)

    def slate(self, batches: Iterable[Batch], steps: int, record: Recorder | None = None) -> Iterator[Ranked]:
        """Decode `steps` items greedily for every batch, in order, copies and computation overlapping.

        `record` receives the stages by the device's clock.

        Raises:
            ConfigError: see `prefill`.
            DeviceMemoryError: two batches at once do not fit the device.
        """
        return self._loop.slates(batches, steps, record)

    def _ready(self, batch: Batch, steps: int) -> tuple[Program, Slot]:
        """Return the engines and the memory for a whole slate."""
        self._gpu.use()
        packs = self._packing is not None
        program = self._program(shape := (self.shapes.packed if packs else self.shapes.of)(batch, steps))
        with self._smaller_when_full():
            program.load()
            slot = self._pool.acquire(program.network, shape)
        return program, slot

    def network(self, shape: Shape) -> TensorRtNetwork:
        """Return the network that the graphs of a shape are made from, with the plugin's kernels where they fit."""
        plugged = self.plugin and shape.positions <= LONGEST and shape.steps <= PLUGIN_STEPS
        return TensorRtNetwork(
            config=self._config,
            weights=self._weights,
            tokens=self._tokens,
            precision=self.precision,
            plugin=plugged,
            segment_layers=0 if plugged else self.library.segment_layers,
        )

    def _program(self, shape: Shape) -> Program:
        if shape not in self._programs:
            self._programs[shape] = Program(self.network(shape), shape, self._load)
        return self._programs[shape]

    def _load(self, name: str, shape: Shape, graph: bytes) -> Executable:
        network = self.network(shape)
        titles = [*network.titles("prefill"), *network.titles("decode")]
        place = f"engine {titles.index(name) + 1} of {len(titles)}" if name in titles else "engine"
        self._making = f"{place}, {name}"
        self._report("", 0.0)
        made = Executable(self.library, self._runtime, self.store.plan(name, shape, graph).content)
        self._report("", 1.0)
        self._gpu.look()
        return made

    def _report(self, phase: str, done: float) -> None:
        if self._progress is not None:
            self._progress(f"{self._making}: {phase}" if phase else self._making, done)

    def _side(self, state: TensorRtState, name: str, make: Callable[[TensorRtNetwork, Shape], bytes]) -> Executable:
        program = state.program
        return program.executable(name, lambda: make(program.network, program.shape))

    def _own(self, state: TensorRtState) -> TensorRtState:
        weakref.finalize(state, self._pool.release, state.slot).atexit = False
        return state

    def _read_given(self, state: TensorRtState, tokens_B: I32) -> None:
        """Write the caller's items and their log-probabilities in place of the choice."""
        log_prob_B = self._lookup(state, state.hidden, tokens_B[:, None])[:, 0]
        rows = state.slot.shape.rows
        tokens, values = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
        tokens[: state.rows], values[: state.rows] = tokens_B, log_prob_B
        self._exchange.write(state.slot.address("read", state.step), tokens)
        self._exchange.write(state.slot.address("log_prob", state.step), values)

    def _copy_results(self, slot: Slot) -> None:
        self._compute.copy_out(slot.host_out, slot.device_out.address, slot.device_out.count)
        self._compute.synchronize()
