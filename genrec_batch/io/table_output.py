"""Tables as outputs: a run's files are a folder of the table, and one commit to the table's log names them.

Owns: where a run's folder is, and what `--if-exists` means for a table. Must not know: Delta and Iceberg (`delta_log`,
`iceberg_log`), how a run's files are written (`output`). The folder, `run-RUNID`, is an output as any other, with its
manifest, and nobody sees it before the commit; what an older version names stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from genrec_batch.core.errors import ConfigError
from genrec_batch.io import catalogs, published
from genrec_batch.io.delta_log import DeltaLog
from genrec_batch.io.hive import Partition
from genrec_batch.io.iceberg_log import IcebergLog
from genrec_batch.io.part_writer import WrittenPart
from genrec_batch.io.stored import failures
from genrec_batch.io.table_log import Commit, State, TableLog, plain
from genrec_batch.io.table_root import RUN


@dataclass(kw_only=True)
class TableOutput:
    """A table that a run writes to."""

    log: TableLog
    if_exists: str | None
    partition_by: str | None
    base: State | None  # when the run began
    _fits: bool = False  # whether the columns of a part were checked

    @staticmethod
    def of(log: TableLog, if_exists: str | None, partition_by: str | None) -> TableOutput:
        """Look at a table before any work is done.

        Raises:
            ConfigError: it cannot be made, or what is there must not be changed.
            InputError: it cannot be read.
        """
        log.check()
        table = TableOutput(log=log, if_exists=if_exists, partition_by=partition_by, base=log.state())
        if table.base is not None:
            table.check_there(table.base)
        return table

    def check_there(self, base: State) -> None:
        """Raise ConfigError where `--if-exists` does not allow to change the table that is there."""
        where = self.log.where
        columns = (self.partition_by,) if self.partition_by else ()
        if base.partition != columns:
            have = f"is partitioned by {', '.join(base.partition)}" if base.partition else "is not partitioned"
            raise ConfigError(
                f"{where}: the table {have}, which no run changes; give --partition-by alike, or name another table"
            )
        if not base.files:
            return
        if self.if_exists in (None, "error"):
            raise ConfigError(
                f"{where}: the table has rows; --if-exists resume accepts it where the same run wrote them, overwrite "
                "replaces them in one commit, append adds to them, or name another"
            )
        if self.if_exists == "overwrite" and not (base.runs or base.active()):
            raise ConfigError(
                f"{where}: genrec-batch has written nothing to this table, so its rows are not replaced; name another"
            )

    def place(self, run_id: str) -> str:
        """Return the folder of a run: a path, or a URI."""
        return self.log.root.run(run_id)

    def begun(self) -> str:
        """Return the folder of the run that would be continued or accepted; one that is not there if none would."""
        unfinished = self.log.root.unfinished() if self.if_exists != "overwrite" else []
        active = self.base.active() if self.base is not None and self.if_exists == "resume" else []
        return self.place(unfinished[-1] if unfinished else active[0] if active else "none")

    def has(self, run_id: str) -> bool:
        """Return whether nothing is left to do for a run.

        Raises:
            ConfigError: `--if-exists resume`, and the rows are of other runs; or its rows are among those of others,
                which they cannot replace.
        """
        if self.base is None or self.if_exists in (None, "error"):
            return False  # what is there has no rows
        active = self.base.active()
        if self.if_exists == "overwrite":
            if run_id in active and not all(name.startswith(f"{RUN}{run_id}/") for name in self.base.files):
                raise ConfigError(
                    f"{self.log.where}: the table has the rows of this run ({run_id}) already, beside those of others; "
                    "remove the others from it, or name another table"
                )
            return run_id in active
        if run_id in active or run_id in self.base.runs:
            return True
        if self.if_exists == "resume" and self.base.files:
            raise ConfigError(
                f"{self.log.where}: cannot be resumed: its rows are of other runs ({', '.join(active[:3]) or 'unknown'}"
                f"), not of this one ({run_id}); --if-exists overwrite replaces them in one commit, or name another"
            )
        return False

    def check_part(self, part: WrittenPart, staged: Callable[[str], str]) -> None:
        """Raise ConfigError where the table cannot take the columns of a part; those of the others are the same.

        `staged` returns the path or URI of a file of the unfinished run.
        """
        if self._fits:
            return
        if part.facts is not None:
            schema = self._schema(staged(part.facts.file.name), None)
        else:
            assert part.receipt is not None, "a part is a file or has a receipt"
            stored = part.receipt.get("partition")
            partition = None if stored is None else Partition.read(stored)
            schema = self._schema(staged(part.receipt["files"][0]["file"]), partition)
        faults = self.log.faults(schema, self.base, replaces=self.replaces)
        if faults:
            raise ConfigError(f"{self.log.where}: {'; '.join(faults)}")
        self._fits = True

    @property
    def replaces(self) -> bool:
        """Whether the commit replaces all rows, instead of adding some."""
        return self.if_exists == "overwrite" and self.base is not None and bool(self.base.files)

    def commit(self, run_id: str) -> dict[str, Any]:
        """Commit the finished files of a run; return what the summary says of the table.

        Raises:
            RetryError: another writer was first; nothing of this run is in the table.
            ConfigError: the table takes no such commit.
        """
        manifest, folder = self.log.root.manifest(run_id), self.place(run_id)
        assert manifest is not None, "the run's files are finished"
        stored = manifest["metadata"].get(published.PARTITION)
        partition = Partition.read(json.loads(stored)) if stored else None
        schema = self._schema(f"{folder}/{manifest['files'][0]['file']}", partition)
        version = self.log.commit(
            Commit(
                run_id=run_id,
                folder=folder,
                entries=manifest["files"],
                metadata=manifest["metadata"],
                schema=schema,
                partition=partition,
                replaces=self.replaces,
            ),
            self.base,
        )
        if self.if_exists == "overwrite":
            self.log.root.tidy()
        return {"table": {"format": self.log.kind, "version": version}}

    def _schema(self, file: str, partition: Partition | None) -> pa.Schema:
        """Return the columns of the table that a file is of, that of the folders last where the file lacks it."""
        with failures(self.log.where):
            schema = plain(self.log.root.schema(file))
        if partition is None or partition.column in schema.names:
            return schema
        kind = pl.Series([], dtype=partition.kind).to_arrow(compat_level=pl.CompatLevel.oldest()).type
        return schema.append(pa.field(partition.column, kind))


def opened(kind: str, target: str, if_exists: str | None, partition_by: str | None) -> TableOutput | None:
    """Return the table that a run writes to, None where its output is Parquet files.

    Raises:
        ConfigError: see `TableOutput.of`; or the target is not one of this format.
    """
    where = f"OUTPUT {target}"
    if catalogs.is_name(target) != (kind == "iceberg"):
        form = "needs" if kind == "iceberg" else "does not go with"
        raise ConfigError(f"{where}: --output-format {kind} {form} the name of a table in a catalog, {catalogs.FORM}")
    if kind == "parquet":
        if if_exists == "append":
            raise ConfigError("--if-exists append: rows are added to tables only, --output-format delta or iceberg")
        return None
    log: TableLog
    if kind == "delta":
        log = DeltaLog(where=where, path=target)
    else:
        log = IcebergLog(where=where, name=catalogs.TableName.read(target, where))
    return TableOutput.of(log, if_exists, partition_by)
