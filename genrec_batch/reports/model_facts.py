"""What a model costs by its sizes alone: parameters, memory, bytes in and out, floating-point operations.

Owns: the formulas. Must not know: engines, files, clocks. In: a `ModelConfig` and history lengths. Out: plain numbers.
MB is 2^20 bytes here, as in the published sizes of the model; a FLOP is one multiplication or one addition.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from genrec_batch.core.arrays import HEADS
from genrec_batch.model import weights
from genrec_batch.model.weights import ModelConfig

MIB = 2**20
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
BATCHES = (1, 4, 8, 16, 32)
WIDE_IDS, WIDE_CACHE_STEPS, WIDE_CACHE_WIDTH = 2000, 1000, 512  # of the padded inputs of a fixed-size export


def wide_input_bytes(config: ModelConfig, users: int) -> dict[str, int]:
    """Return the bytes of a batch for a server with fixed shapes, by input.

    2,000 ids and 2,000 mask entries in int32, a hidden-state cache of 1,000 steps x 512 in fp32, and the dense inputs
    in fp32: features, the user's profile, the video vector.
    """
    return {
        "token ids": users * WIDE_IDS * 4,
        "mask": users * WIDE_IDS * 4,
        "hidden cache": users * WIDE_CACHE_STEPS * WIDE_CACHE_WIDTH * 4,
        "features": users * config.features * 4,
        "profile": users * config.profile * 4,
        "video vector": users * config.video * 4,
    }


def moved_bytes(config: ModelConfig, users: int, *, events: int, seen: int, top_k: int) -> dict[str, int]:
    """Return the bytes that go to an engine and come back for a batch, by array (`arrays.Batch`).

    Args:
        config: sizes of the model.
        users: users of the batch.
        events: events of its longest history (its rows are padded to it).
        seen: videos of its longest list of seen ones.
        top_k: videos decoded for each user.
    """
    item = 4 + 4 + 4 * len(HEADS)  # token, log_prob, heads
    return {
        "features in": users * config.features * 4,
        "tokens in": users * max(1, events) * 4,
        "lengths in": users * 4,
        "seen in": users * max(1, seen) * 4,
        "items out": users * top_k * item,
    }


def cache_bytes(config: ModelConfig, users: int, *, positions: int, precision: str) -> int:
    """Return the bytes of the KV cache: keys and values of every layer and position."""
    return users * config.layers * 2 * positions * config.width * weights.BYTES[precision]


def layer_flops(config: ModelConfig) -> int:
    """Return the FLOPs of all layers' products for one position: QKV 6 D^2, output 2 D^2, feed-forward 4 D F."""
    d, f = config.width, config.ffn
    return config.layers * (8 * d * d + 4 * d * f)


def attention_flops(config: ModelConfig, first: float, last: float) -> float:
    """Return the FLOPs of causal attention for positions first..last (from 1): position p reads p keys and values.

    Two products of p x D, 4 D p in all, per layer; the sum over p is that of an arithmetic series.
    """
    keys = (first + last) * (last - first + 1) / 2
    return config.layers * 4 * config.width * keys


def prefill_flops(config: ModelConfig, events: float) -> float:
    """Return the FLOPs of reading one user: features and `events` tokens, and the logits of the last position.

    1.311 GFLOP for `reference` and 50 events. Profile and video projections, where given, add 0.06%.
    """
    positions = events + 1
    logits = 2 * config.width * config.vocabulary
    features = 2 * config.features * config.width
    return positions * layer_flops(config) + attention_flops(config, 1, positions) + logits + features


def decode_flops(config: ModelConfig, events: float, passes: int) -> float:
    """Return the FLOPs of `passes` decode passes of one user after a prefill: one position, logits and heads each.

    0.361 GFLOP for `reference`, 50 events and 10 passes.
    """
    each = layer_flops(config) + 2 * config.width * (config.vocabulary + len(HEADS))
    return passes * each + attention_flops(config, events + 2, events + 1 + passes)


def describe(config: ModelConfig, *, events: int, top_k: int) -> dict[str, Any]:
    """Return everything above for one model, with histories of `events` and slates of `top_k`."""
    total = weights.parameters(config)
    prefill, decode = prefill_flops(config, events), decode_flops(config, events, top_k)
    return {
        "sizes": asdict(config),
        "parameters": total,
        "groups": weights.parameter_groups(config),
        "memory_mb": {name: round(total * weights.BYTES[name] / MIB, 1) for name in PRECISIONS},
        "inputs": [_inputs(config, users, events=events, top_k=top_k) for users in BATCHES],
        "flops": {
            "events": events,
            "decode_passes": top_k,
            "prefill": round(prefill),
            "decode": round(decode),
            "per_user": round(prefill + decode),
            "without_cache": round(sum(prefill_flops(config, events + step) for step in range(top_k))),
        },
        "kv_cache_mb_per_user": {
            name: round(cache_bytes(config, 1, positions=1 + events + top_k, precision=name) / MIB, 3)
            for name in ("fp32", "bf16", "fp16")
        },
    }


def _inputs(config: ModelConfig, users: int, *, events: int, top_k: int) -> dict[str, Any]:
    wide = wide_input_bytes(config, users)
    moved = moved_bytes(config, users, events=events, seen=events, top_k=top_k)
    return {
        "users": users,
        "wide_bytes": sum(wide.values()),
        "wide_mb": round(sum(wide.values()) / MIB, 1),
        "wide_by_input": wide,
        "moved_bytes": sum(moved.values()),
        "moved_mb": round(sum(moved.values()) / MIB, 3),
        "moved_by_array": moved,
    }


def side_by_side(configs: dict[str, ModelConfig], *, events: int, top_k: int) -> list[dict[str, Any]]:
    """Return one row per model: sizes, parameters, memory, FLOPs per user."""
    rows = []
    for name, config in configs.items():
        facts = describe(config, events=min(events, config.positions - 1 - top_k), top_k=top_k)
        rows.append(
            {
                "name": name,
                **{size: facts["sizes"][size] for size in ("vocabulary", "width", "ffn", "layers", "positions")},
                "parameters": facts["parameters"],
                "memory_mb": facts["memory_mb"],
                "gflop_per_user": round(facts["flops"]["per_user"] / 1e9, 4),
                "events": facts["flops"]["events"],
            }
        )
    return rows
