"""What an export writes: the rows of a finished output as lines of text, or a key and a value for each user.

Owns: JSON, CSV, keys and values. Must not know: where these go. In: rows of a finished output. Out: texts, in columns:
nothing is done user by user.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from genrec_batch.core.errors import ConfigError, InputError, nearest
from genrec_batch.io.recommended import Recommended

USER = "{user_id}"
VALUES = ("json", "ids")
FIELDS = ("video_id", "score")  # of a value in JSON, unless others are chosen
KEY = re.compile(r"[^{}\s]*\{user_id\}[^{}\s]*")


@dataclass(frozen=True, kw_only=True)
class Entries:
    """A key and a value for each user, as a store takes them."""

    key: str = "recs:" + USER
    value: str = "json"
    columns: tuple[str, ...] = FIELDS

    def __post_init__(self) -> None:
        if not KEY.fullmatch(self.key):
            raise ConfigError(f"--key {self.key!r}: a text with {USER} once, without spaces, such as recs:{USER}")
        if self.value not in VALUES:
            hint = nearest(self.value, list(VALUES))
            raise ConfigError(f"--value {self.value!r} is not one of {', '.join(VALUES)}.{hint}")

    @property
    def pointer(self) -> str:
        """The key that names the live version, unless another is chosen."""
        return self.key.partition(USER)[0] + "live"

    def stored(self) -> str:
        """Return what decides the bytes of keys and values, as JSON."""
        return json.dumps([self.key, self.value, self.columns])

    def of(self, rows: pl.DataFrame, where: str) -> pl.DataFrame:
        """Return columns `key` and `value`, a row for each user, of rows by user and rank.

        Raises:
            InputError: an id holds the comma that separates ids.
        """
        before, _, after = self.key.partition(USER)
        key = pl.concat_str(pl.lit(before), pl.col("user_id").cast(pl.String), pl.lit(after)).alias("key")
        by_user = rows.group_by("user_id", maintain_order=True)
        if self.value == "ids":
            ids = rows["video_id"].cast(pl.String)
            odd = ids.filter(ids.str.contains(",", literal=True))
            if len(odd):
                raise InputError(
                    f"{where}: video_id {odd[0]!r} holds a comma, which separates the ids; export it with --value json"
                )
            listed = pl.col("video_id").cast(pl.String).str.join(",")
            return by_user.agg(value=listed).select(key, "value")
        lists = by_user.agg(value=pl.struct(self.columns))
        return lists.select(key, _as_json("value"))


def chosen(form: Recommended, columns: str | None, where: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the columns of `--columns`, by default all that there are or those of `default`.

    Raises:
        ConfigError: the output has no such column.
    """
    names = form.names
    wanted = [name.strip() for name in columns.split(",")] if columns else [*(names if default is None else default)]
    if columns is None:
        return tuple(name for name in wanted if name in names)
    for name in wanted:
        if name not in names:
            raise ConfigError(
                f"--columns: {where} has no column {name!r}.{nearest(name, names)} It has: {', '.join(names)}"
            )
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"--columns {columns!r}: a name is there twice; name it once")
    return tuple(wanted)


def check_types(schema: Mapping[str, pl.DataType], where: str) -> None:
    """Raise ConfigError for a column with bytes inside of lists or structs, which no text can hold."""
    for name, kind in schema.items():
        if kind.is_nested() and "Binary" in str(kind):
            raise ConfigError(f"{where}: column {name!r} is {kind}, which is no text; leave it out with --columns")


def as_json_lines(frame: pl.DataFrame) -> bytes:
    """Return a JSON object and a line break for each row; bytes as base64, what is not a finite number as null."""
    return frame.select(_texts(frame)).write_ndjson().encode()


def as_csv(frame: pl.DataFrame, *, header: bool) -> bytes:
    """Return a line for each row: fields of structs as columns NAME.FIELD, lists as JSON, bytes as base64."""
    flat = _flat(frame)
    lists = [_as_json(name) for name, kind in flat.schema.items() if kind.is_nested()]
    spans = [pl.col(name).dt.to_string("iso") for name, kind in flat.schema.items() if kind == pl.Duration]
    return flat.with_columns(*lists, *spans).select(_texts(flat)).write_csv(include_header=header).encode()


def _texts(frame: pl.DataFrame) -> list[pl.Expr]:
    binary = [name for name, kind in frame.schema.items() if kind == pl.Binary]
    return [pl.col(name).bin.encode("base64") if name in binary else pl.col(name) for name in frame.columns]


def _as_json(name: str) -> pl.Expr:
    """Return a column as JSON text, null as null."""
    text = pl.struct(pl.col(name).alias("v")).struct.json_encode().str.strip_prefix('{"v":').str.strip_suffix("}")
    return pl.when(pl.col(name).is_not_null()).then(text).alias(name)


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a frame without structs: their fields are columns."""
    while structs := {name: kind for name, kind in frame.schema.items() if isinstance(kind, pl.Struct)}:
        columns: list[pl.Expr] = []
        for name in frame.columns:
            fields = structs[name].fields if name in structs else ()
            columns += [pl.col(name).struct.field(f.name).alias(f"{name}.{f.name}") for f in fields]
            columns += [] if name in structs else [pl.col(name)]
        frame = frame.select(columns)
    return frame
