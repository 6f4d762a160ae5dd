"""Duplicates: an event that an at-least-once pipeline has delivered twice.

Owns: which events of a user are the same, `--dedupe` and `--dedupe-by`. Must not know: files, histories. In: records of
whole users. Out: the same records without the repeated ones, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.lib.recfunctions import repack_fields

from genrec_batch.core.arrays import I64
from genrec_batch.core.errors import ConfigError, nearest
from genrec_batch.events.records import Records, RecordType, joined

FIELDS = {"user_id": "user", "video_id": "video", "timestamp": "time_us"}


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Finds repeated events of a user, and counts them."""

    fields: tuple[str, ...]  # of the records, in which repeated events are equal
    dropped: dict[int, int] = field(default_factory=dict, repr=False)  # by the first user of each bucket

    @staticmethod
    def of(record: RecordType, *, all_columns: bool, by: str | None) -> Duplicates | None:
        """Return what `--dedupe` (equal in all columns that are read) or `--dedupe-by` asks for; None for neither.

        Raises:
            ConfigError: `--dedupe-by` names a column that is not read.
        """
        if by is None:
            every = ("user", "video", "time_us", *record.columns)
            return Duplicates(fields=every) if all_columns else None
        names = [name.strip() for name in by.split(",")]
        known = [*FIELDS, *record.columns]
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"--dedupe-by: {name!r} is no column that is read from this log, which are {', '.join(known)}."
                    f"{nearest(name, known)}"
                )
        return Duplicates(fields=tuple(dict.fromkeys(["user", *(FIELDS.get(name, name) for name in names)])))

    def without(self, chunks: Sequence[Records], record: RecordType, start: int, users: int) -> tuple[Records, I64]:
        """Return all records of some users from row `start` on without repeated ones, and how many each user has."""
        records = joined(chunks, record.kind)
        key = np.ascontiguousarray(repack_fields(records[list(self.fields)]))
        _, first = np.unique(key.view(np.dtype((np.void, key.dtype.itemsize))), return_index=True)
        self.dropped[start] = len(records) - len(first)
        kept = records[np.sort(first)]
        return kept, np.bincount(kept["user"] - start, minlength=users)
