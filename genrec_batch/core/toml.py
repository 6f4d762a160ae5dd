"""TOML files as editors save them.

Owns: their encoding, and the errors about a file that is no TOML. Must not know: what an entry means.
"""

from __future__ import annotations

import codecs
import shlex
import sys
from pathlib import Path
from typing import Any

from genrec_batch.core.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def parsed(content: bytes, path: str | Path, name: str) -> dict[str, Any]:
    """Return the entries of a TOML file in UTF-8, with or without a byte-order mark; `name` is it in errors.

    Raises:
        ConfigError: another encoding, or no TOML.
    """
    if content.startswith(UTF16) or b"\0" in content:
        raise ConfigError(
            f"{name}: not valid TOML, which is UTF-8: it is UTF-16, as some editors save it; convert it with "
            f"iconv -f UTF-16 -t UTF-8 {shlex.quote(str(path))} > new.toml"
        )
    try:
        return tomllib.loads(content.removeprefix(codecs.BOM_UTF8).decode())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{name}: not valid TOML, which is UTF-8: line {line} has bytes of another encoding; convert it with "
            f"iconv -f LATIN1 -t UTF-8 {shlex.quote(str(path))} > new.toml"
        ) from error
    except (ValueError, RecursionError) as error:  # of TOML, of a number too long, of brackets too deep
        raise ConfigError(f"{name}: not valid TOML ({error})") from error
