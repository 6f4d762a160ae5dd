"""The plugin's kernels compile without a GPU, and the shipped cubins are those that the source describes.

Also tests `plugin.compile`.
"""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import pytest

from genrec_batch.engines.tensorrt import plugin

ONE_OF_EACH = (
    "add_norm",
    "causal_attention_32",
    "decode_attention_32_16",
    "embed_history",
    "embed_item",
    "last_attention_32",
    "linear_any",
    "linear_large_512",
    "rank_items",
    "rank_masked_items",
)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the kernels' source is Triton")
def test_each_kernel_compiles_to_what_its_shipped_cubin_is_launched_as(tmp_path):
    program = f"""
        import json
        from genrec_batch.engines.tensorrt.plugin import compile as compiler

        variants, found = compiler.variants(), {{}}
        for name in {ONE_OF_EACH}:
            compiled = compiler.compile_one(variants[name], 90)
            assert compiled.asm["cubin"].startswith(b"\\x7fELF")
            found[name] = [compiled.metadata.name, compiled.metadata.num_warps]
        print(json.dumps([sorted(variants), found]))
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=True
    )
    names, found = json.loads(done.stdout.splitlines()[-1])
    shipped = {cubin.name: cubin for cubin in plugin.read("sm_90")}
    assert names == sorted(shipped)
    assert found == {name: [shipped[name].function, shipped[name].warps] for name in ONE_OF_EACH}
