"""Compile the Triton kernels to cubins, with Triton and without a GPU.

Run it as `python -m genrec_batch.engines.tensorrt.plugin.compile`.

Owns: the argument types and compile-time constants of each kernel. Must not know: TensorRT, the engine. Out: one folder
per architecture beside this file. The shipped cubins are those of Triton 3.6.0.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from genrec_batch.core.arrays import HEADS
from genrec_batch.engines.tensorrt.plugin import ATTENTION_HEADS, DEPTH, FOLDER, LONGEST, WIDTH, triton_source

HALF, INT, FLOAT = "*fp16", "*i32", "*fp32"
SIZES = {"H": ATTENTION_HEADS, "HD": WIDTH // ATTENTION_HEADS}
# Linear layers: kernel, rows x columns x depth of a tile, warps, stages; of ten, fastest on an H200 for many or few.
TILES = {
    "large": (triton_source.linear_persistent, (128, 256, DEPTH), 8, 3),
    "small": (triton_source.linear, (64, 128, DEPTH), 4, 4),
    "any": (triton_source.linear, (64, 128, DEPTH), 4, 4),
}
DEPTHS = (512, 1024)  # K that products are compiled for


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One cubin: a kernel, the types of its arguments, its compile-time constants, and how it is compiled."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, int]
    warps: int
    stages: int = 1
    multiples: tuple[str, ...] = ()  # numbers that are multiples of 16


def variants() -> dict[str, Variant]:
    """Return each cubin's variant by name."""
    source = triton_source
    rows = {"lengths": INT, "starts": INT}
    attention = {"qkv": HALF, **rows, "out": HALF}
    causal = {**attention, "S": "i32", "fill": "i32"}
    tables = {"token_table": HALF, "position_table": HALF, "out": HALF}
    embed = {"tokens": INT, "prefix": HALF, **rows, **tables, "S": "i32", "fill": "i32"}
    item = {"tokens": INT, "lengths": INT, "step": INT, **tables}
    norm = {"x": HALF, "y": HALF, "gain": HALF, "bias": HALF, "out": HALF, "rows": "i32"}
    decode = dict.fromkeys(("fresh", "prefix", "recent", "out"), HALF) | rows | {"step": INT, "rows": "i32"}
    rank = dict.fromkeys(("seen", "seen_width", "read", "step", "tokens"), INT) | {"logits": HALF}
    ranking = {"HEADS": len(HEADS), "PADDED_HEADS": triton.next_power_of_2(len(HEADS)), "READ": 128, "CHUNK": 2048}
    rank |= {"log_prob": FLOAT, "heads": FLOAT, **dict.fromkeys(("rows", "V", "limit", "LD"), "i32")}
    plain = ranking | dict.fromkeys(("mask", "masks", "W", "MASKED"), 0)
    masked = rank | {"mask": INT, "masks": INT, "W": "i32"}
    found = {
        "embed_history": Variant(kernel=source.embed_history, types=embed, constants={"D": WIDTH}, warps=1),
        "embed_item": Variant(kernel=source.embed_item, types=item, constants={"D": WIDTH}, warps=1),
        "add_norm": Variant(kernel=source.add_norm, types=norm, constants={"D": WIDTH, "R": 4}, warps=4),
        "rank_items": Variant(kernel=source.rank_items, types=rank, constants=plain, warps=4),
        "rank_masked_items": Variant(
            kernel=source.rank_items, types=masked, constants=ranking | {"MASKED": 1}, warps=4
        ),
    }
    found |= _products()
    block = 32
    while block <= LONGEST:
        sizes = SIZES | {"BLOCK": block}
        wide = 4 if block > 64 else 2
        found[f"causal_attention_{block}"] = Variant(
            kernel=source.causal_attention, types=causal, constants=sizes, warps=wide
        )
        found[f"last_attention_{block}"] = Variant(
            kernel=source.last_attention, types=attention, constants=sizes, warps=1
        )
        for steps in (16, 64):
            found[f"decode_attention_{block}_{steps}"] = Variant(
                kernel=source.decode_attention, types=decode, constants=sizes | {"STEPS": steps}, warps=1
            )
        block *= 2
    return found


def _products() -> dict[str, Variant]:
    """Return the linear layers: with a depth known when they are compiled, for many tiles and for few, and with any."""
    found = {}
    types = dict.fromkeys(("x", "weight", "bias", "out"), HALF) | dict.fromkeys("MNK", "i32")
    for relu, ending in enumerate(("", "_relu")):
        for name, (kernel, tile, warps, stages) in TILES.items():
            constants = dict(zip(("ROWS", "COLUMNS", "DEPTH"), tile, strict=True)) | {"GROUP": 8, "RELU": relu}
            for depth in DEPTHS if name != "any" else (None,):
                fixed = {} if depth is None else {"K": depth}
                found[f"linear{ending}_{name}" + (f"_{depth}" if depth else "")] = Variant(
                    kernel=kernel,
                    types={argument: kind for argument, kind in types.items() if argument not in fixed},
                    constants=constants | fixed,
                    warps=warps,
                    stages=stages,
                    multiples=("N", "K"),
                )
    return found


def compile_one(variant: Variant, capability: int) -> Any:
    """Return Triton's compiled kernel for `sm_<capability>`; pointers are taken as 16-byte aligned."""
    names, types = variant.kernel.arg_names, variant.types
    assert types.keys() | variant.constants.keys() == set(names), f"{variant.kernel}: {names}"
    wide = {name for name in types if types[name].startswith("*") or name in variant.multiples}
    sixteens = {(i,) for i, name in enumerate(names) if name in wide}
    source = ASTSource(
        fn=variant.kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=dict(variant.constants),
        attrs={place: [["tt.divisibility", 16]] for place in sixteens},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main() -> None:
    """Compile every kernel for each compute capability on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, nargs="+", default=[90], help="compute capabilities, no dot: 90")
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # a third of the size, and no path of this machine in it
    for capability in parser.parse_args().capability:
        folder = FOLDER / f"sm_{capability}"
        folder.mkdir(exist_ok=True)
        entries: dict[str, dict[str, Any]] = {}
        for stale in folder.glob("*.cubin"):
            stale.unlink()
        for name, variant in variants().items():
            compiled = compile_one(variant, capability)
            (folder / f"{name}.cubin").write_bytes(compiled.asm["cubin"])
            entries[name] = {
                "function": compiled.metadata.name,
                "warps": compiled.metadata.num_warps,
                "shared_bytes": compiled.metadata.shared,
                "scratch_bytes": compiled.metadata.global_scratch_size,
            }
        index = {"task_heads": len(HEADS), "kernels": entries}
        (folder / "kernels.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
