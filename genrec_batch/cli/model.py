"""The `model` commands: create, import, describe and export a model directory, and build its engines.

Owns: their flags and printed lines. Must not know: how weights are computed or read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genrec_batch.cli.exits import done
from genrec_batch.cli.flags import beginning, options
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import LogConfig, RegistryConfig
from genrec_batch.engines.tensorrt.options import BuildConfig
from genrec_batch.runtime import console
from genrec_batch.serving.options import ExportConfig

if TYPE_CHECKING:
    from genrec_batch.model.catalog import Catalog
    from genrec_batch.model.weights import ModelConfig

model_app = typer.Typer(
    no_args_is_help=True, help="Create, import, describe and export model directories; build their engines."
)

DIRECTORY = Annotated[Path, typer.Argument(metavar="DIR", help="The model directory.")]

PRESETS = ("reference", "high-performance", "lightweight", "tiny")  # for shell completion, which imports no model

CARD = """# A genrec-batch model

Generative recommender for short video: {parameters:,} parameters, vocabulary {vocabulary:,}, width {width}, {layers}
layers, {heads} attention heads, {positions:,} positions. {origin}

| file | what |
| --- | --- |
| `config.json` | sizes, feature layout, whether it is trained |
| `model.safetensors` | the weights, under PyTorch's names |
| `catalog.parquet` | token, video_id, count; without it the catalog is taken from the log that is scored |
| `onnx/` | graphs, after `genrec-batch model export` |

Score a log with it: `genrec-batch score events.parquet recs.parquet --model DIR`
"""


def _card(config: ModelConfig, origin: str) -> str:
    from genrec_batch.model.weights import parameters

    sizes = {name: getattr(config, name) for name in ("vocabulary", "width", "layers", "heads", "positions")}
    return CARD.format(parameters=parameters(config), origin=origin, **sizes)


def _save(directory: Path, items: Catalog | None, save: Callable[[], None]) -> None:
    """Write the catalog, then the model, whose config.json marks it as whole; a failure leaves nothing behind.

    Raises:
        ModelError: the directory cannot be written.
        RetryError: the disk is full.
    """
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]  # the innermost first
    saved = False
    try:
        if items is not None:
            items.write(directory / "catalog.parquet")
        save()
        saved = True
    finally:
        if not saved:
            (directory / "catalog.parquet").unlink(missing_ok=True)
            with suppress(OSError):  # another process has filled it meanwhile, or it was never made
                for folder in made:
                    folder.rmdir()


def _say(text: str, written: str | Path) -> None:
    """Print a line on stdout about a file that was just written.

    Raises:
        RetryError, TerminalGoneError, ConfigError: stdout cannot be written; the message names what is on disk.
    """
    with done(f"{written} is whole"):
        console.line(text)


@model_app.command()
@options(LogConfig)
def init(
    directory: DIRECTORY,
    *,
    preset: Annotated[
        str,
        typer.Option(
            help="Sizes: reference, high-performance, lightweight or tiny.", autocompletion=beginning(PRESETS)
        ),
    ] = "reference",
    seed: Annotated[
        int | None, typer.Option(help="Seed of the initial weights; default: the seed of the demo.")
    ] = None,
    catalog_from: Annotated[str | None, typer.Option(help="Take the catalog from this log.")] = None,
    schema_name: Annotated[
        str | None, typer.Option("--schema", envvar="GENREC_BATCH_SCHEMA", help="Names of the log's columns.")
    ] = None,
) -> None:
    """Create a model directory with seeded, untrained weights.

    Example: genrec-batch model init model/ --preset reference --catalog-from events.parquet
    """
    from genrec_batch.events import dataset
    from genrec_batch.model import places, weights

    chosen = weights.DEMO_SEED if seed is None else seed
    config = weights.preset(preset)
    items = dataset.catalog_of(catalog_from, schema_name, config.vocabulary) if catalog_from else None
    with console.busy("making the weights"):
        initial = weights.initial_weights(config, chosen)
    origin = f"Untrained: preset `{preset}`, seed {chosen}; its ranking means nothing."
    with places.placed(directory, "DIR") as made, console.busy("writing the model"):
        places.check_free(made)
        _save(made, items, lambda: weights.save(made, config, initial, trained=False, card=_card(config, origin)))
    facts = f"{weights.parameters(config):,} parameters" + (f", {len(items):,} videos" if items is not None else "")
    if items is not None and items.unknown_videos:
        every = len(items) + items.unknown_videos
        facts += f" (the most viewed of the log's {every:,}; a --preset with a larger vocabulary holds more)"
    _say(f"{places.shown(directory)}: {facts}, untrained", places.shown(directory))


@model_app.command("import")
@options(LogConfig)
def import_(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="A PyTorch state_dict in safetensors: a file, the index of several, or their folder.",
        ),
    ],
    directory: DIRECTORY,
    *,
    rename: Annotated[
        list[str] | None,
        typer.Option(help="Name of a tensor in WEIGHTS and in this project, THEIRS=OURS; may be repeated."),
    ] = None,
    heads: Annotated[int, typer.Option(help="Number of attention heads, which the shapes do not show.")] = 16,
    catalog_file: Annotated[
        Path | None, typer.Option("--catalog", help="The catalog.parquet that the weights were trained with.")
    ] = None,
) -> None:
    """Create a model directory from trained weights whose encoder has nn.TransformerEncoder's names.

    Example: genrec-batch model import weights.safetensors model/ --catalog catalog.parquet
    """
    from genrec_batch.io import durable
    from genrec_batch.model import catalog, import_torch, places, weight_files
    from genrec_batch.model.weights import parameters, save

    durable.check_local(weights, "WEIGHTS", reads=True)
    if catalog_file is not None:
        durable.check_local(catalog_file, "--catalog", reads=True)
    pairs = dict(_pair(text) for text in rename or [])
    counters: dict[str, str] = {}
    config, converted = import_torch.convert(weight_files.read(weights, counters), pairs, heads=heads)
    if counters:
        said = ", ".join(f"{name} ({kind})" for name, kind in counters.items())
        console.LOG.info("%s: left out, no weights: %s", weights, said)
    if import_torch.is_tied(converted):
        console.LOG.info("tied: %s and %s are one tensor of the weights", *import_torch.TIED)
    items = catalog.Catalog.read(catalog_file, vocabulary=config.vocabulary) if catalog_file else None
    card = _card(config, f"Imported from `{weights.name}`.")
    with places.placed(directory, "DIR") as made, console.busy("writing the model"):
        places.check_free(made)
        _save(made, items, lambda: save(made, config, converted, trained=True, card=card))
    if items is None:
        console.LOG.warning(
            "no --catalog: the catalog will be taken from each log that is scored, which is right only by chance"
        )
    _say(f"{places.shown(directory)}: {parameters(config):,} parameters", places.shown(directory))


def _pair(text: str) -> tuple[str, str]:
    theirs, equals, ours = text.partition("=")
    if not equals or not theirs or not ours:
        raise ConfigError(f"--rename {text!r}: expected THEIRS=OURS")
    return theirs, ours


@model_app.command()
@options(RegistryConfig)
def info(
    directory: Annotated[
        str | None,
        typer.Argument(metavar="[DIR]", help="The model directory, or registry:NAME; omit it to describe a preset."),
    ] = None,
    *,
    options: RegistryConfig,
    preset: Annotated[
        str, typer.Option(help="Preset to describe without a directory.", autocompletion=beginning(PRESETS))
    ] = "reference",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print a model's parameters by group, memory by precision, sizes and fingerprint.

    Example: genrec-batch model info model/
    """
    from genrec_batch.model import catalog, opening, weights
    from genrec_batch.reports import tables

    read = opening.open_model
    loaded = read(directory, options.registry, "DIR") if directory else weights.demo_model(weights.preset(preset))
    file = loaded.directory / "catalog.parquet" if loaded.directory else None
    has = file is not None and file.exists()
    videos = len(catalog.Catalog.read(file, vocabulary=loaded.config.vocabulary)) if has and file else None
    named = loaded.version.label if loaded.version else directory or f"preset {preset}"
    facts = tables.model_info(loaded, named, videos)
    if as_json:
        console.last_line(facts)
    else:
        tables.model_table(facts)


