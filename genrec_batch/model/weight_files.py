"""Weights to import: one safetensors file, or several with the index that Hugging Face's libraries write beside them.

Owns: the index and its checks. Must not know: what a tensor is for.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from genrec_batch.core.arrays import F32
from genrec_batch.core.errors import ModelError
from genrec_batch.model.weights import read_weights

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
INDEX = ".safetensors.index.json"


def read(path: Path, counters: dict[str, str] | None = None) -> dict[str, F32]:
    """Return every tensor of a file, of the files that an index names, or of the weights in a folder, as float32.

    Counters and masks that trainings keep beside the weights are left out, and noted in `counters` with their type.

    Raises:
        ModelError: a file is missing or damaged, the index names files elsewhere or tensors that they do not have, or a
            folder has more than one set of weights.
    """
    if path.is_dir():
        path = _in_folder(path)
    elif path.is_file() and path.suffix == ".safetensors" and (index := _index_over(path)):
        raise ModelError(f"{path}: one of several files of the same weights; give their index, {index}")
    elif path.is_file() and path.suffix in PICKLES:
        raise ModelError(f"{path}: pickled weights, which are never read; convert them with {_conversion(path)}")
    counters = {} if counters is None else counters
    return _sharded(path, counters) if path.name.endswith(".json") else read_weights(path, counters)


def _conversion(path: Path) -> str:
    """Return the command that makes safetensors of pickled weights, of a state_dict or of what holds one."""
    source, target = json.dumps(str(path)), json.dumps(str(path.with_suffix(".safetensors")))
    code = (
        f"import torch, safetensors.torch as s; d = torch.load({source}, map_location='cpu', weights_only=True); "
        "d = next((d[k] for k in ('state_dict', 'model_state_dict', 'model') if k in d), d); "
        f"s.save_file({{n: t.clone().contiguous() for n, t in d.items()}}, {target})"
    )
    return f"python -c {shlex.quote(code)}"


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


def _sharded(index: Path, counters: dict[str, str]) -> dict[str, F32]:
    if not index.is_file():
        raise ModelError(f"{index}: no such index")
    entries = _files(index)
    read: dict[str, F32] = {}
    for file in sorted(set(entries.values())):
        there = read_weights(index.parent / file, counters)
        wanted = [name for name in entries if entries[name] == file]
        lost = [name for name in wanted if name not in there and name not in counters]
        if lost:
            raise ModelError(f"{index.parent / file}: without {', '.join(lost[:3])}, which {index.name} says is in it")
        read |= {name: there[name] for name in wanted if name in there}
    return read
