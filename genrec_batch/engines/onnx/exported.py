"""The `onnx/` folder of a model directory: its content and when it may be used.

Owns: the names in the folder, its index `export.json`, and the checks before a graph is used. Must not know: how graphs
are made (`graphs`) or run, how the folder is written (`export`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from genrec_batch.core.errors import ModelError

FOLDER = "onnx"
INDEX = "export.json"
FORMAT = 1  # of the graphs: rises whenever their inputs, outputs or the meaning of these change
GRAPHS = ("prefill", "decode", "score")
SIZES = ("batch", "tokens", "banned", "steps", "candidates", "choices", "items")


@dataclass(frozen=True, kw_only=True)
class ExportIndex:
    """The content of `export.json`, which describes the graphs beside it."""

    format: int
    model: str  # fingerprint of the config and weights that the graphs hold
    precision: str  # fp32 or fp16
    opset: int
    sizes: Mapping[str, int | None]  # of the graphs by name of SIZES; None is a dynamic size
    sha256: Mapping[str, str]  # of each graph's file, by file name

    def text(self) -> str:
        """Return the file's content."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def read_index(directory: Path) -> ExportIndex | None:
    """Return the index of a model directory's export, None where there is no export.

    Raises:
        ModelError: the index is damaged.
    """
    path = directory / FOLDER / INDEX
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
        index = ExportIndex(**{entry.name: stored[entry.name] for entry in fields(ExportIndex)})
        sizes = dict(index.sizes)
        files = {f"{graph}.onnx": str(index.sha256[f"{graph}.onnx"]) for graph in GRAPHS}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: not an export's index ({error}); run `genrec-batch model export` again") from error
    return replace(index, sha256=files, sizes=sizes)


def fits(index: ExportIndex, *, model: str, precision: str) -> bool:
    """Return whether an export holds this model's weights in this precision, with dynamic sizes."""
    dynamic = all(size is None for size in index.sizes.values())
    return dynamic and (index.format, index.model, index.precision) == (FORMAT, model, precision)


def graph_bytes(directory: Path, index: ExportIndex, graph: str) -> bytes:
    """Return one graph, after a check of its sha256; it is read once, so that it is what was checked.

    Raises:
        ModelError: the file is missing or is not the exported one.
    """
    path = directory / FOLDER / f"{graph}.onnx"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != index.sha256[path.name]:
        raise ModelError(
            f"{path}: missing or not the file that was exported; run `genrec-batch model export` again, "
            f"or remove {path.parent}"
        )
    return content
