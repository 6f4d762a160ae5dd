"""`triton_python_backend_utils` as far as the front uses it: the package exists only inside Triton's Python backend."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np


class TritonError(Exception):
    """An error with Triton's code."""

    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = "INTERNAL", "INVALID_ARG", "UNAVAILABLE", "CANCELLED"

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


@dataclass
class Tensor:
    """A named array."""

    label: str
    array: np.ndarray

    def name(self):
        """Return the name."""
        return self.label

    def as_numpy(self):
        """Return the array."""
        return self.array


@dataclass
class Metric:
    """A counter or a gauge."""

    labels: dict
    value: float = 0.0

    def increment(self, value):
        """Count."""
        self.value += value


class MetricFamily:
    """Counters or gauges by labels."""

    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self, name, description, kind):
        assert name.startswith("genrec_")
        assert kind == (self.GAUGE if name.endswith("_bytes") else self.COUNTER)
        self.description = description

    def Metric(self, labels):
        """Return a counter."""
        return Metric(labels)


@dataclass
class InferenceResponse:
    """Tensors, or an error."""

    tensors: list = field(default_factory=list)
    error: TritonError | None = None


@dataclass
class Request:
    """One request with some users, or with the tensors and parameters of a batch."""

    contents: list[bytes] = field(default_factory=list)
    cancelled: bool = False
    tensors: dict = field(default_factory=dict)
    said: dict = field(default_factory=dict)

    def is_cancelled(self):
        """Return whether the client has gone."""
        return self.cancelled

    def inputs(self):
        """Return the tensors."""
        return [Tensor(name, array) for name, array in self.tensors.items()]

    def parameters(self):
        """Return the parameters as Triton does."""
        return json.dumps(self.said) if self.said else ""

    def tensor(self):
        """Return the tensor as Triton hands it over: a column of bytes."""
        return Tensor("REQUEST", np.array(self.contents, np.object_).reshape(-1, 1))


def get_input_tensor_by_name(request, name):
    """Return a tensor of a request."""
    assert name == "REQUEST"
    return request.tensor() if request.contents else None
