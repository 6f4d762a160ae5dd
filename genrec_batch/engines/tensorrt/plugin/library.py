"""Compile the plugin on this machine, against its TensorRT headers, and register it in the loaded TensorRT.

Owns: how `plugin.cpp` and its cubins become a shared library in the private engine cache. Must not know: graphs, the
engine. TensorRT's wheel has no headers; GENREC_BATCH_TENSORRT_INCLUDE names the folders that hold `NvInfer.h` and
`cuda_runtime_api.h`, separated by colons. Without them the plain ONNX engines run, and the engine reports why.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genrec_batch.core.arrays import HEADS
from genrec_batch.core.errors import EngineError
from genrec_batch.engines.plan_cache import EngineCache, EngineKey
from genrec_batch.engines.tensorrt import plugin
from genrec_batch.model.weights import ModelConfig

VARIABLE = "GENREC_BATCH_TENSORRT_INCLUDE"
HEADERS = ("NvInfer.h", "cuda_runtime_api.h")
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-Wno-deprecated-declarations")


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """The compiler and the header folders that a plugin is compiled with."""

    compiler: str
    include: tuple[str, ...]


def unfit(config: ModelConfig, precision: str, architecture: str) -> str | None:
    """Return why the kernels do not serve this model, precision or GPU, or None where they do."""
    if (config.width, config.heads) != (plugin.WIDTH, plugin.ATTENTION_HEADS):
        return f"its kernels are compiled for width {plugin.WIDTH} and {plugin.ATTENTION_HEADS} attention heads"
    if config.ffn % plugin.DEPTH:
        return f"its kernels need an ffn that is a multiple of {plugin.DEPTH}, not {config.ffn}"
    if precision != "fp16":
        return "its kernels compute in fp16"
    if architecture not in plugin.architectures():
        return f"its kernels are compiled for {', '.join(plugin.architectures())}, this GPU is {architecture}"
    if (compiled := plugin.task_heads(architecture)) != len(HEADS):
        return f"its kernels are compiled for {compiled} task heads, the model has {len(HEADS)} ({', '.join(HEADS)})"
    return None


def toolchain() -> Toolchain | str:
    """Return compiler and headers, or why one of them is missing.

    Raises:
        EngineError: the variable is set, but its folders lack a header.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return f"TensorRT's headers are not named by {VARIABLE}"
    include = tuple(part for part in given.split(os.pathsep) if part)
    missing = [header for header in HEADERS if not any((Path(folder) / header).is_file() for folder in include)]
    if missing:
        raise EngineError(f"{VARIABLE}={given}: no {' and no '.join(missing)} there; name every folder, or unset it")
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        return "there is no C++ compiler (g++, or the compiler that CXX names)"
    return Toolchain(compiler=compiler, include=include)


def load(cache: EngineCache, tools: Toolchain, *, library: str, version: str, architecture: str) -> None:
    """Compile the plugin unless the cache has it, load it, and register it in the process's TensorRT.

    Args:
        cache: where the compiled library is kept, under the same rules as engines.
        tools: compiler and header folders.
        library: file name of the loaded TensorRT core, such as `libnvinfer.so.8`.
        version: the loaded TensorRT's version, such as `8.6.0`.
        architecture: of the GPU, such as `sm_90`.

    Raises:
        EngineError: the compiler fails, or the headers are of another version than the library.
    """
    source = plugin.FOLDER / "plugin.cpp"
    header = cubin_header(plugin.read(architecture))
    digest = hashlib.sha256(source.read_bytes() + header.encode() + "".join(tools.include).encode())
    key = EngineKey(
        name="plugin",
        weights_sha256="",
        graph_sha256=digest.hexdigest(),
        precision="fp16",
        shape={},
        library=version,
        architecture=architecture,
        options={"compiler": tools.compiler},
    )
    cache.get(key, lambda: compile_library(tools, source, header))
    loaded = ctypes.CDLL(str(cache.path(key)))
    made_for = loaded.genrec_tensorrt_version()
    if made_for != _major_minor(version):
        raise EngineError(
            f"{VARIABLE} holds the headers of TensorRT {made_for // 1000}.{made_for % 1000}, the library is {version}; "
            "name the headers of that version, or unset it to run without the plugin"
        )
    if loaded.genrec_register(library.encode()) != 0:
        raise EngineError(f"the plugin cannot be registered in {library}; unset {VARIABLE} to run without it")


def _major_minor(version: str) -> int:
    major, minor = version.split(".")[:2]
    return int(major) * 1000 + int(minor)


def cubin_header(cubins: Sequence[plugin.Cubin]) -> str:
    """Return C++ that holds the cubins: an array of bytes for each, a table of them all, and the model sizes."""
    lines = ["struct Cubin { char const* name; char const* function; unsigned warps, shared_bytes, scratch_bytes; "]
    lines[0] += "unsigned char const* code; };"
    for number, cubin in enumerate(cubins):
        lines.append(f"alignas(16) static unsigned char const kCode{number}[] = {{{','.join(map(str, cubin.code))}}};")
    rows = []
    for number, cubin in enumerate(cubins):
        sizes = f"{cubin.warps}, {cubin.shared_bytes}, {cubin.scratch_bytes}"
        rows.append(f'{{"{cubin.name}", "{cubin.function}", {sizes}, kCode{number}}}')
    lines.append(f"static Cubin const kCubins[] = {{{', '.join(rows)}}};")
    constants = {
        "kCubinCount": len(cubins),
        "kWidth": plugin.WIDTH,
        "kAttentionHeads": plugin.ATTENTION_HEADS,
        "kTaskHeads": len(HEADS),
    }
    lines += [f"constexpr int {name} = {value};" for name, value in constants.items()]
    return "\n".join(lines) + "\n"


def compile_library(tools: Toolchain, source: Path, header: str) -> bytes:
    """Return the compiled shared library.

    Raises:
        EngineError: the compiler fails; the message ends with the beginning of the compiler's output.
    """
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "cubins.h").write_text(header)
        target = Path(scratch) / "plugin.so"
        include = [f"-isystem{folder}" for folder in tools.include]
        command = [tools.compiler, *FLAGS, f"-I{scratch}", *include, str(source), "-o", str(target), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EngineError(f"{tools.compiler} cannot compile the TensorRT plugin:\n{done.stderr[:2000]}")
        return target.read_bytes()
