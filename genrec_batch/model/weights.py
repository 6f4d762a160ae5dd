"""The model on disk and in memory: its sizes, its named weights, and the directory that holds both.

Owns: `ModelConfig`, the presets, parameter names, the seeded initial weights, `config.json` and `model.safetensors`.
Must not know: torch, ONNX, Polars, or how the network is computed. Weights are a plain mapping of name to NumPy array
under PyTorch's names, so that the state_dict of `nn.TransformerEncoder` can be used as it is. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from genrec_batch.core import layout
from genrec_batch.core.arrays import F32, FIRST_ITEM, HEADS
from genrec_batch.core.errors import ConfigError, ModelError, RetryError, nearest
from genrec_batch.core.snapshot import Snapshot
from genrec_batch.model import sealed
from genrec_batch.model.places import check_free, check_reached, directory_of
from genrec_batch.model.registry import Version
from genrec_batch.model.trained import Trained

Weights = Mapping[str, F32]

BYTES = {"fp32": 4, "bf16": 2, "bf16-fast": 2, "fp16": 2, "fp16-fast": 2, "int8": 1, "int8-fast": 1, "fp8": 1}
DEMO_SEED = 20260501
MOST = {"layers": 1000}  # far beyond any model; a damaged number must not be counted up to
EPSILON = 1e-5  # of every LayerNorm, nn.TransformerEncoderLayer's default


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the generative transformer; every field changes the weights' shapes."""

    vocabulary: int  # tokens: padding, unknown, then the catalog
    width: int  # hidden size D
    ffn: int  # inner size of each feed-forward network
    layers: int  # encoder layers
    positions: int  # position table: the prefix, the history and the decoded items must fit
    heads: int = 16  # attention heads
    features: int = layout.FEATURES  # dense features of position 0
    profile: int = 256  # floats of a user's own profile vector
    video: int = 512  # floats of a video's own feature vector

    def __post_init__(self) -> None:
        bad = [n for n, size in asdict(self).items() if not isinstance(size, int) or not 0 < size <= MOST.get(n, 2**31)]
        if bad:
            raise ModelError(f"model sizes must be whole numbers above 0, layers at most 1,000: {', '.join(bad)}")
        if self.width % self.heads:
            raise ModelError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.vocabulary < 3:
            raise ModelError(f"vocabulary {self.vocabulary} leaves no item beside padding and unknown")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


PRESETS: dict[str, ModelConfig] = {
    "reference": ModelConfig(vocabulary=10_000, width=512, ffn=1024, layers=6, positions=2048),
    "high-performance": ModelConfig(vocabulary=20_000, width=768, ffn=1536, layers=8, positions=3072),
    "lightweight": ModelConfig(vocabulary=5_000, width=256, ffn=512, layers=4, positions=1024),
    "tiny": ModelConfig(vocabulary=1_000, width=64, ffn=128, layers=2, positions=512),
}


def preset(name: str) -> ModelConfig:
    """Return a preset's sizes.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"--preset {name!r} is not one of {', '.join(PRESETS)}.{nearest(name, list(PRESETS))}")
    return PRESETS[name]


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return every parameter's name and shape, in the order they are stored; linear weights are [out, in]."""
    d, f = config.width, config.ffn
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (config.vocabulary, d),
        "position_embedding.weight": (config.positions, d),
    }
    for name, size in (
        ("feature_projection", config.features),
        ("user_profile_projection", config.profile),
        ("video_feature_projection", config.video),
    ):
        shapes |= {f"{name}.weight": (d, size), f"{name}.bias": (d,)}
    for i in range(config.layers):
        layer = f"encoder.layers.{i}."
        shapes |= {
            layer + "self_attn.in_proj_weight": (3 * d, d),
            layer + "self_attn.in_proj_bias": (3 * d,),
            layer + "self_attn.out_proj.weight": (d, d),
            layer + "self_attn.out_proj.bias": (d,),
            layer + "linear1.weight": (f, d),
            layer + "linear1.bias": (f,),
            layer + "linear2.weight": (d, f),
            layer + "linear2.bias": (d,),
        }
        for norm in ("norm1", "norm2"):
            shapes |= {f"{layer}{norm}.weight": (d,), f"{layer}{norm}.bias": (d,)}
    shapes |= {"output_projection.weight": (config.vocabulary, d), "output_projection.bias": (config.vocabulary,)}
    for head in HEADS:
        shapes |= {f"{head}_head.weight": (1, d), f"{head}_head.bias": (1,)}
    return shapes


def parameter_groups(config: ModelConfig) -> dict[str, int]:
    """Return the number of parameters of each group, in the order in which data passes through the network."""
    groups: dict[str, int] = {}
    for name, shape in parameter_shapes(config).items():
        group = "encoder layers" if name.startswith("encoder.") else name.rsplit(".", 1)[0].replace("_", " ")
        groups[group] = groups.get(group, 0) + math.prod(shape)
    return groups


