"""Batches of `score --engine triton://`: what a local engine would be given, as tensors.

Owns: which model of a repository computes a batch, and what is answered where it has another one. Must not know:
Triton, requests in JSON (`served`), how tensors are named (`engines.remote.wire`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from genrec_batch.core.errors import InputError
from genrec_batch.engines.decode import recommend
from genrec_batch.engines.remote import wire
from genrec_batch.engines.remote.wire import Facts, Tensors
from genrec_batch.serving.served import Served


def facts_of(served: Served, instances: int) -> Facts:
    """Return what computes for a model."""
    engine = served.engine
    return Facts(
        model=served.model.fingerprint,
        tokens=served.model.tokens,
        engine=engine.name,
        device=engine.device,
        precision=engine.precision,
        arithmetic=engine.arithmetic,
        max_batch=served.serving.max_batch,
        instances=instances,
    )


def answered(
    models: Sequence[Served], tensors: Tensors, parameters: Mapping[str, Any], instances: int
) -> dict[str, npt.NDArray[Any]]:
    """Return the ranking of a batch, by the one of some models that it asks for.

    Where none is that, the answer says only what the first model is.

    Raises:
        ConfigError, InputError: it does not fit the model.
        RetryError: the device is out of memory.
    """
    if wire.FEATURES not in tensors:
        raise InputError(f"a request has either REQUEST, or {wire.FEATURES} and the other tensors of a batch")
    decoding, fingerprint = wire.decoding_of(parameters)
    asked = next((each for each in models if each.model.fingerprint == fingerprint), None)
    if asked is None:
        return wire.facts_of(facts_of(models[0], instances), len(tensors[wire.FEATURES]))
    for name in ("top_k", "num_candidates", "beam_width"):
        if getattr(decoding, name) > asked.model.config.vocabulary:
            raise InputError(f"{name}: more than the {asked.model.config.vocabulary:,} tokens of the model")
    batch = wire.batch_of(tensors, asked.model)
    return wire.answer_of(recommend(asked.engine, batch, decoding), facts_of(asked, instances))
