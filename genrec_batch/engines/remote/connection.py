"""One server over gRPC: a request goes out, its outcome comes back on a thread of gRPC's.

Owns: the client library, its settings, and what a status means for the one who asked. Must not know: other servers,
what a batch is. In: tensors and parameters. Out: for each request one `Answer` or `Failure`.
"""

from __future__ import annotations

import http.client
import importlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np

from genrec_batch.core.errors import EngineError
from genrec_batch.engines.remote import wire
from genrec_batch.engines.remote.wire import Tensors

INSTALL = "pip install 'genrec-batch[triton]'"
CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    (
        "grpc.keepalive_time_ms",
        20_000,
    ),  # a server that has stopped, or whose machine is gone, is noticed by its silence
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of one's own
]
DEADLINE_S = 600.0  # for an answer; long before that, a server that is gone is noticed
HTTP_S = 2.0  # for a server to show that a port is HTTP's

AWAY: Final = "away"
FAULT: Final = "fault"
REFUSED: Final = "refused"
REFUSALS = ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "OUT_OF_RANGE")
FAULTS = ("INTERNAL", "UNKNOWN", "DATA_LOSS")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server computed."""

    tensors: Tensors


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a server computed nothing: it is `away`, has a `fault`, or has `refused` the request as it is."""

    kind: Literal["away", "fault", "refused"]
    text: str


Outcome = Answer | Failure
Done = Callable[[Outcome], None]


def library() -> ModuleType:
    """Return the client library.

    Raises:
        EngineError: it is not installed, or without gRPC.
    """
    try:
        return importlib.import_module("tritonclient.grpc")
    except ImportError as error:
        raise EngineError(
            f"--engine triton://: the package tritonclient with gRPC is not installed ({error}); {INSTALL}"
        ) from error


class Connection:
    """A connection to one server, made when it is needed and again when it was lost.

    A thread of its own sends: a signal that interrupts gRPC in the main thread can leave a call that never ends, and
    for which closing the connection would wait.
    """

    def __init__(self, address: str, *, model: str, tls: bool) -> None:
        self._grpc, self._model = library(), model
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="server")
        self._client = self._grpc.InferenceServerClient(address, ssl=tls, channel_args=CHANNEL)

    def request(self, tensors: Tensors) -> list[Any]:
        """Return tensors in the form in which they are sent, which may be used several times."""
        inputs = []
        for name, array in tensors.items():
            each = self._grpc.InferInput(name, list(array.shape), wire.INPUTS[name][0])
            each.set_data_from_numpy(array)
            inputs.append(each)
        return inputs

    def ask(
        self, inputs: list[Any], parameters: Mapping[str, Any], done: Done, deadline_s: float = DEADLINE_S
    ) -> Callable[[], Any]:
        """Send a request; `done` receives its outcome on another thread. Return what cancels it."""

        def finished(*, result: Any, error: Any) -> None:
            done(_answer(result) if error is None else failure(error.status(), error.message()))

        sent = self._sender.submit(
            self._client.async_infer,
            self._model,
            inputs,
            finished,
            priority=wire.PRIORITY,
            client_timeout=deadline_s,
            parameters=dict(parameters),
        )
        return lambda: sent.add_done_callback(lambda call: call.result().cancel())

    def close(self) -> None:
        """End the connection and every request of it."""
        self._sender.shutdown()
        self._client.close()


def _answer(result: Any) -> Answer:
    names = [each.name for each in result.get_response().outputs]
    return Answer(tensors={name: np.array(result.as_numpy(name)) for name in names})


def failure(status: str | None, text: str | None) -> Failure:
    """Return what a status of gRPC means; one that is not known may pass."""
    code = (status or "").rpartition(".")[2]
    said = f"{code or 'no status'}: {text or 'no reason given'}"
    if code in REFUSALS:
        return Failure(kind=REFUSED, text=said)
    return Failure(kind=FAULT if code in FAULTS else AWAY, text=said)


def speaks_http(address: str) -> bool:
    """Return whether an address answers to HTTP/1.1, as the ports of Triton do that are not gRPC's."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=HTTP_S)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().version in (10, 11)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