def parameters(config: ModelConfig) -> int:
    """Return the number of parameters (24,836,372 for `reference`)."""
    return sum(parameter_groups(config).values())


def initial_weights(config: ModelConfig, seed: int) -> dict[str, F32]:
    """Return seeded initial weights, the same bytes on every machine.

    Linear layers: uniform in ±1/sqrt(inputs) for weight and bias, PyTorch's `nn.Linear` (Kaiming et al. 2015 with
    a = sqrt 5); attention's input product: Xavier uniform over its stacked [3D, D] matrix with zero bias, PyTorch's
    `nn.MultiheadAttention` (Glorot & Bengio 2010); embeddings: normal, deviation 1 for tokens and 0.5 for positions;
    LayerNorm: ones and zeros.
    """
    random = np.random.Generator(np.random.Philox(seed))
    weights: dict[str, F32] = {}
    shapes = parameter_shapes(config)
    for name, shape in shapes.items():
        if "embedding" in name:
            weights[name] = random.standard_normal(shape, np.float32) * np.float32(0.5 if "position" in name else 1.0)
        elif ".norm" in name:
            weights[name] = np.full(shape, name.endswith("weight"), np.float32)
        elif name.endswith("in_proj_bias"):
            weights[name] = np.zeros(shape, np.float32)
        else:
            inputs = shapes[name.removesuffix("bias") + "weight"][1] if name.endswith(".bias") else shape[1]
            bound = math.sqrt(6 / sum(shape)) if name.endswith("in_proj_weight") else 1 / math.sqrt(inputs)
            weights[name] = (random.random(shape, np.float32) * 2 - 1) * np.float32(bound)
    return weights


def weights_fingerprint(weights: Weights) -> str:
    """Return the sha256 of all names, shapes and bytes, in stored order, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name], dtype="<f4")
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def check_weights(weights: Weights, config: ModelConfig, source: str) -> None:
    """Raise ModelError naming each tensor of `source` that is unknown, not finite, misshapen or (50) missing."""
    shapes = parameter_shapes(config)
    faults = [
        f"{n}: shape {w.shape}, expected {shapes[n]}" if n in shapes else f"{n}: not a parameter of this model"
        for n, w in weights.items()
        if n not in shapes or w.shape != shapes[n]
    ]
    faults += [f"{n}: missing.{nearest(n, list(weights), 1)}" for n in sorted(shapes.keys() - weights.keys())[:50]]
    faults += [f"{n}: holds NaN or infinity" for n in shapes if n in weights and not np.isfinite(weights[n]).all()]
    if faults:
        raise ModelError(f"{source} does not fit the model's config:\n  " + "\n  ".join(sorted(faults)))


def read_weights(path: Path, counters: dict[str, str] | None = None) -> dict[str, F32]:
    """Return every tensor of a safetensors file as float32.

    `counters`, where given, takes name and type of integers and Booleans that are no weight and no bias; others raise.

    Raises:
        ModelError: the file is missing, truncated, not safetensors, or holds a type that is not a float.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            if counters is not None:
                others = {n: file.get_slice(n).get_dtype() for n in names if not n.endswith(("weight", "bias"))}
                counters |= {n: kind for n, kind in others.items() if kind.startswith(("I", "U", "BOOL"))}
            return {name: _as_float32(file, name, path) for name in names if name not in (counters or {})}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file ({error}); copy it again, or save it with safetensors "
            "(pickled .pt and .bin files are never read)"
        ) from error


def _as_float32(file: Any, name: str, path: Path) -> F32:
    kind = file.get_slice(name).get_dtype()
    if kind == "BF16":
        return _bfloat16(path, name)
    if kind not in ("F64", "F32", "F16"):
        raise ModelError(f"{path}: tensor {name!r} has type {kind}; weights must be F32, F16, BF16 or F64")
    return np.asarray(file.get_tensor(name)).astype(np.float32, copy=False)


