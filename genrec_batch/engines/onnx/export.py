"""Export a model's graphs as ONNX files to its directory, for other runtimes and for a faster start.

Owns: writing `onnx/` whole or not at all. Must not know: how a graph is made (`graphs`) or run. The content of the
folder is described in `exported`, which also reads it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

from genrec_batch.core.errors import ConfigError, EngineError, ModelError, refused
from genrec_batch.engines.onnx import exported
from genrec_batch.model.weights import Model
from genrec_batch.runtime import console

PRECISIONS = ("fp32", "fp16")


def export(model: Model, directory: Path, *, precision: str) -> list[Path]:
    """Write `prefill.onnx`, `decode.onnx`, `score.onnx` and `export.json` to the folder `onnx` of a directory.

    The folder replaces an older one, whole or not at all. Before a graph is written, ONNX's own checker checks it,
    types and shapes included. The sizes of the graphs are dynamic.

    Args:
        model: sizes and weights.
        directory: usually the model's own; created if it is missing.
        precision: fp32 or fp16: the graphs' element type.

    Returns:
        The files written, the index last.

    Raises:
        ConfigError: the precision is unknown.
        EngineError: the package onnx is not installed.
        ModelError: the directory cannot be written.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision!r}: an export is {' or '.join(PRECISIONS)}")
    onnx, graphs = _import()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{exported.FOLDER}-", dir=directory))
        try:
            sha256 = {}
            with console.progress("export", len(exported.GRAPHS), "graphs") as advance:
                for name in exported.GRAPHS:
                    graph = graphs.build(name, model.config, model.weights, precision=precision)
                    onnx.checker.check_model(graph, full_check=True)
                    opset = graph.opset_import[0].version
                    content = graph.SerializeToString(deterministic=True)
                    sha256[f"{name}.onnx"] = _write(scratch / f"{name}.onnx", content)
                    advance(1)
            index = exported.ExportIndex(
                format=exported.FORMAT,
                model=model.fingerprint,
                precision=precision,
                opset=opset,
                sizes=dict.fromkeys(exported.SIZES),
                sha256=sha256,
            )
            _write(scratch / exported.INDEX, index.text().encode())
            _swap(scratch, directory / exported.FOLDER)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise refused(error, f"{directory}: the export", ModelError) from error
    return [directory / exported.FOLDER / name for name in (*sha256, exported.INDEX)]


def _import() -> tuple[ModuleType, ModuleType]:
    try:
        import onnx
        import onnx.checker

        from genrec_batch.engines.onnx import graphs
    except ImportError as error:
        raise EngineError(f"an export needs the package onnx ({error}): pip install 'genrec-batch[cpu]'") from error
    return onnx, graphs


def _write(path: Path, content: bytes) -> str:
    """Write a file, sync it to the disk, and return its sha256."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def _swap(new: Path, folder: Path) -> None:
    """Replace an older folder by a finished one; a reader finds the old one, the new one, or for a moment none."""
    new.chmod(0o755)  # mkdtemp's folders are private
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        folder.rename(old / folder.name)
        new.rename(folder)
        shutil.rmtree(old)
    else:
        new.rename(folder)
