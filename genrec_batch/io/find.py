"""Which files an input is, and whether each is Parquet to its end.

Owns: globs and directories, and the way out for a file that is not Parquet. Must not know: columns, rows.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.core.errors import InputError, nearest

LINES = (".json", ".jsonl", ".ndjson")  # one object a line; other files that are not Parquet are mostly CSV

LOST = "lost+found"  # of a file system; only root may list it
NO_FILE = "a pipe or a device; Parquet is read from its end, so write it into a file"


def files(path: str, flag: str) -> list[str]:
    """Return the files of a file, a glob or a directory, sorted; `flag` names the input in errors.

    Raises:
        InputError: there is none, or this user may not read a folder that could hold one.
    """
    if not path:
        raise InputError(f"{flag} is empty: name a file, a glob, a directory or a URI")
    try:
        return _files(path, flag)
    except OSError as error:
        raise InputError(f"{flag} {error.filename or path}: cannot be read by this user ({error.strerror})") from error


def _files(path: str, flag: str) -> list[str]:
    place = Path(path)
    if place.is_dir():
        found = sorted(_under(place, flag))
        if not found:
            raise InputError(f"{flag} {path}: the directory holds no .parquet file")
        return found
    if place.is_file():
        return [path]
    if place.exists():
        raise InputError(f"{flag} {path}: {NO_FILE}")
    if glob.has_magic(path):
        _check_listed(place)
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


def _under(place: Path, flag: str) -> Iterator[str]:
    """Yield the files of a directory; a folder that may not be listed is an OSError, never silently left out."""
    for folder, below, names in os.walk(place, onerror=_refuse):
        below[:] = [name for name in below if not name.startswith((".", "_")) and name != LOST]
        for name in names:
            file = Path(folder, name)
            if file.suffix != ".parquet" or name.startswith((".", "_")):
                continue
            if not file.is_file():
                raise InputError(
                    f"{flag} {file}: {NO_FILE if file.exists() else 'a link to a file that does not exist'}"
                )
            yield str(file)


def _refuse(error: OSError) -> NoReturn:
    raise error


def _check_listed(pattern: Path) -> None:
    """Raise PermissionError where a folder of a pattern may not be listed: `glob` would silently leave it out."""
    for number, part in enumerate(pattern.parts):
        above = Path(*pattern.parts[:number])
        for place in [*([above] if glob.has_magic(part) else []), *([above / part] if part == "**" else [])]:
            for folder in map(Path, glob.glob(str(place), recursive=True)):  # noqa: PTH207 (takes absolute patterns)
                if folder.is_dir() and folder.name != LOST and not os.access(folder, os.R_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def base(path: str) -> Path:
    """Return the folder that file names are relative to: the path before the first wildcard."""
    place = Path(path)
    if place.is_dir():
        return place
    fixed = Path(place.parts[0])
    for part in place.parts[1:]:
        if glob.has_magic(part):
            return fixed
        fixed /= part
    return fixed.parent if not glob.has_magic(place.parts[0]) else Path()


def metadata(file: str, flag: str) -> pq.FileMetaData | None:
    """Return the metadata in the footer of a Parquet file, None where Arrow does not know the type of a column.

    Raises:
        InputError: it may not be read, is empty, truncated, damaged or not Parquet; the message says what to do.
    """
    try:
        return pq.read_metadata(file)
    except pa.ArrowNotImplementedError:
        return None
    except PermissionError as error:
        raise InputError(f"{flag} {file}: may not be read by this user ({error.strerror})") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise _not_parquet(file, flag) from error


def _not_parquet(file: str, flag: str) -> InputError:
    with Path(file).open("rb") as opened:
        begins = opened.read(4)
    if begins == b"PAR1":
        return InputError(f"{flag} {file}: truncated or damaged: it begins as Parquet and has no footer; copy it again")
    if not begins:
        return InputError(f"{flag} {file}: empty (0 bytes), so not a Parquet file; copy it again")
    return InputError(f"{flag} {file}: not a Parquet file; convert it, such as with {_converts(file)}")


def _converts(file: str) -> str:
    """Return a command that converts a file, most likely CSV, to Parquet."""
    place = Path(file)
    target = place.with_suffix(".parquet") if place.suffix != ".parquet" else place.with_name(f"new-{place.name}")
    source, made = json.dumps(file), json.dumps(str(target))
    scan = f"scan_ndjson({source})" if place.suffix in LINES else f"scan_csv({source}, try_parse_dates=True)"
    return f"python -c {shlex.quote(f'import polars; polars.{scan}.sink_parquet({made})')}"