def _bfloat16(path: Path, name: str) -> F32:
    """Read a tensor of a type that NumPy lacks: its bits are the upper half of a float32."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(header_bytes))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + header_bytes + begin)
        bits = np.frombuffer(file.read(end - begin), "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(entry["shape"])


NO_FILES = Snapshot.of((), "")


@dataclass(frozen=True, kw_only=True)
class Model:
    """Weights with their sizes. `directory` is None for the packaged demo rule (seeded weights, nothing on disk)."""

    config: ModelConfig
    weights: Weights
    directory: Path | None
    fingerprint: str  # sha256 over config and weights
    trained: bool  # False: seeded weights, whose ranking is meaningless
    tokens: int  # padding, unknown and the catalog; tokens from here on have no video and are never recommended
    training: Trained | None = None  # None: imported weights, or seeded ones
    files: Snapshot = NO_FILES  # of the directory, as they were when the model was read
    version: Version | None = None  # of a registry; None: a directory, or seeded weights

    def with_catalog(self, videos: int) -> Model:
        """Return the model with a catalog of so many videos; an engine never chooses a token beyond them."""
        return replace(self, tokens=min(FIRST_ITEM + videos, self.config.vocabulary))


def demo_model(config: ModelConfig, seed: int = DEMO_SEED) -> Model:
    """Return a model with seeded weights, in memory only."""
    return _model(config, initial_weights(config, seed), None, trained=False)


def _model(
    config: ModelConfig, weights: Weights, directory: Path | None, *, trained: bool, training: Trained | None = None
) -> Model:
    text = json.dumps(asdict(config), sort_keys=True) + weights_fingerprint(weights)
    text += "" if training is None else training.decode  # what decides rows beside the weights
    return Model(
        config=config,
        weights=weights,
        directory=directory,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        trained=trained,
        tokens=config.vocabulary,
        training=training,
    )


def load(directory: Path, named: str = "--model") -> Model:
    """Read a model directory, `config.json` and `model.safetensors`; `named` is the option that an error names.

    Raises:
        ModelError: a file is missing; the config is damaged, or of another layout or version; the weights are
            truncated or do not fit the config; weights or catalog are not those of `save`.
        RetryError: a file changed meanwhile.
    """
    path = directory / "config.json"
    check_reached(path, f"{named} {directory}")
    if directory.exists() and not directory.is_dir():
        raise ModelError(f"{named} {directory} is a file, and a model is a directory; {directory_of(directory)}")
    if not directory.is_dir():
        raise ModelError(f"{named} {directory}: no such directory; `genrec-batch model init {directory}` makes one")
    if not path.is_file():
        raise ModelError(f"{directory}: no config.json in it, so it is not a model directory")
    present = [directory / name for name in (path.name, sealed.WEIGHTS, sealed.CATALOG)]
    files = Snapshot.of([str(file) for file in present if file.is_file()], f"{named} {directory}")
    try:
        sizes = (stored := json.loads(path.read_text()))["model"]
        trained, stored_layout = stored["trained"] is True, str(stored["layout"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a config.json of genrec-batch ({type(error).__name__}: {error})") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    if stored_layout != layout.fingerprint():
        raise ModelError(
            f"{path}: made for feature layout {stored_layout[:12]}, this version has {layout.fingerprint()[:12]}; "
            "a model reads the features it was trained on: install the version that made it, or train again"
        )
    known = {f.name for f in fields(ModelConfig)}
    if not isinstance(sizes, dict) or set(sizes) != known:
        raise ModelError(f"{path}: the entry `model` must hold exactly {', '.join(sorted(known))}")
    config = ModelConfig(**sizes)
    with files.held(), sealed.checked(directory, stored.get("sha256")):
        weights = read_weights(directory / sealed.WEIGHTS)
        check_weights(weights, config, str(directory / sealed.WEIGHTS))
        training = Trained.read(stored.get("training"), path)
        return replace(_model(config, weights, directory, trained=trained, training=training), files=files)


def save(
    directory: Path, config: ModelConfig, weights: Weights, *, trained: bool, card: str, training: Trained | None = None
) -> None:
    """Write `config.json`, `model.safetensors` and the model card; each file appears whole or not at all.

    `config.json` records the sha256 of the weights, and of a `catalog.parquet` that is there already.

    Raises:
        ModelError: the weights do not fit, or the directory holds a model already.
    """
    check_weights(weights, config, "the weights")
    if (directory / "config.json").exists():
        check_free(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            save_file(
                {name: np.ascontiguousarray(weights[name]) for name in parameter_shapes(config)},
                Path(scratch) / "model.safetensors",
                metadata={"format": "pt"},
            )
            (Path(scratch) / "README.md").write_text(card)
            stored = {"model": asdict(config), "layout": layout.fingerprint(), "trained": trained, "format": 1}
            stored["sha256"] = sealed.recorded(Path(scratch) / sealed.WEIGHTS, directory / sealed.CATALOG)
            stored |= {} if training is None else {"training": training.stored()}
            text = re.sub(r"\[\s+([-+.\deE,\s]+?)\s+\]", _on_a_line, json.dumps(stored, indent=2))
            (Path(scratch) / "config.json").write_text(text + "\n")
            for name in ("model.safetensors", "README.md", "config.json"):  # the config last: it marks a complete model
                (Path(scratch) / name).chmod(0o644)
                (Path(scratch) / name).replace(directory / name)
    except (OSError, SafetensorError) as error:
        if any(said in str(error) for said in ("No space left", "quota exceeded")):  # safetensors gives no error number
            raise RetryError(f"{directory}: the disk is full; free space and run the same command again") from error
        raise ModelError(f"{directory}: cannot write the model ({error})") from error


def _on_a_line(numbers: re.Match[str]) -> str:
    return f"[{' '.join(numbers[1].split())}]"
