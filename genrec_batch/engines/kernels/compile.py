"""Compiles the Triton kernels to cubins; needs Triton and no GPU: `python -m genrec_batch.engines.kernels.compile`.

Owns: argument types and compile-time constants of each kernel. Writes one folder per architecture beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from genrec_batch.engines.kernels import FOLDER, HEADS, LONGEST, WIDTH, triton_source

HALF, INT, FLOAT = "*fp16", "*i32", "*fp32"
SIZES = {"H": HEADS, "HD": WIDTH // HEADS}


def variants() -> dict[str, tuple[Any, dict[str, str], dict[str, int], int]]:
    """Return each cubin's kernel, argument types, constants and warps."""
    source = triton_source
    attention = {"qkv": HALF, "lengths": INT, "out": HALF, "S": "i32"}
    embed = {"tokens": INT, "prefix": HALF, "token_table": HALF, "position_table": HALF, "out": HALF, "S": "i32"}
    item = {"tokens": INT, "lengths": INT, "step": INT, "token_table": HALF, "position_table": HALF, "out": HALF}
    norm = {"x": HALF, "y": HALF, "gain": HALF, "bias": HALF, "out": HALF, "rows": "i32"}
    decode = dict.fromkeys(("fresh", "prefix", "recent"), HALF) | {"lengths": INT, "step": INT, "out": HALF}
    decode |= {"S": "i32", "rows": "i32"}
    rank = {"logits": HALF, "seen": INT, "read": INT, "step": INT, "tokens": INT, "log_prob": FLOAT, "heads": FLOAT}
    rank |= dict.fromkeys(("rows", "seen_width", "V", "limit", "LD"), "i32")
    found: dict[str, tuple[Any, dict[str, str], dict[str, int], int]] = {
        "embed_history": (source.embed_history, embed, {"D": WIDTH}, 1),
        "embed_item": (source.embed_item, item, {"D": WIDTH}, 1),
        "add_norm": (source.add_norm, norm, {"D": WIDTH, "R": 4}, 4),
        "rank_items": (source.rank_items, rank, {"READ": 128, "BLOCK": 16384}, 8),
    }
    block = 16
    while block <= LONGEST:
        sizes = SIZES | {"BLOCK": block}
        found[f"causal_attention_{block}"] = (source.causal_attention, attention, sizes, 4 if block > 64 else 2)
        found[f"last_attention_{block}"] = (source.last_attention, attention, sizes, 1)
        for steps in (16, 64):
            found[f"decode_attention_{block}_{steps}"] = (source.decode_attention, decode, sizes | {"STEPS": steps}, 1)
        block *= 2
    return found


def compile_one(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, int], warps: int, capability: int
) -> Any:
    """Return Triton's compiled kernel for `sm_<capability>`; pointers are taken as 16-byte aligned."""
    names = kernel.arg_names
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types.get(name, "").startswith("*")}
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=dict(constants),
        attrs=aligned,
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": 1})


def main() -> None:
    """Compile every kernel for the architectures named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, nargs="+", default=[90], help="compute capabilities, such as 90")
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # a third of the size, and no path of this machine in it
    for capability in parser.parse_args().capability:
        folder = FOLDER / f"sm_{capability}"
        folder.mkdir(exist_ok=True)
        entries: dict[str, dict[str, Any]] = {}
        for name, (kernel, types, constants, warps) in variants().items():
            compiled = compile_one(kernel, types, constants, warps, capability)
            assert compiled.metadata.global_scratch_size == 0, "the plugin passes no scratch memory"
            (folder / f"{name}.cubin").write_bytes(compiled.asm["cubin"])
            entries[name] = {
                "function": compiled.metadata.name,
                "warps": compiled.metadata.num_warps,
                "shared_bytes": compiled.metadata.shared,
            }
        Path(folder / "kernels.json").write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
