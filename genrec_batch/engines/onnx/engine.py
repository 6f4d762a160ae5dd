"""The ONNX Runtime engine: the model's graphs run by the CPU or the CUDA execution provider.

Owns: sessions, bindings and what happens to the state of a batch. Must not know: torch (it is never imported), Polars,
users, what the graphs compute (`graphs`). Caches stay on the device: on CUDA they are never copied to the host.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import F32, HEADS, I32, I64, U8, Batch, Masks, Ranked
from genrec_batch.core.option_values import check_positions
from genrec_batch.engines import driver
from genrec_batch.engines.onnx import exported, resumed
from genrec_batch.engines.onnx.sessions import Array, OnnxSessions, Value, imported
from genrec_batch.engines.onnx.state import OnnxState, host, log_probs_of
from genrec_batch.engines.protocol import Prefix, SteppedEngine
from genrec_batch.model.weights import Model

PREFILL_ROWS = 32  # at once on a CPU: their activations stay in its caches (20% faster than 256 rows at once)

log = logging.getLogger(__name__)


class OnnxRuntimeEngine(SteppedEngine):
    """A model on ONNX Runtime; deterministic for a given machine and thread count."""

    name = "onnxruntime"

    def __init__(self, model: Model, *, device: str, precision: str, threads: int | None = None) -> None:
        """Load the prefill and decode graphs.

        The graphs are those of the model directory's export if it holds these weights in this precision; otherwise
        equal graphs are made in memory.

        Args:
            model: sizes and weights.
            device: "cpu", "cuda" or "cuda:N".
            precision: fp32, on CUDA also fp16.
            threads: of one operator on the CPU; by default as many as this process may use.

        Raises:
            EngineError: onnxruntime, onnx or the provider is missing.
            ModelError: the model directory's export is damaged.
        """
        kind, _, number = device.partition(":")
        self.device = f"cuda:{int(number or 0)}" if kind == "cuda" else kind
        self.precision = precision
        self._model = model
        self._element = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self._export = self._usable_export()
        self._sessions = OnnxSessions(self.device, threads=threads, graph=self._graph)
        self._sessions.load("prefill")
        self._sessions.load("decode")

    def free_bytes(self) -> int | None:
        """Return the GPU memory that is free now (needs cuda-python, which `genrec-batch[gpu]` installs)."""
        return None if self.device == "cpu" else driver.Device(self.device).free_bytes()

    def _usable_export(self) -> exported.ExportIndex | None:
        directory = self._model.directory
        index = None if directory is None else exported.read_index(directory)
        if index is None or exported.fits(index, model=self._model.fingerprint, precision=self.precision):
            return index
        log.info("%s: the export is of other weights, precision or sizes; graphs are made in memory", directory)
        return None

    def _graph(self, name: str) -> bytes:
        if self._export is not None and self._model.directory is not None and name in exported.GRAPHS:
            return exported.graph_bytes(self._model.directory, self._export, name)
        imported("onnx", self.device.partition(":")[0])
        from genrec_batch.engines.onnx import graphs  # needs onnx, which an export does not

        model = graphs.build(name, self._model.config, self._model.weights, precision=self.precision)
        return bytes(model.SerializeToString(deterministic=True))

    def prefill(self, batch: Batch, *, steps: int, choices: int = 1) -> OnnxState:
        """Read features and histories, [B, F] and [B, S].

        Raises:
            ConfigError: history and steps do not fit the model's positions.
            DeviceMemoryError: memory ran out.
        """
        config, rows = self._model.config, len(batch)
        check_positions(config.positions, events=int(batch.lengths_B.max(initial=0)), items=steps)
        arrays = {
            "dense": batch.dense_BF.astype(self._element, copy=False),
            **self._given("profile", batch.profile_BP, batch.has_profile_B, rows, config.profile),
            **self._given("video", batch.video_BV, batch.has_video_B, rows, config.video),
            "tokens": batch.tokens_BS,
            "lengths": batch.lengths_B,
            "banned": batch.seen_BX,
        }
        masks = None if batch.masks is None else batch.masks.compact()
        choosing = self._choosing(choices, masked=masks is not None)
        if self._sessions.kind == "cpu":
            self.arrived()
            outputs = self._prefill_by_rows(arrays, choices if masks is None else 1, choosing)
        else:
            values = self._values(arrays)
            self.arrived()
            outputs = self._sessions.run("prefill", values | choosing)
        state = self._state(batch, outputs, steps=steps, choices=choices)
        if masks is not None:
            self._mask(state, masks)
            self._choose_open(state)
        return state

    @property
    def keeps_prefixes(self) -> bool:
        """Whether the caches are on the host."""
        return self._sessions.kind == "cpu"

    def resume(self, batch: Batch, prefixes: Sequence[Prefix | None], *, steps: int, choices: int = 1) -> OnnxState:
        """Read what is behind each row's prefix, the whole history of rows that have none; see `Engine`.

        Raises:
            ConfigError: history and steps do not fit the model's positions.
            DeviceMemoryError: memory ran out.
        """
        config = self._model.config
        check_positions(config.positions, events=int(batch.lengths_B.max(initial=0)), items=steps)
        new = np.array([row for row, prefix in enumerate(prefixes) if prefix is None], np.int64)
        if len(new) == len(batch):
            return self.prefill(batch, steps=steps, choices=choices)
        started = self.prefill(replace(batch.take(new), masks=None), steps=steps) if len(new) else None
        found = resumed.resumed(self._sessions, config, self._element, batch, prefixes, started)
        state = self._state(batch, self._values(found), steps=steps, choices=choices)
        masks = Masks.of(np.zeros((1, config.vocabulary), np.bool_), np.zeros(len(batch), np.int64))
        self._mask(state, (masks if batch.masks is None else batch.masks).compact())
        self._choose_open(state)
        if batch.masks is None:
            state.masks = state.mask = None
        return state

    def kept(self, state: OnnxState, rows: Sequence[int]) -> list[Prefix]:
        """Return copies of some rows' prefixes; see `Engine`."""
        return resumed.kept(state, rows)

    def _state(self, batch: Batch, outputs: Mapping[str, Value], *, steps: int, choices: int) -> OnnxState:
        """Return a state right after the history; its arrays are kept, so they must outlive the caller's buffers."""
        return OnnxState(
            rows=len(batch),
            steps=steps,
            choices=choices,
            lengths=self._sessions.value(batch.lengths_B.copy()),
            banned=self._sessions.value(batch.seen_BX.copy()),
            prefix={name: value for name, value in outputs.items() if name.startswith("prefix_")},
            first_log_probs=outputs["log_probs"],
            next_tokens=outputs.get("next_tokens"),
            next_log_prob=outputs.get("next_log_prob"),
            log_probs=outputs["log_probs"],
            origin_R=np.arange(len(batch), dtype=np.int64),
        )

    def _mask(self, state: OnnxState, masks: Masks) -> None:
        state.masks = self._sessions.value(masks.bytes_MC[:, : -(-self._model.config.vocabulary // 8)])
        state.mask = self._sessions.value(masks.mask_B.copy())

    def decode(self, state: OnnxState, tokens_B: I32 | None = None) -> None:
        """Read one item per row, [B] (by default the best choice).

        Raises:
            DeviceMemoryError: memory ran out.
        """
        assert state.step < state.steps, f"the state has room for {state.steps} items"
        if state.read is None:
            self._make_suffix(state)
        token_B1, log_prob = self._item(state, tokens_B)
        step_1 = self._sessions.value(np.array([state.step], np.int32))
        inputs = {
            "token": token_B1,
            "lengths": state.lengths,
            "step": step_1,
            "banned": state.banned,
            "read": state.read,
            **state.prefix,
            **state.suffix,
            **self._choosing(state.choices, masked=state.masks is not None),
        }
        outputs = self._sessions.run("decode", inputs)
        self._append(state, step_1, outputs)
        state.log_prob_read.append(log_prob)
        state.heads_read.append(outputs["heads"])
        state.read = outputs["read_next"]
        state.next_tokens, state.next_log_prob = outputs["next_tokens"], outputs["next_log_prob"]
        state.log_probs = outputs["log_probs"]
        state.step += 1
        if state.masks is not None:
            self._choose_open(state)

    def choose(self, state: OnnxState) -> tuple[I32, F32]:
        """Return the best items of the next position, best first: tokens [B, K], log-probabilities [B, K]."""
        return host(state.next_tokens), host(state.next_log_prob)

    def log_probs(self, state: OnnxState, tokens_BC: I32) -> F32:
        """Return the log-probability of items at the position right after the history, [B, C]; -inf for token 0."""
        return log_probs_of(state.first_log_probs, tokens_BC)

    def score(self, state: OnnxState, tokens_BC: I32) -> F32:
        """Return the heads [B, C, H] of C items, each read alone right after the history, in one pass.

        Raises:
            DeviceMemoryError: memory ran out.
        """
        inputs = {"candidates": self._sessions.value(tokens_BC), "lengths": state.lengths, **state.prefix}
        heads_BCH: F32 = host(self._sessions.run("score", inputs)["heads"])
        return heads_BCH

    def select(self, state: OnnxState, rows_R: I64) -> OnnxState:
        """Return a state whose row r is a copy of row `rows_R[r]`; prefix caches that stay the same are shared.

        Raises:
            DeviceMemoryError: memory ran out.
        """
        origin_R = state.origin_R[rows_R]
        same_prefix = np.array_equal(origin_R, state.origin_R)
        rows = self._sessions.value(rows_R.astype(np.int32))

        def taken(value: Value) -> Value:
            graph = f"select {value.element_type()} {len(value.shape())}"
            return self._sessions.run(graph, {"values": value, "rows": rows})["selected"]

        suffix_arrays = {name: array[rows_R] for name, array in state.suffix_arrays.items()}
        return replace(
            state,
            rows=len(rows_R),
            lengths=taken(state.lengths),
            banned=taken(state.banned),
            mask=None if state.mask is None else taken(state.mask),
            prefix=state.prefix if same_prefix else {name: taken(value) for name, value in state.prefix.items()},
            first_log_probs=state.first_log_probs if same_prefix else taken(state.first_log_probs),
            next_tokens=taken(state.next_tokens),
            next_log_prob=taken(state.next_log_prob),
            log_probs=taken(state.log_probs),
            origin_R=origin_R,
            read=None if state.read is None else taken(state.read),
            suffix_arrays=suffix_arrays,
            suffix={
                name: self._sessions.value(suffix_arrays[name]) if name in suffix_arrays else taken(value)
                for name, value in state.suffix.items()
            },
            log_prob_read=[host(log_prob)[rows_R] for log_prob in state.log_prob_read],
            heads_read=[host(heads)[rows_R] for heads in state.heads_read],
        )

    def collect(self, state: OnnxState) -> Ranked:
        """Return all items read so far, in the order they were read: [B, step]."""
        none_read = np.zeros((state.rows, 0, len(HEADS)), np.float32)
        log_prob_BK = np.zeros((state.rows, state.step), np.float32)
        for step, log_prob in enumerate(state.log_prob_read):
            log_prob_BK[:, step] = host(log_prob).reshape(state.rows, -1)[:, 0]
        return Ranked(
            tokens_BK=none_read[:, :, 0].astype(np.int32) if state.read is None else host(state.read)[:, : state.step],
            log_prob_BK=log_prob_BK,
            heads_BKH=np.stack([host(x) for x in state.heads_read], axis=1) if state.heads_read else none_read,
        )

    def _choose_open(self, state: OnnxState) -> None:
        """Choose the next items again, among those that the masks leave open."""
        inputs = {
            "log_probs": state.log_probs,
            "banned": state.banned,
            "read": self._sessions.value(np.zeros((state.rows, 0), np.int32)) if state.read is None else state.read,
            "masks": state.masks,
            "mask": state.mask,
        }
        found = self._sessions.run("choose", inputs | self._choosing(state.choices))
        state.next_tokens, state.next_log_prob = found["next_tokens"], found["next_log_prob"]

    def _prefill_by_rows(self, arrays: dict[str, Array], choices: int, choosing: dict[str, Value]) -> dict[str, Value]:
        """Run prefill for a few rows at a time, each time into their rows of the same outputs."""
        config, (rows, width) = self._model.config, arrays["tokens"].shape
        cache_shape = (rows, config.heads, 1 + width, config.head_size)
        shapes: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
            "next_tokens": ((rows, choices), np.int32),
            "next_log_prob": ((rows, choices), np.float32),
            "log_probs": ((rows, config.vocabulary), np.float32),
        }
        for layer in range(config.layers):
            shapes |= {f"prefix_{part}_{layer}": (cache_shape, self._element) for part in ("key", "value")}
        outputs = {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}
        for start in range(0, rows, PREFILL_ROWS):
            some = slice(start, start + PREFILL_ROWS)
            inputs = self._values({name: array[some] for name, array in arrays.items()})
            into = self._values({name: array[some] for name, array in outputs.items()})
            self._sessions.run("prefill", inputs | choosing, into=into)
        return self._values(outputs)

    def _values(self, arrays: dict[str, Array]) -> dict[str, Value]:
        return {name: self._sessions.value(array) for name, array in arrays.items()}

    def _choosing(self, choices: int, *, masked: bool = False) -> dict[str, Value]:
        """Return the inputs `choices` and `items`: how many items are chosen, and from how many tokens.

        Where the graph `choose` follows (`masked`), prefill and decode look at one token only, which costs nothing.
        """
        sizes = {"choices": 1, "items": 1} if masked else {"choices": choices, "items": self._model.tokens}
        return {name: self._sessions.value(np.array([n], np.int64), on_host=True) for name, n in sizes.items()}

    def _given(self, name: str, given_BW: F32 | None, has_B: U8 | None, rows: int, width: int) -> dict[str, Array]:
        """Return the inputs of an optional vector; zeros that count as not given if the batch has none."""
        if given_BW is None or has_B is None:
            given_BW, has_B = np.zeros((rows, width), np.float32), np.zeros(rows, np.bool_)
        return {
            name: given_BW.astype(self._element, copy=False),
            f"has_{name}": has_B[:, None].astype(self._element),
        }

    def _make_suffix(self, state: OnnxState) -> None:
        """Add an empty suffix cache to a state."""
        config = self._model.config
        shape = (state.rows, config.heads, state.steps, config.head_size)
        state.read = self._sessions.value(np.zeros((state.rows, state.steps), np.int32))
        for name in state.prefix:
            array = np.zeros(shape, self._element)
            suffix = name.replace("prefix", "suffix")
            state.suffix[suffix] = self._sessions.value(array)
            if self._sessions.kind == "cpu":
                state.suffix_arrays[suffix] = array

    def _append(self, state: OnnxState, step_1: Value, outputs: dict[str, Value]) -> None:
        """Write the columns from decode into the suffix cache: in place on the host, else with a graph."""
        columns = {name: value for name, value in outputs.items() if name.startswith("column_")}
        for name, array in state.suffix_arrays.items():
            array[:, :, state.step] = columns[name.replace("suffix", "column")].numpy()[:, :, 0]
        if not state.suffix_arrays:
            appended = self._sessions.run("append", {"step": step_1, **state.suffix, **columns})
            state.suffix = {name: appended[name.replace("suffix", "appended")] for name in state.suffix}

    def _item(self, state: OnnxState, tokens_B: I32 | None) -> tuple[Value, Value | Array]:
        """Return the item to read, [B, 1], and its log-probability."""
        if tokens_B is None:
            if state.choices == 1:
                return state.next_tokens, state.next_log_prob
            return self._sessions.value(host(state.next_tokens)[:, :1]), state.next_log_prob
        token_B1 = tokens_B[:, None].astype(np.int32)
        return self._sessions.value(token_B1), log_probs_of(state.log_probs, token_B1)
