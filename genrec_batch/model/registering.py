"""Changes of the registry: a version is added, an alias moves to another version or back.

Owns: the order in which files appear, the lock between those who change a name, the history of promotions. Must not
know: whether a version is good enough (see `evaluation`). In: a model directory, or a version. Out: files that are
whole or not there: a version appears by one rename of its folder, an alias moves by one rename of `registry.json`.
Whatever is killed, the next change removes what it left.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from genrec_batch import __version__
from genrec_batch.core import layout
from genrec_batch.core.errors import ConfigError, ModelError, RetryError, refused
from genrec_batch.model import registry, weights
from genrec_batch.model.catalog import Catalog
from genrec_batch.model.registry import CHAMPION, FILES, FORMAT, RECORD, STATE, State, Version
from genrec_batch.model.registry_files import Root, failures, is_folder
from genrec_batch.model.weights import Model
from genrec_batch.stores.paths import StorePath

LOCK, INCOMING = ".lock", ".incoming"
WAIT_S, EACH_S = 60.0, 0.05
METRICS = ("ndcg@10", "hr@10", "recall@10")


def register(root: Root, name: str, directory: Path, source: str | None = None) -> tuple[Version, bool]:
    """Copy a model directory into the registry as the next version; return it, and whether it is new.

    The same files are registered once: again, they are the version that they are already. `source` is the URI that the
    directory is a copy of.

    Raises:
        ConfigError: not a name, or the registry cannot be written.
        ModelError: not a whole model directory, or one without a catalog.
        RetryError: the disk is full, the files changed meanwhile, or somebody else holds the lock for a minute.
    """
    if registry.parse(name, "NAME").name != name:
        raise ConfigError(f"NAME {name!r}: a version gets its number here; give the name alone")
    model = weights.load(directory, "DIR")
    with model.files.held():
        files = registry.digests(directory)
        record = _described(model, directory, files) | ({} if source is None else {"from": source})
    with _changing(root, name, make=True) as held:
        for each in registry.versions(root, name):
            if each.record["files"] == files and _is_whole(each):
                return each, False
        number = 1 + max([held.last, *registry.numbers(root, name)])
        record |= {"name": name, "version": number}
        if isinstance(root, StorePath):
            _put(root / name, replace(held, last=number))  # from here on the number is that of this registration
            _upload(directory, root / name / str(number), files, record)
            return registry.version(root, name, number), True
        folder, scratch = root / name, root / name / INCOMING
        try:
            _copy(directory, scratch / FILES, files)
            _write(scratch / RECORD, {**record, "sha256": registry.seal(record)})
            _make_read_only(scratch)
            scratch.rename(folder / str(number))
        finally:
            _remove(scratch)
        _sync(folder)
        _put(folder, replace(held, last=number))
    return registry.version(root, name, number), True


def promote(
    version: Version,
    root: Root,
    *,
    alias: str = CHAMPION,
    compared: Callable[[Mapping[str, int]], bool] = lambda _: True,
    gates: Sequence[Mapping[str, Any]] = (),
) -> int | None:
    """Let an alias mean a version from now on; return what it meant before, None where it meant nothing.

    Args:
        version: what becomes live; its files are checked.
        root: directory of the registry.
        alias: the alias that moves.
        compared: whether the aliases are still what the version was compared with.
        gates: what was measured before, for the history.

    Raises:
        ConfigError: the registry cannot be written.
        ModelError: the version was changed on disk.
        RetryError: another version was promoted meanwhile; the disk is full; somebody else holds the lock.
    """
    registry.check(version)
    with _changing(root, version.name) as held:
        before = held.aliases.get(alias)
        if not compared(held.aliases):
            raise RetryError(
                f"{version.label} was compared with a version that is no longer live: {version.name}@{before} was "
                "promoted meanwhile; nothing was changed: run the same command again"
            )
        registry.version(root, version.name, version.number)  # it may have been removed
        if before != version.number:
            _put(root / version.name, _moved(held, alias, version.number, "promote", gates))
    return before


def rollback(root: Root, name: str, *, alias: str = CHAMPION) -> tuple[Version, int]:
    """Let an alias mean what it meant before its last promotion; return that version, and what it meant until now.

    Raises:
        ConfigError: there is nothing to go back to, or the registry cannot be written.
        ModelError: the version to go back to is missing, or was changed on disk.
        RetryError: the disk is full; somebody else holds the lock.
    """
    with _changing(root, name) as held:
        stack = _stack(held.history, alias)
        if len(stack) < 2:  # what is live, and what was before
            raise ConfigError(
                f"{name} has no {alias} before {f'{name}@{stack[0]}' if stack else 'any'} to go back to; "
                f"`genrec-batch model promote {name}@N` makes a version live"
            )
        found = registry.version(root, name, stack[-2])
        registry.check(found)
        _put(root / name, _moved(held, alias, found.number, "rollback"))
    return replace(found, alias=alias), stack[-1]


def _stack(history: Sequence[Mapping[str, Any]], alias: str) -> list[int]:
    """Return the versions that a rollback would go through, the live one last."""
    stack: list[int] = []
    for entry in history:
        if entry.get("alias") != alias:
            continue
        if entry.get("how") == "rollback":
            stack = stack[:-1]
        else:
            stack.append(int(entry["version"]))
    return stack


def _moved(held: State, alias: str, number: int, how: str, gates: Sequence[Mapping[str, Any]] = ()) -> State:
    entry: dict[str, Any] = {"alias": alias, "version": number, "before": held.aliases.get(alias), "how": how, **_now()}
    entry |= {"gates": list(gates)} if gates else {}
    return replace(held, aliases={**held.aliases, alias: number}, history=(*held.history, entry))


def _described(model: Model, directory: Path, files: Mapping[str, str]) -> dict[str, Any]:
    catalog = directory / "catalog.parquet"
    if not catalog.is_file():
        raise ModelError(
            f"{directory}: no catalog.parquet, so each run would take its own and the version would recommend by "
            "chance; add the one that the weights were trained with (`model import --catalog`)"
        )
    found = Catalog.read(catalog, vocabulary=model.config.vocabulary)
    if model.training is not None:
        model.training.check_catalog(found.fingerprint(), catalog)
    return {
        "format": FORMAT,
        "files": dict(files),
        "bytes": sum((directory / name).stat().st_size for name in files),
        "fingerprint": model.fingerprint,
        "catalog": found.fingerprint(),
        "catalog_videos": len(found),
        "layout": layout.fingerprint(),
        "trained": model.trained,
        "metrics": _metrics(model),
        "from": str(directory.resolve()),
        "made_by": __version__,
        **_now(),
    }


def _metrics(model: Model) -> dict[str, Any]:
    """Return what the model card says of validation, in the mode of decoding that the model takes."""
    if model.training is None:
        return {}
    decode = (model.training.facts.get("validation") or {}).get("decode") or {}
    found = decode.get(model.training.decode) or {}
    return {name: found[name] for name in METRICS if name in found}


def _now() -> dict[str, str]:
    """Return when and where this happens, and by whom where the system knows."""
    made = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "host": socket.gethostname()}
    try:
        return {**made, "user": getpass.getuser()}
    except (KeyError, OSError):  # a container's user may have no name
        return made


def _is_whole(version: Version) -> bool:
    if isinstance(version.path, StorePath):  # nothing that anybody would want to fetch for that
        return sorted(version.path.below()) == sorted(version.record["files"])
    try:
        registry.check(version)
    except ModelError:
        return False
    return True


@contextmanager
def _changing(root: Root, name: str, *, make: bool = False) -> Iterator[State]:
    """Hold the lock of a name; what a killed registration left is removed. Yields what changes of the name.

    In a store there is no lock: the state is written if nobody else has written it since it was read.

    Raises:
        ConfigError: the registry cannot be written; RetryError: the disk is full, or the lock is held for a minute.
    """
    if isinstance(root, StorePath):
        with failures(f"--registry {root}"):
            if not make and not is_folder(root / name):
                registry.resolve(root, name)  # says what there is
            yield registry.state(root, name)
        return
    folder = root / name
    if make and not root.parent.is_dir():
        raise ConfigError(f"--registry {root}: the folder {root.parent} does not exist; make it first")
    if not make and not folder.is_dir():
        registry.resolve(root, name)  # says what there is
    try:
        if make:
            root.mkdir(exist_ok=True)
            folder.mkdir(exist_ok=True)
        handle = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            _wait(handle, folder)
            _remove(folder / INCOMING)
            yield registry.state(root, name)
        finally:
            os.close(handle)
    except OSError as error:
        raise refused(error, f"--registry {root}", ConfigError) from error


def _wait(handle: int, folder: Path) -> None:
    until = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise RetryError(
                    f"{folder / LOCK} is held by another registration or promotion; nothing was changed: run the same "
                    "command again"
                ) from None
            time.sleep(EACH_S)
        else:
            return


def _copy(source: Path, target: Path, files: Mapping[str, str]) -> None:
    """Copy files to the disk, and compare the copies with what was read before.

    Raises:
        RetryError: a file changed meanwhile.
    """
    target.mkdir(parents=True)
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / name, target / name)
        except FileNotFoundError:
            raise _changed(source / name) from None
        (target / name).chmod((source / name).stat().st_mode & 0o777)
    if registry.digests(target) != files:
        raise _changed(source)


def _upload(source: Path, target: StorePath, files: Mapping[str, str], record: Mapping[str, Any]) -> None:
    """Copy files to a store, and then the record that makes them a version."""
    for name in files:
        (target / FILES / name).put(source / name)
    if registry.digests(source) != files:
        raise _changed(source)
    sealed = {**record, "sha256": registry.seal(record)}
    (target / RECORD).put_if((json.dumps(sealed, indent=1) + "\n").encode(), None)


def _changed(path: Path) -> RetryError:
    return RetryError(f"DIR {path} changed while it was registered; nothing of it was kept: run the same command again")


def _make_read_only(folder: Path) -> None:
    """Sync everything in a folder to the disk and let nobody write it, itself included."""
    for path in sorted(folder.rglob("*"), reverse=True):
        _sync(path)
        path.chmod(path.stat().st_mode & 0o555)
    _sync(folder)
    folder.chmod(folder.stat().st_mode & 0o555)


def _remove(folder: Path) -> None:
    """Remove a folder whose files may be read-only, where it is there."""
    if not folder.exists():
        return
    for path in [folder, *(each for each in folder.rglob("*") if each.is_dir())]:
        path.chmod(0o700)
    shutil.rmtree(folder)


def _put(folder: Root, changed: State) -> None:
    """Replace what changes of a name by one rename, or by one conditional write."""
    stored = {
        "format": FORMAT,
        "last": changed.last,
        "aliases": dict(changed.aliases),
        "history": [dict(entry) for entry in changed.history],
    }
    if isinstance(folder, StorePath):
        (folder / STATE).put_if((json.dumps(stored, indent=1) + "\n").encode(), changed.stored)
        return
    scratch = folder / (STATE + ".tmp")
    _write(scratch, stored)
    scratch.replace(folder / STATE)
    _sync(folder)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
    _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
