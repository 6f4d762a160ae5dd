"""The runs of a table: the folder with what the newest run wrote to a version of it, as any other output.

Owns: `TABLE` and `TABLE@VERSION` where an earlier output is named, and whether the table still has all that its run
wrote. Must not know: what the rows are for. In: a path or a name. Out: the path of a finished output.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from genrec_batch.core.errors import InputError
from genrec_batch.io import catalogs, find, published, tables
from genrec_batch.io.attempt import reading
from genrec_batch.io.catalogs import TableName
from genrec_batch.io.delta_log import DeltaLog
from genrec_batch.io.iceberg_log import IcebergLog
from genrec_batch.io.table_log import TableLog
from genrec_batch.io.table_root import RUN
from genrec_batch.stores.bucket import is_uri, uri_of


def newest(path: str, flag: str) -> str:
    """Return the folder of the newest run in a version of a table; what is no table as it is. `flag` is for errors.

    Raises:
        InputError: the table has no such version, no run of ours, or no longer all rows of its run.
        EngineError: the package for such tables is not installed.
    """
    where = f"{flag} {path}"
    if is_uri(path) and not catalogs.is_name(path):
        return _in_store(path, where)
    base, version = (path, None) if Path(path).exists() else tables.split(path)
    log: TableLog
    if catalogs.is_name(base):
        log = IcebergLog(where=where, name=TableName.read(base, where))
    elif find.table_format(Path(base)) == "Delta":
        log = DeltaLog(where=where, path=base)
    elif find.table_format(Path(base)) == "Iceberg":
        raise InputError(f"{where}: an Iceberg table; name it by its catalog, {catalogs.FORM}")
    else:
        return path
    return _folder(log, version)


def _in_store(path: str, where: str) -> str:
    """Return the folder of the newest run in a version of a Delta table in a store; see `newest`."""
    if urlsplit(uri_of(path)).scheme.startswith("http"):
        return path  # a web server lists nothing
    for base, version in dict.fromkeys([(path, None), tables.split(path)]):
        log = DeltaLog(where=where, path=base)
        if reading(log.exists, where):
            return _folder(log, version)
    return path


def _folder(log: TableLog, version: str | None) -> str:
    state = log.state(version)
    runs = state.active() if state is not None else []
    if state is None or not (runs or state.runs):
        raise InputError(f"{log.where}: the table has no rows that `genrec-batch score` wrote")
    newest_run = (*runs, *state.runs)[0]
    folder, manifest = log.root.run(newest_run), log.root.manifest(newest_run)
    if manifest is None:
        raise InputError(
            f"{log.where}: {folder}/{published.MANIFEST} is missing or damaged, perhaps removed as a file that no "
            "version names; its rows can be read as a table; score them again for all else"
        )
    names = {f"{RUN}{newest_run}/{entry['file']}" for entry in manifest["files"]}
    if state.altered or not names <= state.files:
        raise InputError(
            f"{log.where}: the table was changed since run {newest_run} wrote to it, such as by a deletion or a "
            f"compaction; name an older version (TABLE@VERSION), or {folder}, which has all that the run wrote"
        )
    return folder
