"""From trained weights to those of a model directory, and back.

Owns: what is folded into the saved weights (the standardisation of features, the calibration of heads), the rows that
stand for no video, the correction of the output bias, and embeddings carried over from another model. Must not know:
files, the training loop. Sizes, names and engines stay those of `model.weights`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from genrec_batch.core.arrays import F32, FIRST_ITEM, HEADS, I32
from genrec_batch.events.splits import DAY_US
from genrec_batch.model.weights import ModelConfig, Weights
from genrec_batch.training.heads import Calibration
from genrec_batch.training.inputs import Events, Standard
from genrec_batch.training.network import OUTPUT, OUTPUT_BIAS, TOKENS, Parameters

NEVER = -1e4  # output bias of padding, unknown and rows without a video
AMOUNTS = (0.0, 0.25, 0.5, 0.75)  # of the correction that are tried
FURTHEST_LOG = 3.0  # of the ratio of two days' popularity
PROJECTION = "feature_projection"
VECTORS = {"profile": "user_profile_projection", "video": "video_feature_projection"}


def exported(
    weights: Parameters,
    config: ModelConfig,
    standard: Standard,
    calibrations: Sequence[Calibration],
    *,
    items: int,
    bias_added: F32 | None,
    without: Sequence[str],
) -> dict[str, F32]:
    """Return the weights as they are saved; projections of vectors that no side table had (`without`) are 0."""
    arrays = {name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in weights.items()}
    arrays[OUTPUT] = arrays[TOKENS].copy()
    bias_V = np.full(config.vocabulary, NEVER, np.float32)
    catalog = slice(FIRST_ITEM, FIRST_ITEM + items)
    bias_V[catalog] = arrays[OUTPUT_BIAS][catalog] + (0 if bias_added is None else bias_added)
    arrays[OUTPUT_BIAS] = bias_V
    folded_DF = arrays[f"{PROJECTION}.weight"].astype(np.float64) * standard.varies_F / standard.scale_F
    arrays[f"{PROJECTION}.weight"] = folded_DF.astype(np.float32)
    arrays[f"{PROJECTION}.bias"] = (arrays[f"{PROJECTION}.bias"] - folded_DF @ standard.mean_F).astype(np.float32)
    for name in without:
        for part in ("weight", "bias"):
            arrays[f"{VECTORS[name]}.{part}"][:] = 0
    for head, calibration in zip(HEADS, calibrations, strict=True):
        arrays[f"{head}_head.weight"] *= np.float32(calibration.scale)
        arrays[f"{head}_head.bias"] *= np.float32(calibration.scale)
        arrays[f"{head}_head.bias"] += np.float32(calibration.shift)
    return arrays


def carried_over(
    weights: dict[str, Tensor], model: Weights, standard: Standard, old_token_V: I32, items: int
) -> dict[str, Tensor]:
    """Return initial parameters that begin with another model's; what it did not know keeps its own.

    `old_token_V` is the other model's token of each of our catalog's videos, 0 where it has none.
    """
    begun = {name: tensor.clone() for name, tensor in weights.items()}
    for name, array in model.items():
        if name not in (TOKENS, OUTPUT, OUTPUT_BIAS) and not name.startswith(PROJECTION):
            begun[name] = torch.from_numpy(array.copy())
    folded_DF = model[f"{PROJECTION}.weight"].astype(np.float64)
    begun[f"{PROJECTION}.weight"] = torch.from_numpy((folded_DF * standard.scale_F).astype(np.float32))
    bias_D = model[f"{PROJECTION}.bias"] + folded_DF @ standard.mean_F
    begun[f"{PROJECTION}.bias"] = torch.from_numpy(bias_D.astype(np.float32))
    table_VD, bias_V = begun[TOKENS].numpy(), begun[OUTPUT_BIAS].numpy()
    table_VD[:FIRST_ITEM] = model[TOKENS][:FIRST_ITEM]
    ours = FIRST_ITEM + np.flatnonzero(old_token_V[:items] > 0)
    theirs = old_token_V[ours - FIRST_ITEM]
    table_VD[ours] = model[TOKENS][theirs]
    bias_V[FIRST_ITEM : FIRST_ITEM + items] = model[OUTPUT_BIAS][theirs].mean() if len(theirs) else 0
    bias_V[ours] = model[OUTPUT_BIAS][theirs]
    return begun


def last_day(events: Events, items: int) -> F32:
    """Return the log of each video's share of the newest day's events over its share of all events, within +-3.

    Both shares are smoothed by one event of each video, spread as all events are.
    """
    known_E = events.whole.tokens_E >= FIRST_ITEM
    token_M = events.whole.tokens_E[known_E] - FIRST_ITEM
    time_us_M = events.whole.time_us_E[known_E]
    newest_M = time_us_M > time_us_M.max(initial=0) - DAY_US
    all_C = np.bincount(token_M, minlength=items) + 1.0
    share_C = all_C / all_C.sum()
    of_day_C = np.bincount(token_M[newest_M], minlength=items) + share_C * items
    ratio_C = np.log(of_day_C / of_day_C.sum() / share_C)
    clipped_C: F32 = np.clip(ratio_C, -FURTHEST_LOG, FURTHEST_LOG).astype(np.float32)
    return clipped_C
