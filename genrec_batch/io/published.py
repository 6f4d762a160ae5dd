"""What exists under an output's name or beside it: a finished output and its run, an unfinished run, other files.

Owns: the names in and beside an output, whether an output can be written there, whether a finished one is whole. Must
not know: how an output is written.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.core.errors import ConfigError
from genrec_batch.io import parquet
from genrec_batch.io.durable import disk_errors, missing_folder, read_json, sha256
from genrec_batch.io.identity import Identity, difference
from genrec_batch.io.manifest import PLACE, checked, seal

RUN_FILE, MANIFEST, SUCCESS, LOCK = "_run.json", "_manifest.json", "_SUCCESS", ".lock"
RECEIPTS = "_receipts"  # of parts in folders, until the output is in place
PARTITION = "genrec.partition"  # in the metadata of an output in folders: the column and its type, as JSON
FINGERPRINTS = "_fingerprints"  # in a directory of parts; beside a single file it is FILE.fingerprints
LINEAGE = ("run_id", "version", "model", "catalog", "layout", "engine", "device", "precision", "users")
OTHER_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".arrow", ".feather", ".avro", ".orc", ".xlsx")
LONGEST_NAME = 200  # bytes; leaves room for the names beside it
ROWS = "genrec.rows"  # of the file itself; in the manifest, of all parts
COUNTS = "genrec.counts"  # of a part: numbers that the run's summary adds up


def fingerprint_file(path: Path) -> Path:
    """Return where the fingerprints of an output's users are kept."""
    if path.suffix == ".parquet":
        return path.with_name(path.name + ".fingerprints")
    of_run = sorted(path.glob(f"{FINGERPRINTS}-*"))  # of a copy of an output in a store
    return of_run[0] if len(of_run) == 1 else path / FINGERPRINTS


def finished_id(path: Path) -> str | None:
    """Return the id of the run that finished the output there, None where none did.

    Raises:
        ConfigError: the file cannot be read.
    """
    return _finished_id(path) if path.exists() else None


