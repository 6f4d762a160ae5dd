"""Weights to import: one safetensors file, or several with the index that Hugging Face's libraries write beside them.

Owns: the index and its checks. Must not know: what a tensor is for.
"""

from __future__ import annotations

import json
from pathlib import Path

from genrec_batch.core.arrays import F32
from genrec_batch.core.errors import ModelError
from genrec_batch.model.weights import read_weights

INDEX = ".safetensors.index.json"


def read(path: Path) -> dict[str, F32]:
    """Return every tensor of a file, of the files that an index names, or of the weights in a folder, as float32.

    Raises:
        ModelError: a file is missing or damaged, the index names files elsewhere or tensors that they do not have, or a
            folder has more than one set of weights.
    """
    if path.is_dir():
        path = _in_folder(path)
    elif path.is_file() and path.suffix == ".safetensors" and (index := _index_over(path)):
        raise ModelError(f"{path}: one of several files of the same weights; give their index, {index}")
    return _sharded(path) if path.name.endswith(".json") else read_weights(path)


def _in_folder(folder: Path) -> Path:
    found = sorted(folder.glob(f"*{INDEX}")) or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or f"neither *.safetensors nor *{INDEX}"
        raise ModelError(f"{folder}: {names} in it; give the one file of the weights, or their index")
    return found[0]


def _index_over(path: Path) -> Path | None:
    """Return the index that names a file as one of several, None where there is none."""
    for index in sorted(path.parent.glob(f"*{INDEX}")):
        files = set(_files(index).values())
        if path.name in files and len(files) > 1:
            return index
    return None


def _files(index: Path) -> dict[str, str]:
    """Return the file of each tensor."""
    try:
        entries = json.loads(index.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index}: not an index of safetensors files ({type(error).__name__}: {error})") from error
    if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
        raise ModelError(f"{index}: not an index of safetensors files (no file for each tensor in `weight_map`)")
    elsewhere = sorted({file for file in entries.values() if Path(file).name != file})
    if elsewhere:
        raise ModelError(f"{index}: names files that are not beside it ({', '.join(elsewhere[:3])})")
    return entries


def _sharded(index: Path) -> dict[str, F32]:
    if not index.is_file():
        raise ModelError(f"{index}: no such index")
    entries = _files(index)
    read: dict[str, F32] = {}
    for file in sorted(set(entries.values())):
        there = read_weights(index.parent / file)
        wanted = [name for name in entries if entries[name] == file]
        lost = [name for name in wanted if name not in there]
        if lost:
            raise ModelError(f"{index.parent / file}: without {', '.join(lost[:3])}, which {index.name} says is in it")
        read |= {name: there[name] for name in wanted}
    return read
