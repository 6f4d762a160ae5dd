"""The option file: entries of `genrec-batch.toml` become defaults of the commands.

Owns: reading the file and its faults. Must not know: what an option does. Entries at the top are for the main commands,
those in a table such as `[sample]` or `[model.init]` for that command.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genrec_batch.core import toml
from genrec_batch.core.errors import ConfigError, RetryError, nearest

PIPE_S = 60.0  # that a pipe may give nothing


def read(path: Path, commands: Any, main: Mapping[str, set[str]]) -> dict[str, Any]:
    """Return the defaults of each command, nested as the commands are.

    Args:
        path: the file.
        commands: the group of all commands.
        main: the options of the commands, such as `score` or `model list`, that entries at the top are for.

    Raises:
        ConfigError: not readable, not TOML, or an entry that no command has; all faults at once.
    """
    entries = _parsed(path)
    tables = {name: value for name, value in entries.items() if isinstance(value, dict)}
    shared = _underscored({name: value for name, value in entries.items() if not isinstance(value, dict)})
    everywhere = set().union(*main.values())
    faults = [_no_such(name, everywhere) for name in shared if name not in everywhere]
    defaults: dict[str, Any] = {}
    for command, known in main.items():
        *groups, last = command.split()
        place = defaults
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = {name: value for name, value in shared.items() if name in known}
    _fill(defaults, tables, commands, "", faults)
    if faults:
        raise ConfigError(f"{path}:\n  " + "\n  ".join(faults))
    return defaults


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = _of_pipe(path) if path.is_fifo() else path.read_bytes()
        return toml.parsed(content, path, str(path))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from error
    except ConfigError as error:
        hint = "; beside tables [model.init] and the like, `model` goes under [score]" if "Cannot" in str(error) else ""
        raise ConfigError(f"{error}{hint}") from error


def _of_pipe(path: Path) -> bytes:
    """Return what a pipe gives until its writer ends, as `--config <(command)` does.

    Raises:
        RetryError: nothing came for `PIPE_S` seconds.
    """
    content = b""
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without a writer, it would wait for one here
    try:
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        while ready.poll(PIPE_S * 1000):
            more = os.read(pipe, 1 << 16)
            if not more:
                return content
            content += more
    finally:
        os.close(pipe)
    raise RetryError(
        f"--config {path}: a pipe, and nothing came from it for {PIPE_S:g} seconds; look at the command that writes it"
    )


def _underscored(entries: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("-", "_"): value for name, value in entries.items()}


def _no_such(name: str, known: set[str]) -> str:
    return f"{name}: no such option.{nearest(name, sorted(known))}"


def _fill(defaults: dict[str, Any], tables: dict[str, Any], group: Any, prefix: str, faults: list[str]) -> None:
    """Add each table of the file to the defaults of its command, and its faults to `faults`."""
    for name, table in tables.items():
        command = group.commands.get(name)
        if command is None or not isinstance(table, dict):
            faults.append(f"[{prefix}{name}]: no such table; there are {', '.join(group.commands)}")
        elif hasattr(command, "commands"):
            _fill(defaults.setdefault(name, {}), table, command, f"{name}.", faults)
        else:
            known = {option.name for option in command.params if option.param_type_name == "option"}
            own = _underscored(table)
            faults.extend(f"[{prefix}{name}] {_no_such(key, known)}" for key in own if key not in known)
            defaults.setdefault(name, {}).update(own)
