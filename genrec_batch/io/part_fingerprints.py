"""The fingerprints of users beside the parts of an output that is being written, and as one file at its end.

Owns: their files in the staging folder. Must not know: what a fingerprint is, how an output is put in place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from genrec_batch.io import parquet
from genrec_batch.io.published import FINGERPRINTS


def files(staging: Path) -> list[Path]:
    """Return the files of the parts that have them, in order."""
    return sorted(staging.glob("part-*.fingerprints"), key=lambda file: int(file.stem[len("part-") :]))


def entries(staging: Path, name: str) -> list[str]:
    """Return an entry of the metadata that was kept beside each part, in order; parts without it are left out."""
    found = [(pq.read_schema(file).metadata or {}).get(name.encode()) for file in files(staging)]
    return [entry.decode() for entry in found if entry is not None]


def joined(staging: Path, parts: int) -> dict[str, str]:
    """Return the metadata of the one file, where an identical run was killed after it made it of so many parts."""
    whole = staging / FINGERPRINTS
    if len(files(staging)) >= parts or not whole.exists():
        return {}
    return {name.decode(): text.decode() for name, text in (pq.read_schema(whole).metadata or {}).items()}


def join(staging: Path, parts: int, scope: Mapping[str, Any], about: Mapping[str, str]) -> None:
    """Make one file of those of so many parts; `scope` and `about` are kept in its metadata.

    Raises:
        OSError: the disk refuses the write.
    """
    found = files(staging)
    if len(found) < parts and (staging / FINGERPRINTS).exists():
        return  # an identical run joined them and was killed while it removed the parts
    whole = pl.read_parquet(found, glob=False).to_arrow(compat_level=pl.CompatLevel.oldest())
    kept = {"genrec.scope": json.dumps(scope, sort_keys=True), **about}
    parquet.write(staging / FINGERPRINTS, whole.replace_schema_metadata(kept), quick=True)  # random bits
