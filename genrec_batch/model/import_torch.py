"""`model import`: PyTorch weights from other code, under this package's names.

Owns: the mapping from the tensors of a plain state_dict to parameters, and the sizes given by the shapes. Must not
know: files, torch, Polars. Nothing is guessed: a tensor that does not match exactly one parameter is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

import numpy as np

from genrec_batch.core import layout
from genrec_batch.core.arrays import F32, HEADS
from genrec_batch.core.errors import ModelError, nearest
from genrec_batch.model.weights import PRESETS, ModelConfig, Weights, check_weights, parameter_shapes

ALIASES: dict[str, tuple[str, ...]] = {
    "token_embedding": ("item_embedding", "video_embedding", "token_emb", "item_emb", "embedding", "embed_tokens"),
    "position_embedding": ("positional_embedding", "pos_embedding", "pos_emb", "position_emb"),
    "feature_projection": ("feature_proj", "input_projection", "input_proj", "dense_projection"),
    "user_profile_projection": ("user_profile_proj", "user_projection", "user_proj", "profile_projection"),
    "video_feature_projection": ("video_feature_proj", "video_projection", "video_proj"),
    "output_projection": ("output_proj", "output_layer", "lm_head"),
} | {f"{head}_head": (f"heads.{head}", f"task_heads.{head}", f"heads.{head}_head") for head in HEADS}

WRAPPER = re.compile(r"^(?:(?:module|model)\.)+")
LAYER = re.compile(r"^(?P<prefix>.*?)layers\.(?P<number>\d+)\.(?P<part>.+)$")
MARK = "self_attn.in_proj_weight"  # nn.MultiheadAttention's stacked matrix, which shows where the encoder is

SIZES: dict[str, tuple[tuple[str, int], ...]] = {  # where a size can be read: parameter and axis
    "vocabulary": (("token_embedding.weight", 0), ("output_projection.weight", 0), ("output_projection.bias", 0)),
    "width": (("encoder.layers.0.self_attn.in_proj_weight", 1),),
    "ffn": (("encoder.layers.0.linear1.weight", 0), ("encoder.layers.0.linear1.bias", 0)),
    "positions": (("position_embedding.weight", 0),),
    "features": (("feature_projection.weight", 1),),
    "profile": (("user_profile_projection.weight", 1),),
    "video": (("video_feature_projection.weight", 1),),
}


def convert(
    weights: Weights, renames: Mapping[str, str] | None = None, *, heads: int = 16
) -> tuple[ModelConfig, dict[str, F32]]:
    """Return the sizes and the named weights of a PyTorch state_dict.

    The encoder has `nn.TransformerEncoder`'s names under any prefix; other tensors have our name or one of `ALIASES`,
    all of them perhaps behind `module.` or `model.`. A position table may have a leading axis of 1.

    Args:
        weights: tensors by their own names.
        renames: parameters by a tensor's own name, for tensors that no rule matches.
        heads: attention heads, the only size that no shape shows.

    Raises:
        ModelError: no encoder or more than one; a tensor that matches no parameter, or two that match the same one; a
            parameter without a tensor; shapes that do not fit each other; another number of features than the layout's.
    """
    _check_renames(weights, renames or {})
    names, faults = _place(weights, renames or {})
    placed = {parameter: _as_parameter(parameter, weights[name]) for parameter, name in names.items()}
    sizes = _sizes(placed)
    layers = 1 + max(int(match["number"]) for name in placed if (match := LAYER.match(name)))
    filled = {name: getattr(PRESETS["reference"], name) for name in SIZES} | sizes
    config = ModelConfig(**filled, layers=layers, heads=heads)
    missing = [name for name in parameter_shapes(config) if name not in placed]
    if faults or missing:
        _refuse(faults, [f"{name} {_shape_text(name, config, sizes)}" for name in missing])
    if config.features != layout.FEATURES:
        raise ModelError(
            f"the weights read {config.features} dense features, this version's layout has {layout.FEATURES}: "
            "the model was trained on other inputs"
        )
    check_weights(placed, config, "the imported model")
    return config, {name: placed[name] for name in parameter_shapes(config)}


def _check_renames(weights: Weights, renames: Mapping[str, str]) -> None:
    """Raise ModelError for renames of a tensor that does not exist, or to a parameter that no model has."""
    layers = 1 + max((int(match["number"]) for name in weights if (match := LAYER.match(name))), default=0)
    ours = list(parameter_shapes(replace(PRESETS["tiny"], layers=layers)))
    faults = [
        f"{n} -> {p}: no tensor {n!r}.{nearest(n, list(weights))}" for n, p in renames.items() if n not in weights
    ]
    faults += [f"{n} -> {p}: no parameter {p!r}.{nearest(p, ours)}" for n, p in renames.items() if p not in ours]
    if faults:
        raise ModelError("cannot rename:\n  " + "\n  ".join(faults))


def _place(weights: Weights, renames: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the name of each parameter's tensor, and the tensors that match no parameter or one that is taken."""
    encoder = _encoder_prefix(weights)
    claims: dict[str, list[str]] = {}
    faults = []
    for name, array in weights.items():
        parameter = renames.get(name) or _parameter(name, encoder)
        if parameter is None:
            faults.append(f"{name} {array.shape}")
        else:
            claims.setdefault(parameter, []).append(name)
    for parameter, names in claims.items():
        if len(names) > 1:
            faults += [f"{n} {weights[n].shape} (one of {len(names)} for {parameter})" for n in names]
    return {parameter: names[0] for parameter, names in claims.items()}, faults


