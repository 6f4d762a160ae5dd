"""ONNX Runtime: its providers, sessions by name, tensors on a device, and running a graph.

Owns: every call of the onnxruntime package and the errors that it can raise. Must not know: the model, its graphs, the
state of a batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.core.errors import DeviceMemoryError, EngineError
from genrec_batch.runtime.threads import cores

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
INSTALL = {"cpu": "pip install 'genrec-batch[cpu]'", "cuda": "pip install 'genrec-batch[gpu]'"}
OUT_OF_MEMORY = ("failed to allocate", "out of memory", "bad allocation", "bad_alloc", "available memory of")

Value = Any  # onnxruntime.OrtValue: a tensor on the host or on the device
Array = npt.NDArray[Any]


class OnnxSessions:
    """Sessions on one device. Each is made when it is first run; inputs and outputs stay on the device."""

    def __init__(self, device: str, *, threads: int | None, graph: Callable[[str], bytes]) -> None:
        """Find the provider.

        Args:
            device: "cpu" or "cuda:N".
            threads: of one operator on the CPU; by default as many as this process may use.
            graph: returns a graph by name.

        Raises:
            EngineError: onnxruntime or its provider is missing.
        """
        self.kind, _, number = device.partition(":")
        self._device_id = int(number or 0)
        self._runtime = imported("onnxruntime", self.kind)
        self._threads = threads or cores()
        self._graph = graph
        self._loaded: dict[str, Any] = {}
        available = self._runtime.get_available_providers()
        if PROVIDERS[self.kind] not in available:
            raise EngineError(
                f"--device {device}: this onnxruntime has no {PROVIDERS[self.kind]} (only {', '.join(available)}); "
                f"{INSTALL[self.kind]}, in an environment without the other onnxruntime package"
            )
        if self.kind == "cuda" and hasattr(self._runtime, "preload_dlls"):
            self._runtime.preload_dlls()  # finds the CUDA libraries of Python packages

    def load(self, name: str) -> Any:
        """Return the session of a graph.

        Raises:
            EngineError: the graph cannot be loaded, or the provider cannot start (no driver, for example).
        """
        if name not in self._loaded:
            graph = self._graph(name)
            options = self._options()
            with self._errors(f"loading the graph {name}"):
                session = self._runtime.InferenceSession(graph, options, providers=self._providers())
            if session.get_providers()[0] != PROVIDERS[self.kind]:
                raise EngineError.of_device(
                    f"--device {self.kind}: onnxruntime could not start {PROVIDERS[self.kind]}: is there an NVIDIA "
                    f"driver, and are the CUDA and cuDNN libraries of its version there? ({INSTALL[self.kind]})"
                )
            self._loaded[name] = session
        return self._loaded[name]

    def _options(self) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # errors are raised, and need not be printed too
        # Sessions take turns on the same cores: the threads of a waiting session must not spin.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    def _providers(self) -> list[Any]:
        if self.kind == "cpu":
            return [PROVIDERS["cpu"]]
        # TensorFloat-32 is less precise than fp32. The CPU provider computes shapes.
        cuda = {"device_id": self._device_id, "use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}
        return [(PROVIDERS["cuda"], cuda), PROVIDERS["cpu"]]

    def value(self, array: Array, *, on_host: bool = False) -> Value:
        """Return an array as a tensor on the device (on a CPU, the same memory)."""
        kind = "cpu" if on_host else self.kind
        with self._errors(f"placing {array.nbytes} bytes"):
            return self._runtime.OrtValue.ortvalue_from_numpy(
                np.ascontiguousarray(array), kind, 0 if on_host else self._device_id
            )

    def run(
        self, name: str, inputs: Mapping[str, Value], *, into: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        """Run a graph and return its outputs by name, on the device: the tensors of `into`, or new ones.

        Raises:
            DeviceMemoryError: memory ran out.
            EngineError: the graph failed for another reason.
        """
        session = self.load(name)
        binding = session.io_binding()
        for key, value in inputs.items():
            binding.bind_ortvalue_input(key, value)
        outputs = [output.name for output in session.get_outputs()]
        for key in outputs:
            if into is None:
                binding.bind_output(key, self.kind, self._device_id)
            else:
                binding.bind_ortvalue_output(key, into[key])
        with self._errors(f"running the graph {name}"):
            session.run_with_iobinding(binding)
        return dict(zip(outputs, binding.get_outputs(), strict=True))

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        states = self._runtime.capi.onnxruntime_pybind11_state
        kinds = (RuntimeError, states.Fail, states.RuntimeException, states.EPFail, states.InvalidGraph)
        try:
            yield
        except (MemoryError, *kinds) as error:
            if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in OUT_OF_MEMORY):
                raise DeviceMemoryError(
                    f"{doing} on {self.kind}: memory ran out; use a smaller --batch-size or --beam-width"
                ) from error
            raise EngineError.of_device(f"{doing} on {self.kind}: onnxruntime failed: {error}") from error


def imported(package: str, kind: str) -> ModuleType:
    """Return a package that the engine needs on `kind`, cpu or cuda.

    Raises:
        EngineError: it is not installed or cannot be loaded; the message says how to install it for `kind`.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EngineError(f"the onnxruntime engine on {kind} needs {package} ({error}): {INSTALL[kind]}") from error
