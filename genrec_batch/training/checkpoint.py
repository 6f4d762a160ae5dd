"""Checkpoints: the whole state of a training, on disk, so that a killed run continues where it was.

Owns: the folder of an unfinished training beside its model, what is in it, and whose it is. Must not know: what the
tensors are. Files appear whole or not at all, and a state names the best weights that go with it. Never pickle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genrec_batch.core.declare import differences
from genrec_batch.core.errors import ConfigError, RetryError, refused
from genrec_batch.io.durable import read_json, sync, write_json
from genrec_batch.model.registry import Begun

RUN, STATE, SETS, FORMAT = "run.json", "state.safetensors", "sets.safetensors", 1
FULL = ("No space left", "quota exceeded")  # what safetensors says of a full disk


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The folder of one training: `.NAME.training` beside the model directory NAME."""

    folder: Path

    @staticmethod
    def open(out: Path, identity: Mapping[str, Any]) -> Checkpoints:
        """Make the folder, or find that of an earlier try of the same training.

        Raises:
            ConfigError: it is another training's, or cannot be written.
            RetryError: the disk is full.
        """
        folder = _folder(out)
        earlier = read_json(folder / RUN)
        if earlier is not None and earlier != identity:
            raise ConfigError(
                f"{folder} holds the checkpoint of another training of --out {out}: "
                f"{'; '.join(differences(earlier, dict(identity))[:5])}. The same options continue it; to begin again, "
                f"remove it: rm -r {folder}"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / RUN, dict(identity))
        except OSError as error:
            raise refused(error, f"--out {out}", ConfigError) from error
        return Checkpoints(folder=folder)

    @staticmethod
    def begun(out: Path) -> Begun | None:
        """Return the model that an earlier try of the training of a model directory began with, None without any."""
        found = read_json(_folder(out) / RUN)
        model = found.get("begins_with") if isinstance(found, dict) else None
        return Begun(model=model) if isinstance(model, str) else None

    def save(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write tensors and facts as one file.

        Raises:
            RetryError: the disk is full; what was there before stays.
        """
        path = self.folder / name
        scratch = path.with_name(path.name + ".tmp")
        held = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        try:
            save_file(held, scratch, metadata={"facts": json.dumps({**facts, "format": FORMAT})})
            sync(scratch)
            scratch.replace(path)
        except (OSError, SafetensorError) as error:
            scratch.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno is not None:
                raise refused(error, str(path), ConfigError) from error
            if any(said in str(error) for said in FULL):
                raise RetryError(
                    f"{path}: the disk is full; free space and run the same command again: it continues with the "
                    "last checkpoint"
                ) from error
            raise ConfigError(f"{path}: cannot be written ({error})") from error

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and facts of a file, None where it is not there.

        Raises:
            ConfigError: it is damaged.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ConfigError(
                f"{path}: a damaged checkpoint ({error}); remove it to begin again: rm -r {self.folder}"
            ) from error
        return tensors, facts

    def keep_only(self, name: str | None) -> None:
        """Remove all weights beside the state but those of this name."""
        for file in self.folder.glob("best-*.safetensors"):
            if file.name != name:
                file.unlink()

    def remove(self) -> None:
        """Remove the folder: the training is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _folder(out: Path) -> Path:
    return out.absolute().parent / f".{out.absolute().name}.training"
