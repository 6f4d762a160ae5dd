"""What a version has to answer: the answers to a few requests, which a server compares before the version is live.

Owns: the file `expected.json` of a version, how it is computed, and how far an answer may be from it. Must not know:
servers, where the version comes from. The answers are computed in fp32 on the CPU, in a process of its own: an engine
that crashes ends that process only. A server computes on its own engine and device: a version that cannot answer there,
or answers otherwise, is not loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genrec_batch.core.errors import EngineError, GenrecError, ModelError, RetryError
from genrec_batch.io import durable
from genrec_batch.runtime.children import Child, Link
from genrec_batch.serving.arms import SERVING_FILE, Arms
from genrec_batch.serving.served import Answer

EXPECTED_FILE = "expected.json"
WARM_UP_BYTES = 4  # that say the length of the warm-up request
ALIKE = 0.5  # share of the videos that must be the same: a gate on quality is that of `model promote`
CLOSE, CLOSE_LOW = 1e-3, 0.25  # log-probabilities of the same video may differ by, in fp32 and in other precisions
NICE = 10  # of the process that computes: a server on the same cores goes first
MOST_USERS = 50_000  # that are tried to find two of each arm

Expected = Mapping[str, Any]


def computed(folder: Path, warm_up: bytes) -> list[dict[str, Any]]:
    """Compute what a version has to answer, and write it beside the version's other files.

    Raises:
        ModelError, EngineError: the version cannot be opened or cannot answer.
    """
    child = Child.start(__name__, sorted(os.sched_getaffinity(0)))
    try:
        child.link.send((str(folder), warm_up[WARM_UP_BYTES:]))
        found, _ = child.link.receive()
    except (EOFError, OSError) as error:
        raise EngineError(f"{folder.parent}: the check of the version has crashed: {child.end()}") from error
    finally:
        child.end()
    if isinstance(found, GenrecError):
        raise found
    durable.write_json(folder / EXPECTED_FILE, found)
    return list(found)


def main(link: Link) -> None:
    """Compute the answers of a version, in a process of its own."""
    os.nice(NICE)
    (folder, warm_up), _ = link.receive()
    try:
        link.send(_answers(Path(folder), warm_up))
    except GenrecError as error:  # of these kinds, which can be pickled
        kind = next((kind for kind in (RetryError, EngineError) if isinstance(error, kind)), ModelError)
        link.send(kind(str(error)))


def check(served: Arms, folder: Path) -> None:
    """Compare what an opened version answers with what it has to answer, if its folder says it.

    Raises:
        ModelError: the file is damaged, or an answer is another one.
        GenrecError: a request is refused.
    """
    path = folder / EXPECTED_FILE
    if not path.exists():
        return
    found = durable.read_json(path)
    if not isinstance(found, list):
        raise ModelError(f"{path}: damaged")
    answers = served.answers([each["request"].encode() for each in found])
    for expected, answer in zip(found, answers, strict=True):
        if isinstance(answer, GenrecError):
            raise answer
        compare(expected, _facts(answer), served.serving.precision)


def compare(expected: Expected, answer: Expected, precision: str) -> None:
    """Compare an answer with the expected one; videos after the first that differs are compared as a set.

    Raises:
        ModelError: it is another one.
    """
    for name in ("version", "arm"):
        if expected[name] != answer[name]:
            raise ModelError(f"the answer is of {name} {answer[name]!r}, not of {expected[name]!r}")
    mine, theirs = expected["videos"], answer["videos"]
    longest = max(len(mine), len(theirs))
    alike = len(set(mine) & set(theirs)) / longest if longest else 1.0
    if alike < ALIKE:
        raise ModelError(
            f"only {alike:.0%} of the answer's videos are those that the model recommends in fp32 on a CPU"
        )
    same = int(np.logical_and.accumulate([a == b for a, b in zip(mine, theirs, strict=False)]).sum())
    gap = np.abs(np.array(expected["log_probs"][:same]) - np.array(answer["log_probs"][:same])).max(initial=0.0)
    most = CLOSE if precision == "fp32" else CLOSE_LOW
    if not gap <= most:
        raise ModelError(f"the answer's log_prob is {gap:.3g} from that of the model in fp32 on a CPU, at most {most}")


def _answers(folder: Path, warm_up: bytes) -> list[dict[str, Any]]:
    """Return requests with their answers: the warm-up request and that of a cold start, of a user of each arm."""
    engine = json.loads((folder / SERVING_FILE).read_text())["serving"]["engine"]
    engine = "torch" if engine == "torch" else "onnxruntime"
    served = Arms.open(folder, elsewhere={"engine": engine, "device": "cpu", "precision": "fp32"})
    warm = {name: value for name, value in json.loads(warm_up).items() if name != "user_id"}
    requests = [json.dumps(each) for users in _users(served) for each in ({**warm, **users[0]}, users[1])]
    answers = served.answers([each.encode() for each in requests])
    refused = [each for each in answers if isinstance(each, GenrecError)]
    if refused:
        raise refused[0]
    return [
        {"request": request, **_facts(answer)}
        for request, answer in zip(requests, answers, strict=True)
        if isinstance(answer, Answer)
    ]


def _users(served: Arms) -> list[list[dict[str, str]]]:
    """Return two users of each arm, who are no real ones; without an experiment they need no id."""
    if served.assignment is None:
        return [[{}, {}]]
    ids = [f"genrec-batch check {number}" for number in range(MOST_USERS)]
    _, arm_N = served.assigned(ids)
    found = [np.flatnonzero(arm_N == place)[:2] for place in range(len(served.names))]
    return [[{"user_id": ids[row]} for row in rows] for rows in found if len(rows) > 1]


def _facts(answer: Answer) -> dict[str, Any]:
    return {
        "version": answer.version,
        "arm": answer.arm,
        "videos": answer.video_K.tolist(),
        "log_probs": [float(each) for each in answer.log_prob_K],
    }
