"""The catalog: the token of each video.

Owns: the order of tokens (0 padding, 1 unknown, 2.. by falling frequency, ties by ascending id), `catalog.parquet`, and
the mapping from token back to id. Must not know: users, histories, models.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_batch.core.arrays import FIRST_ITEM
from genrec_batch.core.errors import InputError, ModelError, refused

COLUMNS = ("token", "video_id", "count")
AGAIN = "copy the whole model directory again, or make it again with `genrec-batch train` or `model init`"


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Videos in the order of their tokens: row i of `items` is token i + 2; columns video_id and count (views)."""

    items: pl.DataFrame
    unknown_videos: int = 0  # distinct videos of the log beyond the vocabulary
    unknown_events: int = 0  # their events

    def __len__(self) -> int:
        return len(self.items)

    @property
    def id_type(self) -> pl.DataType:
        """Type of the ids: an integer type or String."""
        return self.items.schema["video_id"]

    @staticmethod
    def from_counts(counted: pl.DataFrame, *, vocabulary: int) -> Catalog:
        """Take the most viewed `vocabulary` - 2 videos; `counted` has columns video_id and count (UInt64)."""
        ranked = counted.sort(["count", "video_id"], descending=[True, False])
        kept, beyond = ranked.head(vocabulary - FIRST_ITEM), ranked.slice(vocabulary - FIRST_ITEM)
        return Catalog(items=kept, unknown_videos=len(beyond), unknown_events=int(beyond["count"].sum()))

    @staticmethod
    def read(path: Path, *, vocabulary: int) -> Catalog:
        """Read `catalog.parquet`: columns token, video_id, count.

        Raises:
            ModelError: not a catalog, ids repeat or are null, tokens are not 2, 3, ..., or exceed the vocabulary.
        """
        if not path.is_file():  # a pipe would be waited for
            raise ModelError(f"{path}: not a file; {AGAIN}")
        frame = _table(path)
        if not len(frame):
            raise ModelError(f"{path}: the catalog has no rows, so the model can recommend nothing; {AGAIN}")
        if frame["video_id"].null_count() or frame["video_id"].n_unique() != len(frame):
            raise ModelError(f"{path}: column 'video_id' holds nulls or the same id twice; one row per video")
        frame = frame.sort("token")
        if not frame["token"].equals(pl.Series(range(FIRST_ITEM, FIRST_ITEM + len(frame)), dtype=pl.Int64)):
            raise ModelError(f"{path}: column 'token' must hold 2, 3, ... without gaps (0 is padding, 1 unknown)")
        if len(frame) + FIRST_ITEM > vocabulary:
            raise ModelError(
                f"{path}: {len(frame)} videos do not fit the model's vocabulary of {vocabulary}; keep the most viewed "
                f"{vocabulary - FIRST_ITEM}"
            )
        return Catalog(items=frame.select("video_id", "count"))

    def write(self, path: Path) -> None:
        """Write `catalog.parquet`: whole or not at all.

        Raises:
            ModelError: it cannot be written.
            RetryError: the disk is full.
        """
        tokens = pl.col("token").cast(pl.Int32)
        scratch, content = path.with_name(path.name + ".tmp"), io.BytesIO()
        self.items.with_row_index("token", offset=FIRST_ITEM).with_columns(tokens).write_parquet(content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(content.getbuffer())
            scratch.replace(path)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise refused(error, str(path), ModelError) from error

    def fingerprint(self) -> str:
        """Return the sha256 of the ids in token order with their type, as 64 hex digits."""
        ids = self.items["video_id"]
        text = "\n".join(ids.cast(pl.String).to_list()) if len(ids) else ""
        return hashlib.sha256(f"{ids.dtype}\n{text}".encode()).hexdigest()

    def check_type(self, log: pl.DataType, source: str) -> None:
        """Raise ModelError where the log's video_id can never equal the catalog's: one is an integer, one a string."""
        if len(self) and log.is_integer() != self.id_type.is_integer():
            kind = "BIGINT" if self.id_type.is_integer() else "VARCHAR"
            raise ModelError(
                f"the catalog's video_id is {self.id_type}, that of {source} is {log}: no id would be known; "
                f'use --schema FILE.toml, as in video_id = "CAST(video_id AS {kind})", or give the model that '
                "belongs to this log"
            )

    def tokens(self, ids: pl.Series) -> pl.Series:
        """Return the token of each id (Int32), 1 for an id that is not in the catalog."""
        known = self.items.select("video_id").with_row_index("token", offset=FIRST_ITEM)
        if ids.dtype != self.id_type and len(self):
            ids, known = _common(ids, known)
        joined = ids.alias("video_id").to_frame().join(known, on="video_id", how="left", maintain_order="left")
        return joined["token"].cast(pl.Int32).fill_null(1)

    def ids(self, tokens: pl.Series) -> pl.Series:
        """Return the id of each token from 2 on, null for 0 and 1."""
        return self.items["video_id"].gather((tokens.cast(pl.Int64) - FIRST_ITEM).set(tokens < FIRST_ITEM, None))


def _table(path: Path) -> pl.DataFrame:
    """Return the three columns of a `catalog.parquet`, token as Int64 and count as UInt64.

    Raises:
        ModelError: not a whole Parquet file, or not these columns.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as opened:
            kinds = {field.name: field.type for field in opened.schema_arrow}
            missing = [name for name in COLUMNS if name not in kinds]
            if missing:
                raise ModelError(
                    f"{path}: column {', '.join(missing)} is missing; a catalog has token, video_id and count"
                )
            table = opened.read(columns=list(COLUMNS), use_threads=False)
        whole = {name: pa.types.is_integer(kinds[name]) for name in COLUMNS}
        texts = kinds["video_id"] in (pa.string(), pa.large_string(), pa.string_view())
        wrong = [name for name in COLUMNS if not whole[name] and not (name == "video_id" and texts)]
        if wrong:
            raise ModelError(
                f"{path}: column {wrong[0]!r} is {kinds[wrong[0]]}; token and count are whole numbers, video_id is a "
                "whole number or a string"
            )
        table.validate(full=True)  # a damaged file can hold text that is not UTF-8
        frame = pl.DataFrame(pl.from_arrow(table))
        return frame.with_columns(pl.col("token").cast(pl.Int64), pl.col("count").cast(pl.UInt64))
    except (
        pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeDecodeError,
    ) as error:  # fmt: skip
        raise ModelError(f"{path}: not a whole Parquet file ({error}); {AGAIN}") from error


def _common(ids: pl.Series, known: pl.DataFrame) -> tuple[pl.Series, pl.DataFrame]:
    """Widen two integer types to Int64; UInt64 ids beyond it are an error."""
    try:
        return ids.cast(pl.Int64), known.with_columns(pl.col("video_id").cast(pl.Int64))
    except pl.exceptions.InvalidOperationError as error:
        raise InputError(f"column 'video_id' holds ids beyond a signed 64-bit integer ({error})") from error
