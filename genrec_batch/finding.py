"""Which files an input is, and whether each is Parquet to its end.

Owns: globs and directories, and what to do about a file that is something else. Must not know: columns, rows.
"""

from __future__ import annotations

import glob
import json
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.errors import InputError, nearest

LINES = (".json", ".jsonl", ".ndjson")  # an object a line; anything else that is no Parquet is most often CSV


def files(path: str, flag: str) -> list[str]:
    """Return the files of a file, a glob or a directory, sorted; `flag` names the input in errors.

    Raises:
        InputError: there is none.
    """
    if not path:
        raise InputError(f"{flag} is empty: name a file, a glob, a directory or a URI")
    place = Path(path)
    if place.is_dir():
        found = sorted(
            str(p)
            for p in place.rglob("*.parquet")
            if p.is_file() and not any(part.startswith((".", "_")) for part in p.relative_to(place).parts)
        )
        if not found:
            raise InputError(f"{flag} {path}: the directory holds no .parquet file")
        return found
    if place.is_file():
        return [path]
    found = sorted(
        name
        for name in glob.glob(path, recursive=True)  # noqa: PTH207 (takes absolute patterns)
        if Path(name).is_file()
    )
    if found:
        return found
    if glob.has_magic(path):
        raise InputError(f"{flag} {path}: no file matches this pattern")
    near = nearest(place.name, [p.name for p in place.parent.iterdir()]) if place.parent.is_dir() else ""
    raise InputError(f"{flag} {path}: no such file or directory.{near}")


def base(path: str) -> Path:
    """Return the folder that file names are relative to: what stands before the first wildcard."""
    place = Path(path)
    if place.is_dir():
        return place
    fixed = Path(place.parts[0])
    for part in place.parts[1:]:
        if glob.has_magic(part):
            return fixed
        fixed /= part
    return fixed.parent if not glob.has_magic(place.parts[0]) else Path()


def metadata(file: str, flag: str) -> pq.FileMetaData:
    """Return what the end of a Parquet file says of it.

    Raises:
        InputError: it may not be read, is empty, cut off, damaged or something else; the message says what to do.
    """
    try:
        return pq.read_metadata(file)
    except PermissionError as error:
        raise InputError(f"{flag} {file}: may not be read by this user ({error.strerror})") from error
    except (pa.ArrowInvalid, OSError) as error:
        with Path(file).open("rb") as opened:
            begins = opened.read(4)
        if begins == b"PAR1":
            raise InputError(
                f"{flag} {file}: truncated or damaged: it begins as Parquet and has no footer; copy it again"
            ) from error
        if not begins:
            raise InputError(f"{flag} {file}: empty (0 bytes), so not a Parquet file; copy it again") from error
        raise InputError(f"{flag} {file}: not a Parquet file; convert it, such as with {_converts(file)}") from error


def _converts(file: str) -> str:
    """Return a command that makes Parquet of a file that is most likely CSV."""
    place = Path(file)
    target = place.with_suffix(".parquet") if place.suffix != ".parquet" else place.with_name(f"new-{place.name}")
    source, made = json.dumps(file), json.dumps(str(target))
    scan = f"scan_ndjson({source})" if place.suffix in LINES else f"scan_csv({source}, try_parse_dates=True)"
    return f"python -c {shlex.quote(f'import polars; polars.{scan}.sink_parquet({made})')}"
