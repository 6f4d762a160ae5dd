"""The registry: a plain directory of immutable model versions, and the small file that says which of them is live.

Owns: references such as `registry:ranker@champion`, the layout of the directory, reading and checking it. Must not
know: how a version comes there (`registering`), what is in a model's files. In: the directory, a name, an alias or a
number. Out: a `Version`. Reading takes two small files and no lock, so a server may ask every second:

    ROOT/NAME/registry.json          aliases, the history of promotions, the last number; replaced by one rename
    ROOT/NAME/N/version.json         the record of version N: sha256 of every file, when and where it was registered
    ROOT/NAME/N/model/               its model directory
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genrec_batch.core.errors import ConfigError, ModelError, nearest
from genrec_batch.model.registry_files import Root, failures, is_folder, json_of, listed, stored_json
from genrec_batch.stores import copies
from genrec_batch.stores.bucket import is_uri
from genrec_batch.stores.paths import StorePath

PREFIX, CHAMPION, FORMAT = "registry:", "champion", 1
STATE, RECORD, FILES = "registry.json", "version.json", "model"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,31}")
NUMBER = re.compile(r"[1-9]\d{0,8}")
AT_ONCE = 1 << 22  # bytes that are read at once


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What a run records of its model, by which the version that it began with is found again."""

    model: str  # fingerprint of the weights
    catalog: str | None = None  # fingerprint of the catalog; None: not recorded


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What `NAME@3` or `NAME@champion` asks for; `NAME` alone is its champion."""

    name: str
    which: str  # an alias, or a number as text

    @property
    def number(self) -> int | None:
        """The version that is asked for by its number, None where an alias is asked for."""
        return int(self.which) if NUMBER.fullmatch(self.which) else None


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a model; its files never change."""

    name: str
    number: int
    alias: str | None  # by which it was asked for
    path: Root  # the model directory
    record: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)  # what version.json says

    @property
    def label(self) -> str:
        """What the version is called, such as `ranker@3`."""
        return f"{self.name}@{self.number}"

    def facts(self) -> dict[str, Any]:
        """Return what a run records of the version that it took."""
        return {"name": self.name, "version": self.number, "alias": self.alias}

    def is_of(self, begun: Begun) -> bool:
        """Return whether a run that records this would have taken this version."""
        same_catalog = begun.catalog is None or begun.catalog == self.record["catalog"]
        return bool(same_catalog and begun.model == self.record["fingerprint"])


@dataclass(frozen=True, kw_only=True)
class State:
    """What changes of a name: which version each alias means, how that came, and the last number that was given."""

    aliases: Mapping[str, int] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()  # oldest first
    last: int = 0
    stored: Mapping[str, str] | None = None  # the version of its object in a store, None before the first


def is_reference(text: str) -> bool:
    """Return whether the text of `--model` or the like asks for a version of a registry, not for a directory."""
    return text.startswith(PREFIX)


def parse(text: str, flag: str) -> Reference:
    """Return what `NAME`, `NAME@ALIAS` or `NAME@3` asks for, also with `registry:` in front.

    Raises:
        ConfigError: not of that form.
    """
    name, at, which = text.removeprefix(PREFIX).partition("@")
    which = which if at else CHAMPION
    if not NAME.fullmatch(name) or not (ALIAS.fullmatch(which) or NUMBER.fullmatch(which)):
        raise ConfigError(
            f"{flag} {text!r}: not NAME, NAME@3 or NAME@champion; a name has letters, digits and . _ -, an alias small "
            "letters, digits and _ -"
        )
    return Reference(name=name, which=which)


def root_of(registry: str | None, wanted: str) -> Root:
    """Return the directory of `--registry`, on the disk or in a store; `wanted` is what asks for it.

    Raises:
        ConfigError: the option is not given, or is no directory.
    """
    if not registry:
        raise ConfigError(f"{wanted}: --registry (or GENREC_BATCH_REGISTRY) must name the directory of the registry")
    if registry.startswith(("http:", "https:")) or Path(registry).is_file():
        raise ConfigError(
            f"--registry {registry}: neither a local directory nor a folder in a store (s3://, gs://, az://)"
        )
    if not is_uri(registry):
        return Path(registry)
    with failures(f"--registry {registry}"):
        return StorePath.of(registry, "--registry")


def on_disk(found: Version) -> Version:
    """Return a version whose files are on the disk: of one in a store, as a copy in the cache."""
    if isinstance(found.path, Path):
        return found
    with failures(str(found.path)):
        return replace(found, path=copies.folder(str(found.path), "--registry"))


def resolve(root: Root, name: str, which: str = CHAMPION) -> Version:
    """Return the version that an alias means now, or that has a number; its files are not read (see `check`).

    Raises:
        ModelError: there is no such name, version or alias, or a file of the registry is damaged.
    """
    if NUMBER.fullmatch(which):
        return version(root, name, int(which))
    number = state(root, name).aliases.get(which)
    if number is None:
        raise ModelError(
            f"--registry {root}: {name} has no {which} yet; `genrec-batch model promote {name}@N"
            f"{'' if which == CHAMPION else f' --alias {which}'}` makes a version it.{_known(root, name)}"
        )
    return replace(version(root, name, number), alias=which)


