"""JSON lines that Polars refuses: a line that is no object becomes an empty one, and costs no other line.

Owns: which lines are objects, and values that no reader takes (NaN, integers beyond 64 bits). Must not know: columns.
In: a text. Out: a copy of it that Polars reads, and what is wrong with some of its lines.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pyarrow as pa

from genrec_batch.io.formats import unpacked
from genrec_batch.io.odd_lines import OddLines

NOT_JSON = {"NaN": None, "Infinity": None, "-Infinity": None}  # as Python's json and pandas write them


def mended(open_file: Callable[[], IO[bytes]], target: Path) -> OddLines:
    """Copy a text to `target`; return its odd lines.

    Raises:
        OSError: the disk is full, or the text cannot be read.
    """
    odd = OddLines()
    row = 0
    with unpacked(open_file) as content, target.open("w", encoding="utf-8") as copy:
        lines = io.BufferedReader(content) if isinstance(content, pa.NativeFile) else content
        for line in lines:
            text = line.strip().removeprefix(b"\xef\xbb\xbf").removesuffix(b",")
            if not text:
                continue
            found = _object(text)
            if found is None:
                odd.add(row, "line is no JSON object", text.decode(errors="backslashreplace"))
            copy.write(json.dumps(found or {}, ensure_ascii=False) + "\n")
            row += 1
    return odd


def _object(text: bytes) -> dict[str, object] | None:
    """Return the object of a line, None where it is none."""
    try:
        found = json.loads(text, parse_constant=NOT_JSON.get, parse_int=_whole)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _whole(digits: str) -> int | str:
    """Return an integer of at most 64 bits, with a sign; a larger one is the text of an id."""
    number = int(digits) if len(digits) < 25 else 0
    return number if -(2**63) <= number < 2**63 and len(digits) < 25 else digits
