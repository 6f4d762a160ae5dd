"""Option classes as flags: every field becomes a flag with its environment twin and help.

Owns: that mapping, and where an option's value came from. Must not know: which commands there are.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

import typer

from genrec_batch.cli.exits import fail, guarded
from genrec_batch.core.errors import GenrecError
from genrec_batch.runtime import console

CONTEXT = "called_with"  # the parameter in which Typer passes the source of each value
OPTION_FILE = "genrec_batch.option_file"  # key of the option file's path in a context's `meta`
# of `--help`, in the order of a run
PANELS = ("Input", "Model", "Training", "Test", "Decoding", "Rules", "Arms", "Engine", "Output")


def beginning(names: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a shell completion that offers the names with the typed beginning."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def _parameter(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    """Return one Typer option for one field of an option class."""
    sentence, choices, offers = (field.metadata[key] for key in ("help", "choices", "offers"))
    option = typer.Option(
        field.metadata["flags"] or "--" + field.name.replace("_", "-"),
        envvar=f"GENREC_BATCH_{field.name.upper()}",
        help=f"{sentence} One of: {', '.join(choices)}." if choices else sentence,
        rich_help_panel=field.metadata["panel"],
        show_default=field.default not in (None, False, dataclasses.MISSING),
        autocompletion=beginning(offers) if offers else None,
    )
    many = kind == tuple[str, ...]
    default = [] if many else field.default
    annotation: Any = Annotated[list[str], option] if many else Annotated[kind, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def options(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of an option class; a command with a parameter `options` receives the instance.

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
                    told = located(context, error)
                    if told is error:
                        raise  # with what led to it, which `from error` would replace by itself
                    raise told from error

            guarded(work, verbose=chosen.verbose, stall_limit_s=chosen.stall_limit)

        kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.parameters.values() if p.name != "options"]
        parameters = [*kept, *(_parameter(field, hint) for field, hint in fields)]
        parameters.append(inspect.Parameter(CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        return called

    return wrap


def located(context: Any, error: GenrecError) -> GenrecError:
    """Return an error of an option's value with where the value came from, unless it came from the command line."""
    text = str(error)
    for option in context.command.params:
        if text.startswith(tuple(f"{flag}{end}" for flag in option.opts for end in (" ", ":"))):
            file = option_file(context, option)
            where = f"{file}, {option.name.replace('_', '-')}" if file else variable(context, option)
            return type(error)(f"{where}: {text}") if where else error
    return error


def variable(context: Any, option: Any) -> str:
    """Return the environment variable that an option's value came from, "" where it came from elsewhere."""
    if getattr(context.get_parameter_source(option.name), "name", "") != "ENVIRONMENT":
        return ""
    own = option.envvar or ()
    names = [*((own,) if isinstance(own, str) else own), f"{context.auto_envvar_prefix}_{option.name.upper()}"]
    return str(next((name for name in names if os.environ.get(name)), names[0]))


def option_file(context: Any, option: Any) -> str:
    """Return the option file that an option's value came from, "" where it came from elsewhere."""
    if getattr(context.get_parameter_source(option.name), "name", "") != "DEFAULT_MAP":
        return ""
    return str(context.meta.get(OPTION_FILE, "option file"))