def taken(root: Root, reference: Reference, begun: Begun | None = None) -> Version:
    """Return the version for a run: of an alias the one that an earlier try of the same run began with.

    Args:
        root: directory of the registry.
        reference: what `--model` asks for.
        begun: what an earlier try recorded, None where there is none.

    Raises:
        ModelError: see `resolve`.
    """
    found = resolve(root, reference.name, reference.which)
    if begun is None or reference.number is not None or found.is_of(begun):
        return found
    same = [each for each in versions(root, reference.name) if each.is_of(begun)]
    return replace(same[-1], alias=reference.which) if same else found


def pinned(text: str | None, registry: str | None, flag: str = "--model") -> str | None:
    """Return a reference to an alias as one to the version that it means now; any other text as it is."""
    if text is None or not is_reference(text):
        return text
    reference = parse(text, flag)
    return PREFIX + resolve(root_of(registry, f"{flag} {text}"), reference.name, reference.which).label


def names(root: Root) -> list[str]:
    """Return the names in the registry."""
    return sorted(each.name for each in listed(root) if NAME.fullmatch(each.name) and each.is_dir())


def numbers(root: Root, name: str) -> list[int]:
    """Return the numbers that a name has folders for, rising; what is in them may be damaged."""
    folder = root / name
    if isinstance(folder, StorePath):  # what has no record yet is being written, or was not written to its end
        with failures(str(folder)):
            below = [each.split("/") for each in folder.below()]
        return sorted(int(each[0]) for each in below if NUMBER.fullmatch(each[0]) and each[1:] == [RECORD])
    return sorted(int(each.name) for each in listed(folder) if NUMBER.fullmatch(each.name) and each.is_dir())


def versions(root: Root, name: str) -> Iterator[Version]:
    """Yield the versions of a name, by rising number; those whose record is damaged are left out."""
    for number in numbers(root, name):
        try:
            yield version(root, name, number)
        except ModelError:
            continue


def version(root: Root, name: str, number: int) -> Version:
    """Return a version by its number.

    Raises:
        ModelError: there is none, or its record is damaged.
    """
    folder = root / name / str(number)
    if not is_folder(folder):
        raise ModelError(f"--registry {root}: there is no {name}@{number}.{_known(root, name)}")
    record = json_of(folder / RECORD)
    files = record.get("files") if isinstance(record, dict) else None
    whole = isinstance(files, dict) and record.get("sha256") == seal(record)
    if not whole or (record.get("name"), record.get("version")) != (name, number):
        raise ModelError(
            f"{folder / RECORD}: missing or changed since {name}@{number} was registered; promote another version, or "
            "copy the whole folder again"
        )
    return Version(name=name, number=number, alias=None, path=folder / FILES, record=record)


def state(root: Root, name: str) -> State:
    """Return what changes of a name; that of a name without any promotion is empty.

    Raises:
        ModelError: it is damaged or cannot be read.
    """
    path, stored = root / name / STATE, None
    if isinstance(path, StorePath):
        found, stored = stored_json(path)
        if stored is None:
            return State()
    elif not path.exists():
        return State()
    else:
        found = json_of(path)
    try:
        aliases = {str(alias): int(number) for alias, number in found["aliases"].items()}
        history, last = tuple(dict(each) for each in found["history"]), int(found["last"])
        return State(aliases=aliases, history=history, last=last, stored=stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path}: damaged; where no copy is left, remove it and promote the version that is to be live"
        ) from error


def check(found: Version) -> None:
    """Compare every file of a version with the sha256 that was recorded when it was registered.

    Raises:
        ModelError: a file was changed, added or removed.
    """
    recorded, path = found.record["files"], on_disk(found).path
    assert isinstance(path, Path), "it is on the disk"
    there = digests(path)
    faults = [f"{name} is missing" for name in recorded.keys() - there.keys()]
    faults += [f"{name} was added" for name in there.keys() - recorded.keys()]
    faults += [f"{name} was changed" for name in recorded.keys() & there.keys() if recorded[name] != there[name]]
    if faults:
        back = ""  # of a version that is not live, a rollback would make another than the champion live
        if found.alias is not None:
            of_alias = "" if found.alias == CHAMPION else f" --alias {found.alias}"
            back = f" (`genrec-batch model rollback {found.name}{of_alias}`)"
        raise ModelError(
            f"{found.path}: not what was registered as {found.label}: {', '.join(sorted(faults))}. A version never "
            f"changes: take another{back}, or register the right files anew"
        )


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a model directory by its path in it; names that begin with a dot do not count.

    Raises:
        ModelError: there is something else than files and folders, or a file cannot be read.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        linked = path.is_symlink() and path.is_dir()
        if any(part.startswith(".") for part in name.split("/")) or (path.is_dir() and not linked):
            continue
        if linked or not path.is_file():
            raise ModelError(
                f"{path}: not a file, so it cannot belong to a version; remove it, or copy it in its place"
            )
        found[name] = _sha256(path)
    return found


def seal(record: Mapping[str, Any]) -> str:
    """Return the sha256 of a record: of its JSON with sorted names, without that entry."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as opened:
            while chunk := opened.read(AT_ONCE):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _known(root: Root, name: str) -> str:
    """Return what there is, for an error about what there is not."""
    if not is_folder(root):
        return " There is no such directory"
    if not is_folder(root / name):
        return nearest(name, names(root)) or f" There is {', '.join(names(root)) or 'no model in it'}"
    there = ", ".join(f"{name}@{number}" for number in numbers(root, name)[-5:])
    return f" There is {there}" if there else f" There is no version of {name}"
