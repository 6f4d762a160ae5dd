"""The commands: options in, exit code out.

Owns: the mapping from option classes to flags, the printed tables, the exit codes, and the only broad `except` of the
package. Must not know: how anything is computed. Heavy modules are imported inside commands, so that `--help` is quick.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.markup import escape

from genrec_batch import __version__, config, console
from genrec_batch.errors import ConfigError, GenrecError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Score a whole app's users overnight: a Parquet log of views in, ranked videos with four task scores out.",
    epilog="Every option has an environment twin GENREC_BATCH_* and may stand in genrec-batch.toml. "
    "Exit codes: 0 done, 2 usage, 3 input, 4 model, 5 engine, 6 gate, 75 try again, 99 nothing to score.",
)
model_app = typer.Typer(no_args_is_help=True, help="Make, import, look at and export model directories.")
app.add_typer(model_app, name="model")

INPUT = Annotated[str, typer.Argument(metavar="INPUT", help="Parquet log: a file, a glob, a directory or a URI.")]
CONFIG_FILE = "genrec-batch.toml"


class Terminated(BaseException):
    """SIGTERM arrived: end now, leave what is written for a later run (exit 143)."""


def _flag(field: dataclasses.Field[Any]) -> str:
    return field.metadata["flags"] or "--" + field.name.replace("_", "-")


def _parameter(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    """Return one Typer option for one field of an option class."""
    help_ = field.metadata["help"]
    choices = field.metadata["choices"]
    help_ += f" One of: {', '.join(choices)}." if choices else ""
    option = typer.Option(
        _flag(field),
        envvar=f"GENREC_BATCH_{field.name.upper()}",
        help=help_,
        rich_help_panel=field.metadata["panel"],
        show_default=field.default not in (None, False, dataclasses.MISSING),
    )
    many = kind == tuple[str, ...]
    default = [] if many else field.default
    annotation: Any = Annotated[list[str], option] if many else Annotated[kind, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def options(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of an option class; the command is called with its own arguments and `options=`.

    Logs are set up before the command runs, and its errors become messages and exit codes.
    """
    hints = inspect.get_annotations(kind)
    for parent in kind.__mro__[1:-1]:
        hints = {**inspect.get_annotations(parent), **hints}
    scope = {**vars(config)}
    fields = [(field, eval(hints[field.name], scope)) for field in dataclasses.fields(kind)]  # noqa: S307 (our own annotations)

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)

        def called(**given: Any) -> None:
            values = {field.name: given.pop(field.name) for field, _ in fields}
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
            try:
                chosen = kind(**values)
            except GenrecError as error:
                fail(error)
            console.set_up(quiet=chosen.quiet, verbose=chosen.verbose, log_format=chosen.log_format)
            guarded(lambda: command(**given, options=chosen), verbose=chosen.verbose)

        kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.parameters.values() if p.name != "options"]
        parameters = [*kept, *(_parameter(field, hint) for field, hint in fields)]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        return called

    return wrap


def fail(error: GenrecError) -> None:
    """Print a user's error and leave with its exit code."""
    if console.LOG.handlers and isinstance(console.LOG.handlers[0].formatter, console.JsonFormatter):
        console.LOG.error("%s", error)
    else:
        console.stderr.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
    raise typer.Exit(error.exit_code)


def guarded(work: Callable[[], None], *, verbose: bool) -> None:
    """Run a command's work at the CLI's edge: every failure becomes one message and one exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        work()
    except GenrecError as error:
        fail(error)
    except KeyboardInterrupt:
        console.LOG.warning("interrupted; run the same command again to go on where it stopped")
        raise typer.Exit(130) from None
    except Terminated:
        console.LOG.warning("terminated; run the same command again to go on where it stopped")
        raise typer.Exit(143) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:  # the edge: a bug of ours, told as one
        if verbose or console.LOG.level == logging.DEBUG:
            traceback.print_exc()
        console.stderr.print(
            f"[bold red]internal error:[/] {escape(f'{type(error).__name__}: {error}')}\n"
            "This is a fault of genrec-batch, not of your input; run again with --verbose for the traceback.",
            soft_wrap=True,
        )
        raise typer.Exit(1) from error


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise Terminated


def _version(wanted: bool) -> None:
    if wanted:
        console.stdout.print(f"genrec-batch {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config_file: Annotated[
        str | None,
        typer.Option("--config", envvar="GENREC_BATCH_CONFIG", help=f"Option file; default ./{CONFIG_FILE} if there."),
    ] = None,
    version: Annotated[  # noqa: ARG001 (its callback prints)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read the option file: entries at the top are for every command, those under [score] for `score` only."""
    path = Path(config_file or CONFIG_FILE)
    if config_file is None and not path.is_file():
        return
    try:
        context.default_map = _file_options(path)
    except GenrecError as error:
        fail(error)