def manifest_of(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a directory of parts, None where it is missing or not one.

    Its files are names of parts in this directory, never a path that leads elsewhere.
    """
    return checked(read_json(path / MANIFEST))


def manifest_faults(path: Path, manifest: Mapping[str, Any], *, beside: Collection[str] = ()) -> Iterator[str]:
    """Yield in what a manifest is not what its run wrote: its own hash, and the footers of the parts that are there.

    The parts' bytes are for `altered`; those named by `beside` are known to be damaged.
    """
    entries, metadata = manifest["files"], manifest["metadata"]
    parts = {path / entry["file"]: entry for entry in entries}
    yield from (f"{entry['file']} is a link" for part, entry in parts.items() if part.is_symlink())
    facts = {p: found for p, entry in parts.items() if entry["file"] not in beside and (found := _facts(p)) is not None}
    if len(facts) == len(entries):
        rows, counts = sum(found.rows for found in facts.values()), json.dumps(parquet.sums(facts.values()))
        if str(rows) != metadata.get(ROWS):
            yield f"it has {rows:,} rows and its metadata says {metadata.get(ROWS)}"
        in_folders = PARTITION in metadata  # whose files have no counts of their own
        if not in_folders and json.loads(counts) != _value(metadata.get(COUNTS, "{}")):
            yield f"its parts count {counts} and its metadata says {metadata.get(COUNTS)}"
    for part, found in facts.items():
        yield from _differs(part, found, parts[part], metadata)
    named = [entry["file"] for entry in entries]
    run_id = metadata.get("genrec.run_id")
    of_run = f"-{run_id}" if any(run_id and run_id in name for name in named) else ""
    wanted = [f"part-{n:05d}{of_run}.parquet" for n in range(len(entries))]
    if PARTITION in metadata and len(set(named)) < len(named):
        yield f"{MANIFEST} names a part twice"
    elif PARTITION not in metadata and named != wanted:
        yield f"{MANIFEST} does not name all parts from {wanted[0] if wanted else 'the first'} on, each once"
    if manifest.get("sha256") != seal(manifest):
        why = "its sha256 is another" if "sha256" in manifest else "it has no sha256 of itself"
        yield f"{MANIFEST} was changed since it was written ({why})"


def _facts(part: Path) -> parquet.PartFacts | None:
    """Return what the footer of a part says, None where it is missing, a link or damaged, which `altered` finds."""
    if part.is_symlink() or not part.is_file():
        return None
    try:
        found = parquet.facts(part, COUNTS, hashed=False)
    except (*parquet.UNREADABLE, ValueError, RecursionError):
        return None
    counts = found.counts.values() if isinstance(found.counts, dict) else [None]
    return found if all(isinstance(count, int) for count in counts) else None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _differs(part: Path, facts: parquet.PartFacts, entry: Mapping[str, Any], metadata: Mapping[str, str]) -> list[str]:
    """Return where an entry and the lineage are not what the footer of its part says."""
    stored = pq.read_schema(part).metadata or {}
    said = {name: metadata.get(f"genrec.{name}") for name in LINEAGE}
    found = {name: stored.get(f"genrec.{name}".encode(), b"").decode(errors="replace") or None for name in LINEAGE}
    faults = [
        f"{name} {said[name]}, and {part.name} has {found[name]}" for name in LINEAGE if said[name] != found[name]
    ]
    faults += [
        f"{entry.get(unit)} {unit} of {part.name}, which has {count}"
        for unit, count in (("rows", facts.rows), ("bytes", facts.bytes))
        if entry.get(unit) != count
    ]
    return [f"{MANIFEST} says {fault}" for fault in faults]


def check(path: Path, if_exists: str | None) -> None:
    """Check that an output can be written, before any work is done.

    Raises:
        ConfigError: its name, its folder or an existing file does not allow it.
        RetryError: the disk has no room for another file.
    """
    if path.name in ("", "..", ".parquet") or len(path.name.encode()) > LONGEST_NAME:
        raise ConfigError(f"OUTPUT {str(path)!r}: not a name that an output can have")
    _check_kind(path)
    parent = path.parent
    if not parent.is_dir():
        raise ConfigError(f"OUTPUT {path}: {missing_folder(parent)}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"OUTPUT {path}: the folder {parent} may not be written by this user")
    with disk_errors(path), tempfile.TemporaryFile(dir=parent):  # a file system may refuse what the modes allow
        pass
    if path.suffix == ".parquet" and path.is_dir():
        raise ConfigError(f"OUTPUT {path} is a directory; a name ending in .parquet means one file")
    if path.suffix != ".parquet" and path.is_file():
        raise ConfigError(f"OUTPUT {path} is a file; a name that does not end in .parquet means a directory of parts")
    if path.suffix != ".parquet" and path.is_symlink():
        raise ConfigError(f"OUTPUT {path} is a link, which a folder cannot replace; name the folder: {path.resolve()}")
    if path.is_dir() and path.is_mount():
        raise ConfigError(
            f"OUTPUT {path} is a mount point, which no rename can replace; name a folder in it: {path}/recs"
        )
    if not present(path):
        return
    if not ours(path):
        never = {"overwrite": ", so it is not replaced", "resume": ", so it is not resumed"}.get(if_exists or "", "")
        raise ConfigError(f"OUTPUT {path} exists and {_foreign(path)}{never}; name another OUTPUT")
    if if_exists == "error" or (if_exists is None and not staging(path).exists() and not (path / RUN_FILE).exists()):
        raise ConfigError(
            f"OUTPUT {path} exists; --if-exists resume accepts it where the same run finished it, "
            "--if-exists overwrite replaces it once the new one is whole, or name another"
        )


def _check_kind(path: Path) -> None:
    """Raise ConfigError where a name promises what an output is not: a stream, another format."""
    if str(path) == "-" or (path.exists() and not path.is_dir() and not path.is_file()):
        raise ConfigError(
            f"OUTPUT {path} is a device or a pipe, and an output is put in place as a whole; name a file or a folder"
        )
    if path.suffix.lower() in OTHER_FORMATS and not path.is_dir():
        raise ConfigError(
            f"OUTPUT {path}: outputs are Parquet; name {path.with_suffix('.parquet')} for one file, or a folder whose "
            f"name does not end in {path.suffix}"
        )


def staging(path: Path) -> Path:
    """Return where the parts of an unfinished run are kept."""
    return path.with_name(f".{path.name}.unfinished")


def ours(path: Path) -> bool:
    """Return whether a run wrote everything there: a file with its metadata, a folder with its manifest.

    A folder whose manifest is damaged has only files of names that a run writes, and a part says that one wrote it.
    """
    if path.is_file():
        return _finished_id(path) is not None
    manifest = manifest_of(path)
    if manifest is not None:
        return not strangers(path, manifest["files"])
    places = [str(file.relative_to(path)) for file in path.rglob("*.parquet")]
    parts = [place for place in places if PLACE.fullmatch(place)]
    return not strangers(path, [{"file": p} for p in parts]) and any(_finished_id(path / p) for p in parts)


def _foreign(path: Path) -> str:
    """Return why an existing path is not `ours`."""
    manifest = manifest_of(path) if path.is_dir() else None
    if manifest is None:
        return "was not written by genrec-batch"
    return f"holds files that were not written by genrec-batch ({', '.join(strangers(path, manifest['files'])[:3])})"


def strangers(path: Path, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names in a directory of parts that are not in its manifest and that no run writes."""
    parts = {entry["file"] for entry in entries}
    folders = {file.partition("/")[0] for file in parts if "/" in file}
    known = parts | folders | {MANIFEST, SUCCESS, RUN_FILE, LOCK, fingerprint_file(path).name, RECEIPTS}
    inside = {
        f"{folder}/{file.name}" for folder in folders if (path / folder).is_dir() for file in (path / folder).iterdir()
    }
    return sorted(({file.name for file in path.iterdir()} | inside) - known)


def altered(path: Path, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield each file that is missing, a link, or does not match the manifest."""
    for entry in entries:
        part = path / entry["file"]
        if part.is_symlink() or not part.is_file() or sha256(part) != entry["sha256"]:
            yield entry["file"]


def prints_damaged(path: Path) -> bool:
    """Return whether the fingerprints of an output are there, and not what its run wrote."""
    kept = fingerprint_file(path)
    return os.path.lexists(kept) and not (kept.is_file() and parquet.is_whole(kept))


def old(path: Path) -> Path:
    """Return the path to which an output is moved while it is replaced."""
    return path.with_name(f".{path.name}.old")


def present(path: Path) -> bool:
    """Return whether an output exists (an empty directory is none); restores one that a killed run moved aside."""
    between_renames = not path.exists() and (staging(path) / SUCCESS).exists()
    if between_renames and old(path).exists():  # a run was killed while it replaced the output
        old(path).rename(path)
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def check_whole(path: Path) -> None:
    """Raise ConfigError where a finished output has lost, gained or changed a file since it was written."""
    if prints_damaged(path):
        kept = fingerprint_file(path).name
        raise ConfigError(f"OUTPUT {path}: {kept} is damaged; --if-exists overwrite writes the output again")
    if path.is_file():
        if ROWS.encode() not in (pq.read_metadata(path).metadata or {}):
            raise ConfigError(f"OUTPUT {path} was changed by another program; --if-exists overwrite writes it again")
        if not parquet.is_whole(path):
            raise ConfigError(f"OUTPUT {path} is damaged; --if-exists overwrite writes it again")
        return
    manifest = manifest_of(path)
    if manifest is None:
        raise ConfigError(f"OUTPUT {path}: its {MANIFEST} is damaged; --if-exists overwrite writes the output again")
    if not ours(path):
        raise ConfigError(f"OUTPUT {path} holds files that its manifest does not name; remove them, or name another")
    for fault in manifest_faults(path, manifest):
        raise ConfigError(f"OUTPUT {path}: {fault}; --if-exists overwrite writes the output again")
    for name in altered(path, manifest["files"]):
        raise ConfigError(
            f"OUTPUT {path}: {name} is missing or does not match the manifest; --if-exists overwrite writes the output "
            "again"
        )


def _finished_id(path: Path) -> str | None:
    try:
        if path.is_file():
            metadata = pq.read_metadata(path).metadata or {}
            return metadata.get(b"genrec.run_id", b"").decode(errors="replace") or None
        manifest = manifest_of(path) if (path / SUCCESS).exists() else None
        return manifest["metadata"]["genrec.run_id"] if manifest else None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, KeyError):
        return None
    except OSError as error:
        if error.errno is None:  # of pyarrow: a damaged footer
            return None
        raise ConfigError(f"OUTPUT {path}: cannot be read ({error.strerror or error})") from error


def files_of(path: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files with the rows of a finished output, in their order, and its metadata."""
    if path.is_file():
        stored = pq.read_metadata(path).metadata or {}
        return [path], {key.decode(errors="replace"): value.decode(errors="replace") for key, value in stored.items()}
    manifest = read_json(path / MANIFEST)
    return [path / entry["file"] for entry in manifest["files"]], manifest["metadata"]


def begun(path: Path, arm: str | None = None) -> Mapping[str, str] | None:
    """Return the fingerprints that the finished output there, else its unfinished run, records; None without either.

    They are those of the model of `arm`, where one is named.
    """
    if present(path):
        metadata = files_of(path)[1] if finished_id(path) else {}
        found = {name.removeprefix("genrec."): value for name, value in metadata.items()}
    else:
        found = read_json(staging(path) / RUN_FILE)
    return models_of(found, arm)


def models_of(found: Any, arm: str | None) -> Mapping[str, str] | None:
    """Return the fingerprints of a model, or that of an arm, in what a run recorded of itself; see `begun`."""
    if arm is not None:
        found = _arm(found, arm)
    known = isinstance(found, dict) and all(isinstance(found.get(name), str) for name in ("model", "catalog"))
    return {name: found[name] for name in ("model", "catalog")} if known else None


def _arm(found: Any, name: str) -> Any:
    arms = found.get("arms") if isinstance(found, dict) else None
    arms = json.loads(arms) if isinstance(arms, str) else arms
    return arms.get(name) if isinstance(arms, dict) else None


def finished_facts(path: Path) -> dict[str, Any]:
    """Return files, rows, bytes and counts of a finished output."""
    files, metadata = files_of(path)
    counts = json.loads(metadata.get(COUNTS, "{}"))
    return {"files": len(files), "rows": int(metadata[ROWS]), "bytes": sum(f.stat().st_size for f in files), **counts}


def difference_from(path: Path, identity: Identity) -> str:
    """Return in words how a run differs from the one that wrote an output."""
    if path.is_dir() and (path / MANIFEST).exists() and manifest_of(path) is None:
        return f"its {MANIFEST} is damaged"
    if finished_id(path) is None:
        return "it has no _SUCCESS, so it may be incomplete"
    return difference(files_of(path)[1], identity)
