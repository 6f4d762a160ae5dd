"""Folders named COLUMN=value, as Hive does: the names of values, and the values of names.

Owns: escapes, the name of null, the types whose values a name can hold. Must not know: files, what a column means. Null
and the empty text are one folder, as in Hive, and are read as null.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import polars as pl

from genrec_batch.core.errors import ConfigError

NULL = "__HIVE_DEFAULT_PARTITION__"
ESCAPED = re.compile(r"[\x01-\x1f\x7f\"#%'*/:=?\\{\[\]^]")  # the characters that Hive escapes in a folder's name
LONGEST_NAME = 255  # bytes of a folder's name on usual file systems
MOST_VALUES = 1000
KINDS: Mapping[str, pl.DataType] = {
    **{str(kind()): kind() for kind in (pl.Int8, pl.Int16, pl.Int32, pl.Int64)},
    **{str(kind()): kind() for kind in (pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)},
    **{str(kind()): kind() for kind in (pl.String, pl.Boolean, pl.Date)},
}


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The column by whose values the files of an output are in folders."""

    column: str
    kind: pl.DataType

    @staticmethod
    def read(about: Any) -> Partition:
        """Return what `stored` made.

        Raises:
            KeyError, TypeError: something else.
        """
        return Partition(column=about["column"], kind=KINDS[about["type"]])

    def stored(self) -> dict[str, str]:
        """Return column and type, JSON-able."""
        return {"column": self.column, "type": str(self.kind)}

    def folder(self, value: Any) -> str:
        """Return the name of a value's folder.

        Raises:
            ConfigError: no folder can have that name.
        """
        text = NULL if value in (None, "") else str(value).lower() if isinstance(value, bool) else str(value)
        name = f"{_escaped(self.column)}={_escaped(text)}"
        if "\0" in name or len(name.encode()) > LONGEST_NAME:
            raise ConfigError(
                f"--partition-by {self.column}: {text[:40]!r}... cannot be the name of a folder; name another column"
            )
        return name

    def literal(self, folder: str) -> pl.Expr:
        """Return the column's value in the rows of a folder."""
        return pl.lit(self.value(folder), self.kind).alias(self.column)

    def value(self, folder: str) -> Any:
        """Return the value that the name of a folder holds.

        Raises:
            ValueError: none of the column's type.
        """
        text = unquote(folder.partition("=")[2])
        if text == NULL:
            return None
        if self.kind == pl.Boolean:
            return text == "true"
        if self.kind == pl.Date:
            return dt.date.fromisoformat(text)
        return int(text) if self.kind.is_integer() else text


def check_kind(column: str, kind: pl.DataType) -> None:
    """Raise ConfigError where a column's values cannot name folders."""
    if str(kind) not in KINDS:
        raise ConfigError(
            f"--partition-by {column}: its type is {kind}; folders are named by texts, whole numbers, Booleans or dates"
        )


def check_count(column: str, values: int) -> None:
    """Raise ConfigError where a column has more values than there should be folders."""
    if values > MOST_VALUES:
        raise ConfigError(
            f"--partition-by {column}: more than {MOST_VALUES:,} values, each of which would be a folder; name a "
            "column with fewer"
        )


def _escaped(text: str) -> str:
    return ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", text)
