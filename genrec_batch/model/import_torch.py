"""`model import`: PyTorch weights from other code, under this package's names.

Owns: the mapping from the tensors of a plain state_dict to parameters, and the sizes given by the shapes. Must not
know: files, torch, Polars. Nothing is guessed: a tensor that does not match exactly one parameter is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
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
INSIDE = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # torch.compile's and FSDP's
TIED = ("output_projection.weight", "token_embedding.weight")  # one tensor in models that are saved without one of them
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
    perhaps behind a prefix that they share with the encoder or with all tensors, or behind `module.`, `model.` or
    torch.compile's `_orig_mod.`. A position table may have a leading axis of 1. Where one of `TIED` is absent, the
    other is both; a tied output without a bias has a bias of 0.

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
    if not faults:
        _tie(placed)
    sizes = _sizes(placed)
    layers = 1 + max(int(match["number"]) for name in placed if (match := LAYER.match(name)))
    filled = {name: getattr(PRESETS["reference"], name) for name in SIZES} | sizes
    config = ModelConfig(**filled, layers=layers, heads=heads)
    missing = [name for name in parameter_shapes(config) if name not in placed]
    if faults or missing:
        _refuse(faults, {name: f"{name} {_shape_text(name, config, sizes)}" for name in missing})
    if config.features != layout.FEATURES:
        raise ModelError(
            f"the weights read {config.features} dense features, this version's layout has {layout.FEATURES}: "
            "the model was trained on other inputs"
        )
    check_weights(placed, config, "the imported model")
    return config, {name: placed[name] for name in parameter_shapes(config)}


def is_tied(converted: Weights) -> bool:
    """Return whether `convert` took the output from the token embedding, or the other way round."""
    output, embedding = (converted[name] for name in TIED)
    return output is embedding


def _tie(placed: dict[str, F32]) -> None:
    for absent, there in (TIED, TIED[::-1]):
        if absent not in placed and there in placed:
            placed[absent] = placed[there]
            placed.setdefault("output_projection.bias", np.zeros(len(placed[there]), np.float32))


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


def _place(weights: Weights, renames: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the name of each parameter's tensor, and what is wrong with each tensor that has no place of its own."""
    plain = {name: INSIDE.sub("", name) for name in weights}
    encoder = _encoder_prefix(plain.values())
    prefixes = _prefixes(plain.values(), encoder)
    claims: dict[str, list[str]] = {}
    faults: dict[str, str] = {}
    for name, array in weights.items():
        parameter = renames.get(name) or _parameter(plain[name], encoder, prefixes)
        if parameter is None:
            faults[name] = f"{name} {array.shape}"
        else:
            claims.setdefault(parameter, []).append(name)
    for parameter, names in claims.items():
        if len(names) > 1:
            faults |= {n: f"{n} {weights[n].shape} (one of {len(names)} for {parameter})" for n in names}
    return {parameter: names[0] for parameter, names in claims.items()}, faults


def _prefixes(names: Collection[str], encoder: str) -> list[str]:
    """Return what may stand before our names: what all tensors share, and the modules that the encoder is in."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    common = "".join(f"{level[0]}." for level in takewhile(lambda level: len(set(level)) == 1, levels))
    paths = [common, encoder]
    return ["", *(path[: place + 1] for path in paths for place, letter in enumerate(path) if letter == ".")]


def _encoder_prefix(names: Collection[str]) -> str:
    found = {m["prefix"] for name in names if (m := LAYER.match(name)) and m["part"] == MARK}
    if len(found) != 1:
        which = "no" if not found else "more than one"
        raise ModelError(
            f"{which} encoder in the weights ({', '.join(sorted(found)) or f'nothing is named *layers.N.{MARK}'}): "
            "a state_dict with one nn.TransformerEncoder is needed"
        )
    return found.pop()


def _parameter(name: str, encoder: str, prefixes: Sequence[str]) -> str | None:
    """Return the parameter that matches a tensor's name, None where no rule does."""
    if name.startswith(encoder) and (match := LAYER.match(name)) and match["prefix"] == encoder:
        return f"encoder.layers.{match['number']}.{match['part']}" if match["part"] in _layer_parts() else None
    for prefix in prefixes:
        short = WRAPPER.sub("", name.removeprefix(prefix))
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


def _refuse(faults: Mapping[str, str], missing: Mapping[str, str]) -> NoReturn:
    lines = []
    if faults:
        lines.append("  tensors that match no parameter of their own:")
        lines += [f"    {faults[name]}{_near(name, missing)}" for name in sorted(faults)]
    if missing:
        lines.append("  parameters without a tensor:")
        lines += [f"    {missing[name]}{_near(name, faults)}" for name in missing]
    raise ModelError("the weights cannot be imported as they are; map tensors with --rename\n" + "\n".join(lines))


def _near(name: str, others: Collection[str]) -> str:
    """Return the names of the other side that are most like a name, as the end of its line."""
    near = nearest(name, [*others])
    return f" -{near}" if near else ""


def _as_parameter(name: str, array: F32) -> F32:
    """Drop the leading axis of 1 that a position table may have."""
    table = array[0] if name == "position_embedding.weight" and array.ndim == 3 and array.shape[0] == 1 else array
    return np.ascontiguousarray(table, dtype=np.float32)
