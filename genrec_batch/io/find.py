"""Which files an input is: a file, a glob or a directory, and which of its files are left out.

Owns: walking folders, names that are not data, tables (Delta, Iceberg) that no folder of files is. Must not know: what
is in the files beyond their first bytes, object stores. In: a path. Out: `Found`.
"""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from genrec_batch.core.errors import InputError, nearest
from genrec_batch.io import formats
from genrec_batch.io.forms import hive_values
from genrec_batch.io.places import Store, matching

LOST = "lost+found"  # of a file system; only root may list it
NO_FILE = "a pipe or a device; Parquet is read from its end, so write it into a file"
UNFINISHED = (".inprogress", ".tmp", ".temp", ".part", ".partial", ".crdownload", "._copying_", ".pending")
ICEBERG = ".metadata.json"
MARKERS = ("_success", "_metadata", "_common_metadata", "_started", "_committed", "_manifest.json")  # beside data
NAMED = 5  # files that an error or a warning names


@dataclass(frozen=True, kw_only=True)
class Found:
    """The files of an input, sorted."""

    files: tuple[str, ...]
    names: tuple[str, ...]  # of the same files, below the folder or the fixed part of the pattern
    skipped: tuple[str, ...] = ()  # that were left out for their name or format, by these names
    links: tuple[tuple[str, str], ...] = ()  # names that were left out because another name is the same file
    table: str | None = None  # "Delta" or "Iceberg": the one file is a table


def files(path: str, flag: str) -> list[str]:
    """Return the files of a file, a glob or a directory, sorted; see `found`."""
    return list(found(path, flag).files)


def found(path: str, flag: str) -> Found:
    """Return the files of a file, a glob or a directory; `flag` names the input in errors.

    Raises:
        InputError: there is none, this user may not read a folder that could hold one, or the files are those of a
            table, which also has files of rows that were removed.
    """
    if not path:
        raise InputError(f"{flag} is empty: name a file, a glob, a directory or a URI")
    try:
        return _found(path, flag)
    except OSError as error:
        raise InputError(f"{flag} {error.filename or path}: cannot be read by this user ({error.strerror})") from error


def _found(path: str, flag: str) -> Found:
    place, where = Path(path), f"{flag} {path}"
    table = table_format(place)
    if table in ("Delta", "Iceberg") or (place.is_file() and place.name.endswith(ICEBERG)):
        return Found(files=(path,), names=(place.name,), table=table or "Iceberg")
    if place.is_file():
        return Found(files=(path,), names=(place.name,))
    if place.is_dir():
        _check_no_part_of_a_table(place, where)
        return _once(chosen(_under(place, flag), where, lambda file: str(Path(file).relative_to(place))))
    if place.exists():
        raise InputError(f"{where}: {NO_FILE}")
    if not glob.has_magic(path):
        near = nearest(place.name, [p.name for p in place.parent.iterdir()]) if place.parent.is_dir() else ""
        raise InputError(f"{where}: no such file or directory.{near}")
    _check_listed(place)
    fixed = base(path)
    _check_no_part_of_a_table(fixed, where)
    matched = sorted(set(_matched(path, fixed, flag)))
    if not matched:
        raise InputError(f"{where}: no file matches this pattern")
    return _once(chosen(matched, where, lambda file: str(Path(file).relative_to(fixed))))


def _once(found: Found) -> Found:
    """Return files without those that are the same file under a later name: symbolic and hard links, as `latest`.

    In folders of other partition values it is not the same: these are columns of its rows.
    """
    kept: dict[object, tuple[str, str]] = {}
    links = []
    for file, name in zip(found.files, found.names, strict=True):
        state = os.stat(file)  # noqa: PTH116 (a log may have thousands of files)
        first = kept.setdefault((state.st_dev, state.st_ino, *hive_values(name).items()), (file, name))
        if first[1] != name:
            links.append((name, first[1]))
    files, names = zip(*kept.values(), strict=True)
    return replace(found, files=files, names=names, links=tuple(links))


def _matched(path: str, fixed: Path, flag: str) -> Iterator[str]:
    """Yield the files that match a pattern, and those of folders that do; what begins with _ must be asked for."""
    asked = Path(path).parts
    for name in glob.glob(path, recursive=True):  # noqa: PTH207 (takes absolute patterns)
        below = Path(name).relative_to(fixed).parts
        if any(part.startswith(("_", ".")) and not _is_asked(part, asked) for part in below):
            continue
        if Path(name).is_file():
            yield name
        elif Path(name).is_dir() and "**" not in asked:
            yield from _under(Path(name), flag)


def _is_asked(part: str, asked: Sequence[str]) -> bool:
    return any(pattern.startswith(part[0]) for pattern in asked)


def chosen(
    listed: Iterable[str],
    where: str,
    name_of: Callable[[str], str],
    is_parquet: Callable[[str], bool] = formats.is_parquet,
) -> Found:
    """Choose among the files of a folder or a store: Parquet by its name or first bytes, else texts by their names.

    Args:
        listed: the files.
        where: names the input in errors.
        name_of: returns the name of a file below the folder.
        is_parquet: looks into a file whose name does not tell.

    Raises:
        InputError: none is Parquet or a text.
    """
    names = {file: name_of(file) for file in listed}
    whole = {file: name for file, name in names.items() if not is_left_out(name)}
    parquet = {file for file, name in whole.items() if name.lower().endswith(".parquet")}
    parquet |= {file for file in whole.keys() - parquet if is_parquet(file)}
    data = parquet or {file for file, name in whole.items() if formats.is_text_name(name)}
    kept = sorted(data)
    skipped = sorted(name for file, name in names.items() if file not in data and not is_marker(name))
    if not kept:
        there = f"; it has {some(skipped)}" if skipped else ""
        raise InputError(f"{where}: holds no Parquet file, and no CSV or JSON lines{there}")
    return Found(files=tuple(kept), names=tuple(names[file] for file in kept), skipped=tuple(skipped))


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def is_left_out(name: str) -> bool:
    """Return whether a file of a folder is hidden, a marker or unfinished, by its last name."""
    last = name.rpartition("/")[2].lower()
    return last.startswith((".", "_")) or last.endswith(UNFINISHED)


