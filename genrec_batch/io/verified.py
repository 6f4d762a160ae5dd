"""`--verify-input`: whether inputs are what they were, by the checksums in them or by what an earlier output recorded.

Owns: both comparisons. Must not know: what is in a table, how it is scored. In: sources and the option's value. Out:
nothing, or an error that names the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.io import fetched, parquet, published, read, table_runs
from genrec_batch.stores.bucket import is_uri

PAGES = "pages"
AGAIN = "copy it again from where it was made"


def check_pages(path: str, flag: str) -> None:
    """Read every page of local Parquet files and compare it with its checksum, where its writer has stored one.

    Raises:
        InputError: a page is damaged; the message names the file and the row group.
    """
    for name in read.scan(path, flag, hashed=False).files:
        file = Path(name)
        if not file.is_file() or not _is_parquet(file):
            continue
        whole = parquet.whole_groups(file)
        if not whole or not all(whole):
            where = f"row group {whole.index(False)}" if whole else "its footer"
            raise InputError(f"{flag} {file}: {where} is damaged (--verify-input {PAGES}); {AGAIN}")


def _is_parquet(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"PAR1"


def recorded(earlier: str) -> dict[str, dict[str, object]]:
    """Return what an earlier output recorded of its inputs, by name: path, files, rows, bytes, sha256.

    Raises:
        ConfigError: not a finished output.
    """
    path = fetched.local(table_runs.newest(earlier, "--verify-input"), "--verify-input")
    if published.finished_id(path) is None:
        raise ConfigError(
            f"--verify-input {earlier}: neither `{PAGES}` nor a finished output of genrec-batch, whose record of its "
            "inputs can be compared"
        )
    found: dict[str, dict[str, object]] = json.loads(published.files_of(path)[1].get("genrec.input", "{}"))
    return found


def check_recorded(earlier: str, inputs: Mapping[str, Mapping[str, object]]) -> None:
    """Compare the snapshots of a run's inputs with what an earlier output recorded of inputs of the same names.

    Raises:
        ConfigError: not a finished output.
        InputError: an input has other contents, or the earlier run had none of that name.
    """
    before = recorded(earlier)
    faults = []
    for name, now in inputs.items():
        was = before.get(name)
        if was is None:
            faults.append(f"{name} {now['path']}: the run of {earlier} had no such input")
        elif "table" not in was and is_uri(str(was["path"])) != is_uri(str(now["path"])):
            here, there = ("a store", "a disk") if is_uri(str(now["path"])) else ("a disk", "a store")
            faults.append(
                f"{name} {now['path']}: in {here}, and {earlier} was made from {there} ({was['path']}), whose contents "
                "are told apart in another way: by ETags in a store, by sha256 on a disk"
            )
        elif was["sha256"] != now["sha256"]:
            sizes = ", ".join(f"{was[unit]} {unit}, now {now[unit]}" for unit in ("files", "rows", "bytes"))
            faults.append(f"{name} {now['path']}: not the contents that {earlier} was made from ({sizes})")
    if faults:
        raise InputError(f"--verify-input {earlier}: {'; '.join(faults)}; {AGAIN}, or omit the option")
