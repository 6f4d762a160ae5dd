"""The front of a model in Triton's Python backend: tensors in, tensors out.

Owns: names and types of the tensors, which Triton error a refusal becomes, and requests that were cancelled. Must not
know: what a request says, how it is answered. `1/model.py` of a repository imports this class, and nothing else but
`metrics` knows Triton. The package `triton_python_backend_utils` exists only there.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import HEADS, SOURCES
from genrec_batch.core.errors import ConfigError, GenrecError, InputError, RetryError
from genrec_batch.engines.remote import wire
from genrec_batch.serving import batches, expected
from genrec_batch.serving.arms import Arms
from genrec_batch.serving.metrics import Metrics
from genrec_batch.serving.served import Answer

REQUEST = "REQUEST"
COUNT, VIDEO_ID, SCORE, LOG_PROB, STEP, SOURCE = "COUNT", "VIDEO_ID", "SCORE", "LOG_PROB", "STEP", "SOURCE"
ARM, BUCKET, VERSION = "ARM", "BUCKET", "VERSION"
ONE_EACH = (COUNT, ARM, BUCKET, VERSION, wire.ENGINE)  # a value for each user, not for each video
HEAD_NAMES = [head.upper() for head in HEADS]
OUTPUTS = {  # by name: the type in config.pbtxt; None is that of the catalog's ids
    COUNT: "TYPE_INT32",
    VIDEO_ID: None,
    SCORE: "TYPE_FP32",
    LOG_PROB: "TYPE_FP32",
    STEP: "TYPE_INT32",
    SOURCE: "TYPE_STRING",
    **dict.fromkeys(HEAD_NAMES, "TYPE_FP32"),
    ARM: "TYPE_STRING",
    BUCKET: "TYPE_INT32",
    VERSION: "TYPE_STRING",
    wire.ITEM: "TYPE_INT32",
    wire.ENGINE: "TYPE_STRING",
}
SOURCE_NAMES = np.array([name.encode() for name in SOURCES], np.object_)
WARM_UP = (1, 2, 4, 8, 16)  # users of a batch, so that the engine has seen the usual sizes

Tensors = dict[str, npt.NDArray[Any]]


class TritonPythonModel:
    """What Triton calls: `initialize` once, then `execute` with the requests that it has batched."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the version's model, answer its warm-up request at the usual sizes of a batch, and check its answers."""
        self._backend = importlib.import_module("triton_python_backend_utils")
        folder = Path(args["model_repository"])
        self._served = Arms.open(folder / args["model_version"])
        groups = json.loads(args["model_config"])["instance_group"]
        self._instances = sum(int(group["count"]) for group in groups)
        # Of two instances with the same labels, the first to end would free the metric of the other, too.
        process = str(os.getpid())
        labels = {"model": args["model_name"], "version": args["model_version"], "process": process}
        self._metrics = Metrics(self._backend, labels, self._served.sessions)
        self._users = self._metrics.users
        content = (folder / "warmup" / "request").read_bytes()[4:]  # behind its length
        for users in WARM_UP:
            if users <= self._served.serving.max_batch:
                for answer in self._served.answers([content] * users):
                    if isinstance(answer, GenrecError):
                        raise answer
        expected.check(self._served, folder / args["model_version"])
        if self._served.sessions is not None:
            self._served.sessions.clear()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response for each request, or the reason of a refusal.

        A request has one user for each element of its tensor, or is a batch of `score --engine triton://`.
        """
        contents: list[bytes] = []
        rows: list[slice | Any] = []  # of a request's users, or its response
        for request in requests:
            if request.is_cancelled():
                self._users["cancelled"].increment(1)
                rows.append(self._cancelled())
                continue
            asked = self._backend.get_input_tensor_by_name(request, REQUEST)
            if asked is None:
                rows.append(self._batch(request))
                continue
            mine = asked.as_numpy().reshape(-1)
            rows.append(slice(len(contents), len(contents) + len(mine)))
            contents.extend(mine)
        found = self._served.answers(contents)
        refused = sum(isinstance(each, GenrecError) for each in found)
        self._users["refused"].increment(refused)
        self._users["answered"].increment(len(found) - refused)
        self._metrics.count_sessions()
        return [self._response(found[mine]) if isinstance(mine, slice) else mine for mine in rows]

    def finalize(self) -> None:
        """Release the model."""
        self._metrics.close()
        del self._served, self._users, self._metrics

    def _response(self, answers: Sequence[Answer | GenrecError]) -> Any:
        refused = [(place, each) for place, each in enumerate(answers) if isinstance(each, GenrecError)]
        backend = self._backend
        if refused:
            place, error = refused[0]
            where = f"user {place} of {len(answers)} of the request: " if len(answers) > 1 else ""
            return self._error(f"{where}{error}", code_of(error))
        lists = tensors([each for each in answers if isinstance(each, Answer)])
        return backend.InferenceResponse([backend.Tensor(name, array) for name, array in lists.items()])

    def _batch(self, request: Any) -> Any:
        """Return the response to a batch."""
        tensors = {each.name(): each.as_numpy().copy() for each in request.inputs()}  # an engine may keep them
        try:
            found = batches.answered(
                self._served.served, tensors, json.loads(request.parameters() or "{}"), self._instances
            )
        except GenrecError as error:
            self._users["refused"].increment(1)
            return self._error(str(error), code_of(error))
        self._users["answered"].increment(len(found[wire.ENGINE]))
        return self._backend.InferenceResponse([self._backend.Tensor(name, array) for name, array in found.items()])

    def _error(self, text: str, code: str) -> Any:
        backend = self._backend
        return backend.InferenceResponse(error=backend.TritonError(text, getattr(backend.TritonError, code)))

    def _cancelled(self) -> Any:
        return self._error("the request was cancelled", "CANCELLED")


def code_of(error: GenrecError) -> str:
    """Return the name of Triton's code for an error."""
    if isinstance(error, (InputError, ConfigError)):
        return "INVALID_ARG"
    return "UNAVAILABLE" if isinstance(error, RetryError) else "INTERNAL"