def is_marker(name: str) -> bool:
    """Return whether a file that is left out goes without saying: markers, checksums, hidden files."""
    last = name.rpartition("/")[2].lower()
    return last.startswith(MARKERS) or last.endswith(".crc") or (last.startswith(".") and ".parquet" not in last)


def _under(place: Path, flag: str) -> Iterator[str]:
    """Yield the files of a directory; a folder that may not be listed is an OSError, never silently left out."""
    seen = {os.path.realpath(place)}
    for folder, below, names in os.walk(place, onerror=_refuse, followlinks=True):
        if Path(folder) != place and (table := table_format(Path(folder))):
            raise InputError(f"{flag} {place}: {folder} is a table ({table}), not a folder of files; name it itself")
        real = {name: os.path.realpath(Path(folder, name)) for name in below}
        below[:] = sorted(n for n in below if not n.startswith((".", "_")) and n != LOST and real[n] not in seen)
        seen |= {real[name] for name in below}
        for name in names:
            file = Path(folder, name)
            if file.is_file():
                yield str(file)
            elif not is_left_out(name) and file.suffix.lower() == ".parquet":
                raise InputError(
                    f"{flag} {file}: {NO_FILE if file.exists() else 'a link to a file that does not exist'}"
                )


def _refuse(error: OSError) -> NoReturn:
    raise error


def table_format(place: Path) -> str | None:
    """Return the format of a table in a folder: "Delta", "Iceberg", "Hudi", else None."""
    metadata = place / "metadata"
    listed = os.listdir(metadata) if os.path.isdir(metadata) and os.access(metadata, os.R_OK | os.X_OK) else []  # noqa: PTH112, PTH208 (no error where a folder above may not be entered)
    below = [name for name in ("_delta_log", ".hoodie") if os.path.isdir(place / name)]  # noqa: PTH112
    return format_of([f"{name}/" for name in below] + [f"metadata/{name}" for name in listed])


def format_of(names: Iterable[str]) -> str | None:
    """Return the format of a table that has files of these names below its folder; see `table_format`."""
    for name in names:
        first = name.partition("/")[0]
        if first in ("_delta_log", ".hoodie"):
            return "Delta" if first == "_delta_log" else "Hudi"
        if first == "metadata" and name.endswith(ICEBERG):
            return "Iceberg"
    return None


def _check_no_part_of_a_table(place: Path, where: str) -> None:
    """Raise InputError for the files of a table: some of them have rows that were removed or replaced."""
    for above in (place, *place.absolute().parents):
        table = table_format(above)
        check_readable(table, where)
        if table:
            raise InputError(
                f"{where}: files of the {table} table {above}, which also has files of rows that were removed; "
                "name the table"
            )


def check_readable(table: str | None, where: str) -> None:
    """Raise InputError for a table of a format that is not read."""
    if table == "Hudi":
        raise InputError(f"{where}: a Hudi table, which is not read; export its current rows as Parquet")


def in_store(store: Store, where: str) -> Found:
    """Return the files that a URI names: an object, a pattern or a folder, as `found` does for a path.

    Raises:
        InputError: see `found`.
        OSError: the store cannot be reached, or refuses.
    """
    key = store.key
    there = bool(key) and not key.endswith("/") and store.exists()
    is_name = not glob.has_magic(key) or there or bool(store.keys_below(key.rstrip("/")))
    if there:
        table = "Iceberg" if key.endswith(ICEBERG) else None
        return Found(files=(store.uri(key),), names=(key.rpartition("/")[2],), table=table)
    parts = key.rstrip("/").split("/")
    fixed = next((at for at, part in enumerate(parts) if glob.has_magic(part) and not is_name), len(parts))
    folder = "/".join(parts[:fixed])
    keys = store.keys_below(folder)
    if not keys:
        raise InputError(f"{where}: no such object or folder")
    names = {name.removeprefix(folder).lstrip("/"): name for name in keys}
    table = format_of(names)
    check_readable(table, where)
    if table and fixed == len(parts):
        return Found(files=(store.uri(folder),), names=(folder,), table=table)
    if table:
        raise InputError(
            f"{where}: files of a {table} table, which also has files of rows that were removed; name the table"
        )
    pattern = "/".join(parts[fixed:])
    matched = list(matching(list(names), pattern)) if pattern else list(names)
    if not matched:
        raise InputError(f"{where}: no object matches this pattern")
    asked = parts[fixed:]
    seen = [
        name
        for name in matched
        if all(not p.startswith(("_", ".")) or _is_asked(p, asked) for p in name.split("/")[:-1])
    ]
    uris = {store.uri(names[name]): name for name in seen}

    def is_parquet(file: str) -> bool:
        return formats.is_parquet(file, store.place.open)

    return chosen(uris, where, uris.__getitem__, is_parquet)


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
