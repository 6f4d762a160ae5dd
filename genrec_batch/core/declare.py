"""How an option is declared and checked, and what it decides.

Owns: the one way to declare an option, checks of a field's type, choices and least value, and whether an option decides
a result. Must not know: which options there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from genrec_batch.core.errors import ConfigError, nearest

Identity = Literal["rows", "bytes", "content", "none"]
"""What an option decides, so whether a run can be resumed and whether rows of an earlier output can be kept:

- rows: the rows of every user. A run with another value is another run, and keeps no row.
- bytes: the bytes of the output, but no row of a user whose own input is the same: rows are kept.
- content: a file whose content is fingerprinted, or a choice of which the outcome is (`--engine auto`). The value is
  recorded and decides nothing.
- none: how a run is shown, stored or checked. It is not recorded.
"""


def option(
    sentence: str,
    default: Any = None,
    *,
    panel: str = "Options",
    choices: tuple[str, ...] = (),
    offers: tuple[str, ...] = (),
    flags: str | None = None,
    identity: Identity = "rows",
) -> Any:
    """Declare one option: its help sentence (with the unit), default, panel, allowed values, flags, and identity.

    `offers` are values that a shell completes where others are allowed, too.
    """
    metadata = {
        "help": sentence,
        "panel": panel,
        "choices": choices,
        "offers": offers or choices,
        "flags": flags,
        "identity": identity,
    }
    return dataclasses.field(default=default, metadata=metadata)


def same_as(declared: Any, name: str) -> Any:
    """Declare the option `name` of another option class here, too."""
    field = next(field for field in dataclasses.fields(declared) if field.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata)


def check_types(config: Any) -> None:
    """Raise ConfigError for a field of the wrong type (the command line converts, Python callers may not)."""
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    for field in dataclasses.fields(config):
        value, wanted = getattr(config, field.name), str(field.type)
        if wanted.startswith("tuple"):
            right = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        else:
            right = isinstance(value, kinds[wanted.removesuffix(" | None")])
            right = right and not (isinstance(value, bool) and wanted != "bool")
            right = right or (value is None and wanted.endswith("None"))
        if not right:
            raise ConfigError(f"{field.name}={value!r}: expected {wanted}")


def check_choices(config: Any) -> None:
    """Raise ConfigError for a field whose value is not among its choices."""
    for field in dataclasses.fields(config):
        choices, value = field.metadata.get("choices"), getattr(config, field.name)
        if choices and value is not None and value not in choices:
            hint = nearest(str(value), list(choices))
            raise ConfigError(f"--{field.name.replace('_', '-')} {value!r} is not one of {', '.join(choices)}.{hint}")


def check_at_least(config: Any, **bounds: int) -> None:
    """Raise ConfigError for a field below its least value."""
    for name, least in bounds.items():
        if not getattr(config, name) >= least:  # NaN is no number of anything
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: at least {least}")


def check_share(config: Any, name: str) -> None:
    """Raise ConfigError for a field that is not a share from 0 to 1."""
    if not 0 <= getattr(config, name) <= 1:
        raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: a share from 0 to 1")


def values(config: Any, *identities: Identity) -> dict[str, Any]:
    """Return the options of some identities by name, JSON-able."""
    chosen = {
        f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.metadata["identity"] in identities
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}


def recorded(config: Any) -> dict[str, Any]:
    """Return the options that an output's metadata records."""
    return values(config, "rows", "bytes", "content")


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return where two JSON-able values differ, each as `path (one, now other)`."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = sorted({*a, *b})
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)]
    a, b = (list(each) if isinstance(each, tuple) else each for each in (a, b))  # as they come back from JSON
    return [] if a == b else [f"{path} ({a!r}, now {b!r})"]