def _encoder_prefix(weights: Weights) -> str:
    found = {m["prefix"] for name in weights if (m := LAYER.match(name)) and m["part"] == MARK}
    if len(found) != 1:
        which = "no" if not found else "more than one"
        raise ModelError(
            f"{which} encoder in the weights ({', '.join(sorted(found)) or f'nothing is named *layers.N.{MARK}'}): "
            "a state_dict with one nn.TransformerEncoder is needed"
        )
    return found.pop()


def _parameter(name: str, encoder: str) -> str | None:
    """Return the parameter that matches a tensor's name, None where no rule does."""
    if name.startswith(encoder) and (match := LAYER.match(name)) and match["prefix"] == encoder:
        return f"encoder.layers.{match['number']}.{match['part']}" if match["part"] in _layer_parts() else None
    short = WRAPPER.sub("", name)
    module, kind = short.rsplit(".", 1) if short.endswith((".weight", ".bias")) else (short, "weight")
    for ours, theirs in ALIASES.items():
        if module == ours or module in theirs:
            return f"{ours}.{kind}"
    return None


def _layer_parts() -> set[str]:
    return {m["part"] for name in parameter_shapes(PRESETS["tiny"]) if (m := LAYER.match(name))}


def _sizes(placed: Weights) -> dict[str, int]:
    """Return the sizes that the shapes show; others are left out."""
    return {
        size: placed[name].shape[axis]
        for size, places in SIZES.items()
        for name, axis in reversed(places)
        if name in placed and axis < placed[name].ndim
    }


def _shape_text(name: str, config: ModelConfig, sizes: Mapping[str, int]) -> str:
    """Return a missing parameter's shape as text, with names for unknown sizes: (positions, 512)."""
    shape: list[int | str] = list(parameter_shapes(config)[name])
    for size, places in SIZES.items():
        for parameter, axis in places:
            if parameter == name and size not in sizes:
                shape[axis] = size
    return f"({', '.join(map(str, shape))})"


def _refuse(faults: list[str], missing: list[str]) -> NoReturn:
    lines = []
    if faults:
        lines += ["tensors that match no parameter of their own:", *(f"  {fault}" for fault in sorted(faults))]
    if missing:
        lines += ["parameters without a tensor:", *(f"  {name}" for name in missing)]
    raise ModelError("the weights cannot be imported as they are; map tensors with --rename\n" + "\n".join(lines))


def _as_parameter(name: str, array: F32) -> F32:
    """Drop the leading axis of 1 that a position table may have."""
    table = array[0] if name == "position_embedding.weight" and array.ndim == 3 and array.shape[0] == 1 else array
    return np.ascontiguousarray(table, dtype=np.float32)