@model_app.command()
@options(ExportConfig)
def export(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="The model directory; omit it for the models of --arm.")
    ] = None,
    *,
    options: ExportConfig,
) -> None:
    """Write DIR/onnx/ (prefill, decode and score graphs), or add the model to a Triton model repository.

    Example: genrec-batch model export model/ --format triton --out repository/
    """
    from genrec_batch.io import durable
    from genrec_batch.model import opening, registry

    if directory is not None and registry.is_reference(str(directory)):
        raise ConfigError(f"DIR {directory}: a version never changes; export the model directory, then register it")
    if options.format == "triton":
        from genrec_batch.serving import repository

        durable.check_local(options.repository, "--out")
        version = repository.export(None if directory is None else opening.directory(str(directory), "DIR"), options)
        _say(f"{version}: version {version.name} of {options.name}", version)
        return
    if directory is None:
        raise ConfigError("model export --format onnx needs DIR, the model directory")
    durable.check_local(directory, "DIR")  # its graphs go into it
    from genrec_batch.engines.onnx import export
    from genrec_batch.model import weights

    for path in export.export(weights.load(directory, "DIR"), directory, precision=options.precision):
        _say(f"{path}  {path.stat().st_size / 1e6:.1f} MB", path.parent)


@model_app.command()
@options(BuildConfig)
def build(directory: DIRECTORY, *, options: BuildConfig) -> None:
    """Build ahead of time the TensorRT engines that `score --engine tensorrt` needs with the same options.

    Example: genrec-batch model build model/ --precision fp16
    """
    from genrec_batch.engines.tensorrt import prebuild

    console.last_line(prebuild.build(options, directory))
