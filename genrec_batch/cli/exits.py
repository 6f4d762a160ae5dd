"""The CLI's edge: option classes become flags, errors become messages and exit codes.

Owns: the mapping from a field to its flag, environment twin and help; the only broad `except` of the package.
Must not know: which commands there are.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn, get_type_hints

import typer
from rich.markup import escape

from genrec_batch.core.errors import ConfigError, GenrecError, RetryError, is_full, is_unreachable, refused
from genrec_batch.runtime import console, signals

CONTEXT = "called_with"  # the parameter by which Typer hands over where each value comes from
OPTION_FILE = "genrec_batch.option_file"  # under which a context's meta holds the file's path
PANELS = ("Input", "Model", "Test", "Decoding", "Engine", "Output")  # of `--help`, in the order of a run


def _flag(field: dataclasses.Field[Any]) -> str:
    return field.metadata["flags"] or "--" + field.name.replace("_", "-")


def beginning(names: Sequence[str]) -> Callable[[str], list[str]]:
    """Return what completes a word to one of some names in a shell."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


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
        autocompletion=beginning(choices) if choices else None,
    )
    many = kind == tuple[str, ...]
    default = [] if many else field.default
    annotation: Any = Annotated[list[str], option] if many else Annotated[kind, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def options(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of an option class; it is called with its own arguments, and `options=` if it has that.

    Logs are set up before the command runs, and its errors become messages and exit codes.
    """
    hints = get_type_hints(kind)
    fields = [(field, hints[field.name]) for field in dataclasses.fields(kind)]
    fields.sort(key=lambda pair: PANELS.index(pair[0].metadata["panel"]))

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)

        def called(**given: Any) -> None:
            values = {field.name: given.pop(field.name) for field, _ in fields}
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
            console.set_up(**{name: values[name] for name in ("quiet", "verbose", "log_format")})
            context = given.pop(CONTEXT)
            try:
                chosen = kind(**values)
            except GenrecError as error:
                fail(located(context, error))
            if "options" in own.parameters:
                given["options"] = chosen

            def work() -> None:
                try:
                    command(**given)
                except GenrecError as error:
                    raise located(context, error) from error

            guarded(work, verbose=chosen.verbose)

        kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.parameters.values() if p.name != "options"]
        parameters = [*kept, *(_parameter(field, hint) for field, hint in fields)]
        parameters.append(inspect.Parameter(CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        return called

    return wrap


def located(context: Any, error: GenrecError) -> GenrecError:
    """Return an error of an option's value with where the value comes from, if that is not the command line."""
    said = str(error)
    for option in context.command.params:
        if said.startswith(tuple(f"{flag}{end}" for flag in option.opts for end in (" ", ":"))):
            file = option_file(context, option)
            where = f"{file}, {option.name.replace('_', '-')}" if file else variable(context, option)
            return type(error)(f"{where}: {said}") if where else error
    return error


def variable(context: Any, option: Any) -> str:
    """Return the environment variable that an option's value comes from, "" where it comes from elsewhere."""
    if getattr(context.get_parameter_source(option.name), "name", "") != "ENVIRONMENT":
        return ""
    own = option.envvar or ()
    names = [*((own,) if isinstance(own, str) else own), f"{context.auto_envvar_prefix}_{option.name.upper()}"]
    return str(next((name for name in names if os.environ.get(name)), names[0]))


def option_file(context: Any, option: Any) -> str:
    """Return the option file that an option's value comes from, "" where it comes from elsewhere."""
    if getattr(context.get_parameter_source(option.name), "name", "") != "DEFAULT_MAP":
        return ""
    return str(context.meta.get(OPTION_FILE, "option file"))


@contextmanager
def done(what: str) -> Iterator[None]:
    """Tell of work that is done: what fails in the block loses nothing of it, and its message ends with `what`.

    Raises:
        GenrecError: of the same kind as in the block.
    """
    try:
        yield
    except GenrecError as error:
        raise type(error)(f"{error}; {what}") from error


def fail(error: GenrecError) -> NoReturn:
    """Print a user's error and leave with its exit code."""
    tell("error:", str(error))
    raise typer.Exit(error.exit_code)


def tell(title: str, text: str) -> None:
    """Print an error on stderr: as a line for a person, or in the run's JSON log."""
    if console.LOG.handlers and isinstance(console.LOG.handlers[0].formatter, console.JsonFormatter):
        console.LOG.error("%s %s", title, text)
    else:
        console.stderr.print(f"[bold red]{title}[/] {escape(text)}", soft_wrap=True, highlight=False)


def guarded(work: Callable[[], None], *, verbose: bool) -> None:
    """Run a command's work at the CLI's edge: every failure becomes one message and one exit code."""
    signals.begin_command()
    try:
        work()
    except GenrecError as error:
        fail(error)
    except KeyboardInterrupt:
        console.LOG.warning("interrupted; run the same command again to go on where it stopped")
        exec("")  # noqa: S102 (else `python -m` ends itself by SIGINT where the interrupt came in an `exec` of a text)
        raise typer.Exit(130) from None
    except signals.Terminated as stopped:
        console.LOG.warning("%s; run the same command again to go on where it stopped", stopped.reason)
        raise typer.Exit(stopped.exit_code) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except MemoryError as error:
        ways = "free some memory, or use a smaller --batch-size, --beam-width, --num-candidates or --memory-limit"
        fail(RetryError(f"out of memory ({error}); {ways}"))
    except Exception as error:  # the edge: a bug of ours, told as one
        if isinstance(error, OSError) and is_full(error):
            fail(refused(error, error.filename or "a temporary file", RetryError))
        if isinstance(error, OSError) and error.filename and is_unreachable(error):
            fail(ConfigError(f"{error.filename}: cannot be reached by this user ({error.strerror})"))
        if verbose or console.LOG.level == logging.DEBUG:
            traceback.print_exc()
        told = "This is a fault of genrec-batch, not of your input; run again with --verbose for the traceback."
        tell("internal error:", f"{type(error).__name__}: {error}\n{told}")
        raise typer.Exit(1) from error
    finally:
        signals.end_command()