def tensors(answers: Sequence[Answer]) -> Tensors:
    """Return the tensors of B users, [B, K] but for `ONE_EACH` [B, 1]; K is the longest list, shorter ones end in 0.

    A number that no model computed (a score that decided no place) is 0, too: JSON has no NaN.
    """
    width = max(len(each) for each in answers)

    def filled(name: str, dtype: npt.DTypeLike, nothing: Any = 0) -> npt.NDArray[Any]:
        array = np.full((len(answers), width), nothing, dtype)
        for row, each in enumerate(answers):
            array[row, : len(each)] = getattr(each, name)
        return array

    def number(name: str) -> npt.NDArray[Any]:
        finite: npt.NDArray[Any] = np.nan_to_num(filled(name, np.float32), copy=False)
        return finite

    video_dtype = answers[0].video_K.dtype
    text = video_dtype == np.object_
    video_BK = filled("video_K", video_dtype, "" if text else 0)
    heads_BKH = np.zeros((len(answers), width, len(HEADS)), np.float32)
    for row, each in enumerate(answers):
        heads_BKH[row, : len(each)] = each.heads_KH
    source_BK = np.full((len(answers), width), b"", np.object_)
    for row, each in enumerate(answers):
        source_BK[row, : len(each)] = SOURCE_NAMES[each.source_K]
    heads = {name: np.ascontiguousarray(heads_BKH[:, :, place]) for place, name in enumerate(HEAD_NAMES)}
    return {
        COUNT: np.array([[len(each)] for each in answers], np.int32),
        VIDEO_ID: np.array([[each.encode() for each in row] for row in video_BK], np.object_) if text else video_BK,
        SCORE: number("score_K"),
        LOG_PROB: number("log_prob_K"),
        STEP: filled("step_K", np.int32),
        SOURCE: source_BK,
        **{name: np.nan_to_num(array, copy=False) for name, array in heads.items()},
        ARM: np.array([[each.arm.encode()] for each in answers], np.object_),
        BUCKET: np.array([[each.bucket] for each in answers], np.int32),
        VERSION: np.array([[each.version.encode()] for each in answers], np.object_),
    }