def _file_options(path: Path) -> dict[str, Any]:
    try:
        entries = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from error
    known = {f.name for kind in (config.ScoreConfig, config.HistoryConfig) for f in dataclasses.fields(kind)}
    tables = {name: value for name, value in entries.items() if isinstance(value, dict)}
    shared = {name.replace("-", "_"): value for name, value in entries.items() if not isinstance(value, dict)}
    commands = ("score", "features")
    resolved = {}
    for name in commands:
        own = {key.replace("-", "_"): value for key, value in tables.get(name, {}).items()}
        resolved[name] = {**shared, **own}
    given = {*shared, *(key for name in commands for key in resolved[name])}
    faults = [f"{name}: no such option.{nearest(name, sorted(known))}" for name in sorted(given - known)]
    faults += [f"[{name}]: no such table; there are {', '.join(commands)}" for name in tables if name not in commands]
    if faults:
        raise ConfigError(f"{path}:\n  " + "\n  ".join(faults))
    return resolved


@app.command(rich_help_panel="Score")
@options(config.ScoreConfig)
def score(
    input: INPUT,  # noqa: A002 (the argument's name is its help)
    output: Annotated[
        str | None,
        typer.Argument(
            metavar="OUTPUT", help="A .parquet file, else a directory of parts; may be left out with --user."
        ),
    ] = None,
    *,
    options: config.ScoreConfig,
) -> None:
    """Score every user of a log: histories, features, generative decoding, ranked rows.

    Example: genrec-batch score events.parquet recs.parquet --model model/ --top-k 20
    """
    from genrec_batch import pipeline, show

    if output is None and not options.user:
        raise ConfigError("OUTPUT is missing; it may be left out only with --user, which prints the result")
    if output is None:
        summary = pipeline.score(options, input, None)
        show.recommendations(summary.pop("rows"), options.layout)
    else:
        summary = pipeline.score(options, input, output)
        if options.user:
            show.written(output, options.layout)
    if not options.quiet:
        show.summary(summary)
    console.last_line(summary)


@app.command(rich_help_panel="Score")
@options(config.HistoryConfig)
def features(
    input: INPUT,  # noqa: A002
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A .parquet file, else a directory of parts.")],
    *,
    options: config.HistoryConfig,
) -> None:
    """Write what the model would read: user_id, 1024 features, tokens (newest last), history_length.

    Example: genrec-batch features events.parquet features.parquet
    """
    from genrec_batch import pipeline, show

    summary = pipeline.write_features(options, input, output)
    if not options.quiet:
        show.summary(summary)
    console.last_line(summary)


@app.command(rich_help_panel="Look")
def layout(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON array.")] = False,
) -> None:
    """Print the name of each of the 1024 feature slots.

    Example: genrec-batch layout --json
    """
    from genrec_batch import layout as slots

    if as_json:
        rows = [{"slot": slot, "block": block, "name": name} for slot, block, name in slots.describe()]
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    for slot, block, name in slots.describe():
        sys.stdout.write(f"{slot:4d}  {block:24s}  {name}\n")


def main() -> None:
    """Run the command line."""
    from genrec_batch import cli_model  # noqa: F401 (registers the model commands)

    if os.environ.get("NO_COLOR"):
        console.stderr.no_color = console.stdout.no_color = True
    app()
