"""An output in a store: parts are made on the local disk, go up as they finish, and are put in place by one manifest.

Owns: the order in which the objects of an output appear and disappear, and how a killed run is continued. Must not
know: how a part is made (`output`), the names of objects (`stored`). The order of a commit, each step of which may be
the last one before a kill:

    parts             .NAME.unfinished/RUN/part-00000.parquet, fingerprints, and last a receipt, which says so
    _SUCCESS          of an older output is removed: who waits for it reads nothing until the end
    NAME/part-...     copies of the parts, whose names have the run's id, so that they replace none of an older output
    _manifest.json    if nobody has written one since the run began: from here on the new output is the one there is
    older parts       are removed, then `_SUCCESS` is written, then the unfinished run is removed

The output of one file appears by one request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from genrec_batch.core.declare import differences
from genrec_batch.core.errors import ConfigError
from genrec_batch.io import manifest, parquet, published
from genrec_batch.io.durable import disk_errors
from genrec_batch.io.identity import Identity, difference, run_id
from genrec_batch.io.output import Output
from genrec_batch.io.part_writer import PartWriter, WrittenPart
from genrec_batch.io.partitioned import Folders
from genrec_batch.io.published import FINGERPRINTS, MANIFEST, RECEIPTS, RUN_FILE, SUCCESS
from genrec_batch.io.spill import SpillFolder
from genrec_batch.io.stored import Found, Stored, check, failures, of_run
from genrec_batch.io.stored_writer import StoredPartWriter, fingerprints_of, receipt_name, receipt_of
from genrec_batch.runtime import signals
from genrec_batch.stores.bucket import ConditionError
from genrec_batch.stores.lease import HeldError, Lease

RECEIPT = re.compile(r"part-\d{5,9}\.json")


@dataclass(kw_only=True)
class StoredOutput(Output):
    """An output in a store that is being written; `path` and `staging` are on the local disk, until `close`."""

    place: Stored
    work: SpillFolder
    lease: Lease | None = None
    before: Found | None = None  # the output that there was when this run began
    receipts: dict[int, dict[str, Any]] = field(default_factory=dict)  # of the parts that are up

    @property
    def run(self) -> str:
        """The id of the run."""
        return self.metadata["genrec.run_id"]

    @property
    def where(self) -> str:
        """What errors call the output."""
        return f"OUTPUT {self.place.target}"

    @property
    def shown(self) -> tuple[str, str]:
        """The output and its unfinished run, for messages."""
        return self.place.target, self.place.store.uri(self.place.staging(self.run))

    def writer(self, *, apart: bool = False) -> PartWriter:
        """Return what writes parts of this output, here or in another process: objects are those of the run's id."""
        del apart
        return StoredPartWriter(**vars(super().writer()), target=self.place.target, run=self.run)

    def accept(self, part: WrittenPart, table: pa.Table | None = None) -> None:
        """Count a part in that is up; see `Output.accept`. What another machine has made of it is fetched."""
        wanted = [fingerprints_of(part.number), *([self.part(part.number).name] if self.single else [])]
        base, store = self.place.staging(self.run), self.place.store
        with failures(self.where):
            lacking = [name for name in wanted if not (self.staging / name).exists()]
            there = [name for name in lacking if store.entry(f"{base}/{name}") is not None]
            store.fetch((f"{base}/{name}", self.staging / name) for name in there)
        super().accept(part, table)
        self.receipts[part.number] = receipt_of(part)

    def staged(self, file: str) -> str:
        """Return the URI of a file of a part that is up; see `Output.staged`."""
        return self.place.store.uri(f"{self.place.staging(self.run)}/{file}")

    def has_items(self) -> bool:
        """Return whether a part that is up has a recommendation; see `Output.has_items`."""
        return any(receipt["items"] for receipt in self.receipts.values())

    def part_facts(self) -> list[parquet.PartFacts]:
        """Return the facts of all parts, in order, by their receipts."""
        return [
            parquet.PartFacts(
                file=Path(entry["file"]),
                rows=entry["rows"],
                bytes=entry["bytes"],
                sha256=entry["sha256"],
                counts=receipt["counts"],
            )
            for _, receipt in sorted(self.receipts.items())
            for entry in receipt["files"]
        ]

    def finished(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the facts and the metadata of the output that an identical run finished."""
        found = self.before
        assert found is not None, "it was found"
        entry = self.place.store.entry(self.place.key) if self.single else None
        return found.facts(entry.bytes if entry else None), dict(found.metadata)

    def fingerprints(self) -> Path:
        """Return a local file with the fingerprints of the users of the output."""
        return self.staging / FINGERPRINTS

    def check_free(self) -> None:
        """Check that the lease is held still, and that nobody else has written the output.

        Raises:
            RetryError: another run does or has.
        """
        assert self.lease is not None, "an output that is not finished was begun"
        with failures(self.where):
            self.lease.renew()

    def put_file(self, whole: Path) -> dict[str, int]:
        """Put the one file in its place; see `Output.put_file`."""
        store, key, prints = self.place.store, self.place.key, self.staging / FINGERPRINTS
        with failures(self.where):
            now = store.entry(key)
            if (now.version if now else None) != (self.before.version if self.before else None):
                raise self._other()
            if prints.exists():
                store.put(self.place.fingerprints(self.run), prints)
            else:
                store.remove([self.place.fingerprints(self.run)])  # never leave those of an older output
            with signals.placing():
                store.put(key, whole)
                self._remove_unfinished()
        return {"files": 1, "bytes": whole.stat().st_size}

    def put_folder(self, files: list[dict[str, Any]], metadata: dict[str, str]) -> dict[str, int]:
        """Put the parts in place and commit them by a manifest; see `Output.put_folder` and the order above."""
        store, key, prints = self.place.store, self.place.key, self.staging / FINGERPRINTS
        base = self.place.staging(self.run)
        entries = [{**entry, "file": of_run(entry["file"], self.run)} for entry in files]
        found = Found(metadata=metadata, files=tuple(entries), version={})
        text = manifest.text(manifest.sealed({"metadata": metadata, "files": entries}))
        with failures(self.where):
            store.remove([f"{key}/{SUCCESS}"])
            pairs = [(entry["file"], named["file"]) for entry, named in zip(files, entries, strict=True)]
            store.copy([(f"{base}/{name}", f"{key}/{final}") for name, final in pairs])
            if prints.exists():
                store.put(self.place.fingerprints(self.run), prints)
            with signals.placing():
                self._commit(text.encode(), found)
                self.tidy(found)
        return {"files": len(files), "bytes": sum(entry["bytes"] for entry in files)}

    def _commit(self, content: bytes, found: Found) -> None:
        """Write the manifest, or take back the copies of the parts where another run was faster."""
        assert self.lease is not None, "it was begun"
        try:
            self.lease.renew()
            before = self.before.version if self.before else None
            self.place.store.put_if(f"{self.place.key}/{MANIFEST}", content, before)
        except (HeldError, ConditionError):
            self._take_back(found)
            raise

    def _take_back(self, found: Found) -> None:
        """Remove what this run has put into the output of another one, which must be as it was."""
        store, there = self.place.store, self.place.finished()
        if there is None or there.run_id in (None, self.run):
            return
        store.remove(f"{self.place.key}/{entry['file']}" for entry in found.files)
        store.remove([self.place.fingerprints(self.run)])
        if store.entry(self.place.lease) is None:  # else whoever holds it says when all is whole
            store.put(f"{self.place.key}/{SUCCESS}", b"")

    def tidy(self, found: Found) -> None:
        """Remove what others left in a finished output, say that it is whole, and remove the unfinished run."""
        if not self.single:
            self.place.store.remove(self.place.left(found))
            self.place.store.put(f"{self.place.key}/{SUCCESS}", b"")
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        listed = [each.key for each in self.place.store.below(self.place.unfinished)]
        self.place.store.remove(key for key in listed if key != self.place.lease)

    def _other(self) -> ConfigError:
        return ConfigError(f"{self.where} appeared during the run; the run's parts stay in {self.shown[1]}")

    def release(self) -> None:
        """Let other runs write the output."""
        super().release()
        if self.lease is not None:
            self.lease.release()
            self.lease = None

    def close(self) -> None:
        """Release the lease and remove what is on the local disk; what is in the store stays for a later run."""
        super().close()
        self.work.close()


def open_output(
    target: str,
    identity: Identity,
    if_exists: str | None,
    partition_by: str | None,
    work_in: Path,
    *,
    keeps_column: bool = False,
) -> StoredOutput:
    """Begin an output in a store, or continue one that an identical run began; see `output.open_output`.

    `work_in` is the folder on the local disk in which parts are made.

    Raises:
        ConfigError: the output exists, there is an unfinished run with other settings, or the store refuses.
        RetryError: another run is writing it now, the store cannot be reached, or the disk is full.
    """
    check(target, if_exists)
    place = Stored.of(target)
    with disk_errors(work_in, "the temporary folder"):
        work = SpillFolder.make(work_in)
        local = work.path / place.name
        published.staging(local).mkdir()
    out = StoredOutput(
        path=local,
        staging=published.staging(local),
        single=place.single,
        metadata={"genrec.run_id": run_id(identity)},
        replaces=if_exists == "overwrite",
        place=place,
        work=work,
    )
    with ExitStack() as stack, failures(out.where):
        stack.callback(out.close)
        out.lease = Lease(place.store, place.lease)
        out.before = place.finished()
        begun = place.begun()
        if out.before is not None and (not out.replaces or _is_committed(out, out.before, begun)):
            _accept(out, out.before, identity)
        else:
            _claim(out, identity, if_exists, begun)
            _resume(out, partition_by, keeps=keeps_column)
        stack.pop_all()
    return out


def _accept(out: StoredOutput, found: Found, identity: Identity) -> None:
    """Accept the output of an identical run, and do what it did not do where it was killed after its commit."""
    if found.run_id != out.run:
        raise ConfigError(
            f"{out.where} cannot be resumed: {difference(found.metadata, identity)}; --if-exists overwrite replaces it "
            "once the new one is whole, or name another"
        )
    for name in out.place.lacking(found):
        raise ConfigError(
            f"{out.where}: {name} is missing or does not match the manifest; --if-exists overwrite writes the output "
            "again"
        )
    out.tidy(found)
    out.complete = True


def _is_committed(out: StoredOutput, found: Found, begun: Mapping[str, Any]) -> bool:
    """Return whether an identical run was killed after its commit, so that only the rest is to be done."""
    return found.run_id == out.run and out.run in begun and not any(out.place.lacking(found))


def _claim(out: StoredOutput, begins: Identity, if_exists: str | None, begun: Mapping[str, Any]) -> None:
    """Write what this run is, and remove other unfinished runs where they may be replaced."""
    place = out.place
    for other, began in begun.items():
        if other == out.run:
            continue
        if began is not None and if_exists != "overwrite":
            raise ConfigError(
                f"{out.where}: an unfinished run is in {place.store.uri(place.staging(other))}, and this one differs "
                f"from it in {', '.join(differences(began, begins))}; run with its settings to resume it, or pass "
                "--if-exists overwrite"
            )
        place.store.remove(each.key for each in place.store.below(place.staging(other)))
    if begun.get(out.run) is not None and if_exists == "error":
        raise ConfigError(f"{out.where}: an unfinished run is in {out.shown[1]}; --if-exists resume continues it")
    if begun.get(out.run) is None:
        place.store.put(f"{place.staging(out.run)}/{RUN_FILE}", json.dumps(begins, sort_keys=True).encode())


def _resume(out: StoredOutput, partition_by: str | None, *, keeps: bool) -> None:
    """Find the parts that are up, and fetch what the end of the run needs of them."""
    store, base = out.place.store, out.place.staging(out.run)
    there = {each.key.removeprefix(f"{base}/"): each.bytes for each in store.below(base)}
    numbers = [int(name[len("part-") : -len(".json")]) for name in there if RECEIPT.fullmatch(name)]
    folder = out.staging / RECEIPTS
    folder.mkdir()
    with disk_errors(out.path), failures(out.where):
        store.fetch((f"{base}/{receipt_name(number)}", folder / receipt_name(number)) for number in numbers)
        wanted = []
        for number in sorted(numbers):
            receipt = json.loads((folder / receipt_name(number)).read_bytes())
            prints = [fingerprints_of(number)] if receipt["fingerprints"] else []
            if (
                any(there.get(entry["file"]) != entry["bytes"] for entry in receipt["files"])
                or set(prints) - there.keys()
            ):
                continue  # to be computed again
            wanted += [entry["file"] for entry in receipt["files"] if out.single] + prints
            out.receipts[number] = receipt
        store.fetch((f"{base}/{name}", out.staging / name) for name in wanted)
    out.parts_done |= out.receipts.keys()
    if partition_by is not None:
        receipts = dict(out.receipts)
        out._folders = Folders(staging=out.staging, column=partition_by, keeps=keeps, receipts=receipts)  # noqa: SLF001
