"""A gRPC server that speaks Triton's protocol and computes with an engine in this process; it can be made to fail.

Owns: the protocol's bytes, and faults. Must not know: how batches are balanced. `behave` is called before each batch
with the server and may sleep, abort the call, or return a change of the answer's tensors.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

from genrec_batch.engines.decode import recommend
from genrec_batch.engines.remote import wire
from genrec_batch.engines.remote.wire import Facts


class FakeServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One server on a loopback port."""

    def __init__(self, served, local, *, behave=None, refuses="", port=0, **facts):
        self.model, self.local, self.behave, self.refuses = served, local, behave, refuses
        known = {"engine": "torch", "device": "cpu", "precision": "fp32", "arithmetic": "", "max_batch": 4}
        known |= {"instances": 1, "model": served.fingerprint, "tokens": served.tokens}
        self.facts = Facts(**(known | facts))  # which may not be true
        self.users, self.batches, self.probes, self.priorities = 0, 0, 0, set()
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(8))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def change(self, **facts):
        """Become another server behind the same address."""
        self.facts = replace(self.facts, **facts)

    def stop(self):
        """End, and lose what is being computed."""
        self._server.stop(0).wait()

    def ModelInfer(self, request, context):
        """Answer one request."""
        if self.refuses:
            context.abort(grpc.StatusCode.NOT_FOUND, self.refuses)
        tensors = {}
        for each, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            tensors[each.name] = np.frombuffer(raw, triton_to_np_dtype(each.datatype)).reshape(each.shape)
        parameters = {}
        for name, each in request.parameters.items():
            kind = each.WhichOneof("parameter_choice")
            if name == "priority":
                self.priorities.add(getattr(each, kind))
            else:
                parameters[name] = getattr(each, kind)
        decoding, fingerprint = wire.decoding_of(parameters)
        rows = len(tensors[wire.FEATURES])
        probe = rows == 1 and not tensors[wire.FEATURES].any()
        with self._lock:
            self.probes += probe
            if not probe:
                self.batches += 1
                self.users += rows
        changed = {} if probe or self.behave is None else self.behave(self, context) or {}
        if fingerprint != self.facts.model:
            return _response(wire.facts_of(self.facts, rows))
        with self._lock:
            ranked = recommend(self.local, wire.batch_of(tensors, self.model), decoding)
        found = wire.answer_of(ranked, self.facts) | changed
        return _response({name: each for name, each in found.items() if each is not None})


def _response(tensors):
    response = service_pb2.ModelInferResponse(model_name="genrec")
    for name, array in tensors.items():
        output = response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype))
        output.shape.extend(array.shape)
        raw = serialize_byte_tensor(array).item() if array.dtype == np.object_ else array.tobytes()
        response.raw_output_contents.append(raw)
    return response
