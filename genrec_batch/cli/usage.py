"""The group of all commands: usage errors, a closed pipe behind stdout, Ctrl-C before a command starts.

Owns: one line and one exit code for each of these, as text or in the run's JSON log. Must not know: which commands
there are. In: the arguments of a process. Out: SystemExit with its code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from genrec_batch.cli.exits import print_error
from genrec_batch.cli.flags import option_file, variable
from genrec_batch.core.errors import ConfigError, GenrecError, nearest, refused
from genrec_batch.runtime import console

UsageError: Any = typer.BadParameter.__mro__[1]  # Typer's own since 0.20, Click's before; the names are the same
PREFIX, OTHERS = (
    "GENREC_BATCH",
    ("GENREC_BATCH_CACHE", "GENREC_BATCH_STORE_PATIENCE", "GENREC_BATCH_TENSORRT_INCLUDE"),
)  # variables that belong to no option
CLOSED_PIPE = 128 + 13  # as a shell reports a process that SIGPIPE ended
WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}  # by the first word of pydantic's error type
NO_TWINS = (
    "version",
    "install_completion",
    "show_completion",
)  # an exported variable must not turn a run into one of these


class Commands(TyperGroup):
    """The group of all commands."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and end the process with its exit code."""
        for option in self.params:
            if option.name in NO_TWINS:
                option.allow_from_autoenv = False  # type: ignore[attr-defined]
        console.later(_unread(self))
        given = list(sys.argv[1:] if args is None else args)
        extra["windows_expand_args"] = windows_expand_args
        if not standalone_mode:
            return super().main(given, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = super().main(given, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except UsageError as error:
            _refuse(error, given)
        except BrokenPipeError:
            _leave_quietly()
        except (GenrecError, OSError) as error:  # of stdout with `--version` and `--help`; of a file with completion
            refusal = error if isinstance(error, GenrecError) else _not_written(error)
            print_error("error:", str(refusal))
            sys.exit(refusal.exit_code)
        except SystemExit as left:
            if left.code == 1:  # the code of Typer and Rich for a closed pipe
                _leave_quietly()
            raise
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


def _unread(group: Any) -> Iterator[str]:
    """Yield a warning for each variable with our prefix that no command reads."""
    ours = sorted(name for name in os.environ if name.startswith(f"{PREFIX}_"))
    known = sorted({*OTHERS, *_twins(group, PREFIX)}) if ours else []
    for name in ours:
        if name not in known:
            yield f"no command reads the variable {name}.{nearest(name, known, 1)}"


def _twins(command: Any, prefix: str) -> Iterator[str]:
    """Yield the variables of the options of a command and its subcommands."""
    for option in command.params:
        own = option.envvar or ()
        yield from (own,) if isinstance(own, str) else own
        yield f"{prefix}_{option.name.upper()}"
    for name, below in getattr(command, "commands", {}).items():
        yield from _twins(below, f"{prefix}_{name.replace('-', '_').upper()}")


def _not_written(error: OSError) -> GenrecError:
    return refused(error, error.filename, ConfigError) if error.filename else console.stdout_refused(error)


def _leave_quietly() -> NoReturn:
    """Exit because the reader of stdout is gone; discard the buffers, so that flushing them cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    sys.exit(CLOSED_PIPE)


def _refuse(error: Any, given: list[str]) -> NoReturn:
    """Print a usage error in one line and exit with code 2."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command prints its help
        error.show()
        sys.exit(error.exit_code)
    if _as_json(given, context):
        console.set_up(quiet=False, verbose=False, log_format="json")
    elif console.LOG.handlers:
        console.set_up(quiet=False, verbose=False, log_format="text")
    see = f" See `{context.command_path} --help`." if context is not None else ""
    text = _message(error)
    print_error("error:", f"{text.rstrip('.?')}{'?' if text.endswith('?') else '.'}{see}")
    sys.exit(error.exit_code)


def _message(error: Any) -> str:
    """Return what is wrong: the flag, variable or entry at fault, its value, and the nearest name."""
    context, parameter = error.ctx, getattr(error, "param", None)
    if getattr(error, "possibilities", None) is not None or type(error).__name__ == "NoSuchOption":
        known = [name for option in context.command.get_params(context) for name in option.opts if name[:2] == "--"]
        return f"no such option {error.option_name}.{nearest(error.option_name, known)}"
    cause: Any = error.__cause__
    if parameter is not None and getattr(parameter, "multiple", False) and option_file(context, parameter):
        value = context.lookup_default(parameter.name)
        return f"{_place(context, parameter, value)}: not a list, such as {[value]!r}"
    if parameter is None or not hasattr(cause, "errors"):
        text = str(error.format_message())
        return text[:1].lower() + text[1:]
    fault = cause.errors()[0]
    kind = str(fault["type"])
    wanted = WANTED.get(kind.partition("_")[0])
    wrong = f"not {wanted}" if wanted else f"at least {fault['ctx']['ge']}" if kind == "greater_than_equal" else ""
    return f"{_place(context, parameter, fault['input'])}: {wrong or error.message}"


def _place(context: Any, parameter: Any, value: Any) -> str:
    """Return a value with its place: a flag, a variable, or an entry of the option file."""
    if twin := variable(context, parameter):
        return f"{twin}={value}"
    if file := option_file(context, parameter):
        return f"{file}: {parameter.name.replace('_', '-')} = {value!r}"
    return f"{parameter.opts[-1] if parameter.param_type_name == 'option' else parameter.name.upper()} {value!r}"


def _as_json(given: list[str], context: Any) -> bool:
    """Return whether JSON logs were asked for; parsing stopped early, so the arguments are searched."""
    for number, text in enumerate(given):
        flag, equals, value = text.partition("=")
        if flag == "--log-format":
            return (value if equals else "".join(given[number + 1 : number + 2])) == "json"
    if "GENREC_BATCH_LOG_FORMAT" in os.environ:
        return os.environ["GENREC_BATCH_LOG_FORMAT"] == "json"
    return context is not None and (context.default_map or {}).get("log_format") == "json"
