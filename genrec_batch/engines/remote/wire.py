"""How a batch goes to a server and its ranking comes back: named tensors and parameters, the same words on both sides.

Owns: names, types and shapes of the tensors, and the facts that come with every answer. Must not know: Triton, gRPC,
engines. In and out: `arrays.Batch`, `arrays.Ranked`, `Decoding`, and plain arrays by name. Floats are FP32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch.core.arrays import FIRST_ITEM, HEADS, I64, MASK_BITS, U32, Batch, Masks, Ranked
from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.engines.decode import Decoding
from genrec_batch.model.weights import Model

Tensors = Mapping[str, npt.NDArray[Any]]

FEATURES, TOKENS, LENGTHS, SEEN, BANNED = "FEATURES", "TOKENS", "LENGTHS", "SEEN", "BANNED"
CANDIDATES, PROFILE, VIDEO = "CANDIDATES", "PROFILE", "VIDEO"
HAS_PROFILE, HAS_VIDEO = "HAS_PROFILE", "HAS_VIDEO"
INPUTS = {  # by name: Triton's type, and the width of a row, -1 where it varies
    FEATURES: ("FP32", -1),
    TOKENS: ("INT32", -1),
    LENGTHS: ("INT32", 1),
    SEEN: ("INT32", -1),
    BANNED: ("UINT32", -1),
    CANDIDATES: ("INT32", -1),
    PROFILE: ("FP32", -1),
    HAS_PROFILE: ("BOOL", 1),
    VIDEO: ("FP32", -1),
    HAS_VIDEO: ("BOOL", 1),
}
ITEM, LOG_PROB, ENGINE = "ITEM", "LOG_PROB", "ENGINE"
HEAD_NAMES = tuple(head.upper() for head in HEADS)
OUTPUTS = {ITEM: "INT32", ENGINE: "BYTES"}  # beside LOG_PROB and the heads, which every answer has
MODEL = "model"  # a parameter, beside those of `Decoding`
DTYPES: dict[str, Any] = {"FP32": np.float32, "INT32": np.int32, "UINT32": np.uint32, "BOOL": np.bool_}
PRIORITY = 2  # of Triton's two levels: requests of users come first


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What computes an answer; two answers with the same facts can stand in one output."""

    model: str  # fingerprint of the weights
    tokens: int  # of the catalog, see `Model.tokens`
    engine: str
    device: str
    precision: str
    arithmetic: str
    max_batch: int  # users
    instances: int  # copies of the model, which compute side by side

    def text(self) -> str:
        """Return the facts as an answer carries them."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def of(text: str) -> Facts:
        """Return the facts of an answer.

        Raises:
            ValueError, TypeError: it carries none.
        """
        return Facts(**json.loads(text))

    def computes(self) -> tuple[object, ...]:
        """Return what decides the last bits of an answer."""
        return self.engine, self.device.partition(":")[0], self.precision, self.arithmetic, self.max_batch

    def __str__(self) -> str:
        return f"{self.engine} in {self.precision} on {self.device}, {self.max_batch} users a batch"


def tensors_of(batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """Return a batch as tensors."""
    found: dict[str, npt.NDArray[Any] | None] = {
        FEATURES: batch.dense_BF,
        TOKENS: batch.tokens_BS,
        LENGTHS: batch.lengths_B[:, None],
        SEEN: batch.seen_BX,
        BANNED: None if batch.masks is None else batch.masks.banned_MW[batch.masks.mask_B],
        CANDIDATES: batch.candidates_BC,
        PROFILE: batch.profile_BP,
        HAS_PROFILE: None if batch.has_profile_B is None else batch.has_profile_B[:, None],
        VIDEO: batch.video_BV,
        HAS_VIDEO: None if batch.has_video_B is None else batch.has_video_B[:, None],
    }
    return {name: np.ascontiguousarray(each) for name, each in found.items() if each is not None}


def batch_of(tensors: Tensors, model: Model) -> Batch:
    """Return the batch of some tensors.

    Raises:
        InputError: a tensor is missing, or has a shape or a value that the model does not have.
    """
    for name in (FEATURES, TOKENS, LENGTHS):
        if name not in tensors:
            raise InputError(f"{name} is missing: a batch has at least {FEATURES}, {TOKENS} and {LENGTHS}")
    rows, config = len(tensors[FEATURES]), model.config
    widths = {FEATURES: config.features, BANNED: -(-config.vocabulary // MASK_BITS)}
    widths |= {PROFILE: config.profile, VIDEO: config.video}
    for name, width in widths.items():
        if name in tensors and tensors[name].shape[1] != width:
            raise InputError(f"{name} has {tensors[name].shape[1]} columns, the model reads {width}")
    for name in (TOKENS, SEEN, CANDIDATES):
        if name in tensors and not ((tensors[name] >= 0) & (tensors[name] < config.vocabulary)).all():
            raise InputError(f"{name} has a token that is none of the model's {config.vocabulary:,}")
    lengths_B = tensors[LENGTHS][:, 0]
    if not ((lengths_B >= 0) & (lengths_B <= tensors[TOKENS].shape[1])).all():
        raise InputError(f"{LENGTHS}: a history has 0 to {tensors[TOKENS].shape[1]} tokens, as {TOKENS} is wide")
    for name, has in ((PROFILE, HAS_PROFILE), (VIDEO, HAS_VIDEO)):
        if (name in tensors) != (has in tensors):
            raise InputError(f"{name} and {has} go together")
    has_them = {name: tensors[name][:, 0] for name in (HAS_PROFILE, HAS_VIDEO) if name in tensors}
    return Batch(
        dense_BF=tensors[FEATURES],
        tokens_BS=tensors[TOKENS],
        lengths_B=lengths_B,
        seen_BX=tensors.get(SEEN, np.zeros((rows, 1), np.int32)),
        candidates_BC=tensors.get(CANDIDATES),
        profile_BP=tensors.get(PROFILE),
        has_profile_B=has_them.get(HAS_PROFILE),
        video_BV=tensors.get(VIDEO),
        has_video_B=has_them.get(HAS_VIDEO),
        masks=_masks(tensors[BANNED]) if BANNED in tensors else None,
    )


def _masks(banned_BW: U32) -> Masks:
    """Return bit maps of rows, with each different one once."""
    places: dict[bytes, int] = {}
    mask_B = np.array([places.setdefault(row.tobytes(), len(places)) for row in banned_BW], np.int32)
    first_M: I64 = np.unique(mask_B, return_index=True)[1]
    return Masks(banned_MW=banned_BW[first_M], mask_B=mask_B)


def parameters_of(decoding: Decoding, fingerprint: str) -> dict[str, Any]:
    """Return how a list is made, and by which model, as parameters of a request."""
    return {**asdict(decoding), MODEL: fingerprint}


def decoding_of(parameters: Mapping[str, Any]) -> tuple[Decoding, str]:
    """Return how a list is made, and the fingerprint of the model that makes it.

    Raises:
        ConfigError: parameters are missing, or of another kind.
    """
    given: dict[str, Any] = {name: parameters.get(name) for name in (*asdict(Decoding()), MODEL)}
    numbers = [given[name] for name in ("top_k", "num_candidates", "beam_width")]
    whole = all(isinstance(each, int) and not isinstance(each, bool) and each >= 1 for each in numbers)
    fingerprint = given.pop(MODEL)
    if not whole or given["mode"] not in ("slate", "candidates") or not isinstance(fingerprint, str):
        raise ConfigError(f"the parameters {', '.join(given)} and {MODEL} say how a batch is decoded; got {parameters}")
    return Decoding(**given), fingerprint


def answer_of(ranked: Ranked, facts: Facts) -> dict[str, npt.NDArray[Any]]:
    """Return a ranking as tensors, and what computed it."""
    heads_HBK = np.ascontiguousarray(np.moveaxis(ranked.heads_BKH, 2, 0))
    return {
        ITEM: np.ascontiguousarray(ranked.tokens_BK),
        LOG_PROB: np.ascontiguousarray(ranked.log_prob_BK),
        **dict(zip(HEAD_NAMES, heads_HBK, strict=True)),
        **facts_of(facts, len(ranked)),
    }


def facts_of(facts: Facts, rows: int) -> dict[str, npt.NDArray[Any]]:
    """Return what would compute an answer, for each row."""
    return {ENGINE: np.full((rows, 1), facts.text().encode(), np.object_)}


def ranked_of(tensors: Tensors, batch: Batch, columns: int | None, vocabulary: int) -> Ranked:
    """Return the ranking of an answer.

    Args:
        tensors: the answer.
        batch: what was asked.
        columns: items of each row; None: as many as there are given candidates.
        vocabulary: of the model.

    Raises:
        ValueError: a tensor is missing, or has another type or shape, or an item that the model does not have.
    """
    wanted = len(batch), columns if batch.candidates_BC is None else batch.candidates_BC.shape[1]
    for name in (ITEM, LOG_PROB, *HEAD_NAMES):
        each = tensors.get(name)
        if each is None:
            raise ValueError(f"{name} is missing")
        dtype = np.int32 if name == ITEM else np.float32
        if each.shape != wanted or each.dtype != dtype:
            raise ValueError(f"{name} is {each.dtype} {list(each.shape)}, expected {np.dtype(dtype)} {list(wanted)}")
    tokens_BK = tensors[ITEM]
    if not ((tokens_BK == 0) | ((tokens_BK >= FIRST_ITEM) & (tokens_BK < vocabulary))).all():
        raise ValueError(f"{ITEM} has a token that is no item of the model's {vocabulary:,}")
    heads_BKH = np.stack([tensors[name] for name in HEAD_NAMES], axis=-1)
    return Ranked(tokens_BK=tokens_BK, log_prob_BK=tensors[LOG_PROB], heads_BKH=heads_BKH)
