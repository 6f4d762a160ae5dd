"""A Parquet file that carries the sha256 of itself: checksums of pages cover neither the pages' headers nor the footer.

Owns: the entry `genrec.sha256` of a file's metadata, which is the digest of the file with zeros in the entry's place.
Must not know: what is in a file, which files belong together.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

NAME = "genrec.sha256"
EMPTY = "0" * 64
OPEN = {NAME: EMPTY}  # in the metadata of a file that will be sealed
TAIL = 8  # bytes: the footer's length and the magic
BEFORE = NAME.encode() + b"\x18\x40"  # in Thrift's compact protocol a text of 64 bytes follows


def seal(file: Path) -> None:
    """Write the digest of a file that was written with `OPEN` in its metadata into its place."""
    place = _place(file)
    assert place is not None, "it was written with the entry"
    with file.open("r+b") as opened:
        opened.seek(place)
        opened.write(_digest(file, place).encode())


def is_sealed(file: Path) -> bool:
    """Return whether every byte of a file is what it was when it was sealed.

    Raises:
        OSError: it cannot be read.
    """
    place = _place(file)
    if place is None:
        return False
    with file.open("rb") as opened:
        opened.seek(place)
        return opened.read(len(EMPTY)) == _digest(file, place).encode()


def _place(file: Path) -> int | None:
    """Return where the digest of a file begins, None where its footer has none."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - TAIL))
        begins = size - TAIL - int.from_bytes(opened.read(4), "little")
        if begins < 0:
            return None
        opened.seek(begins)
        found = opened.read().find(BEFORE)
    return begins + found + len(BEFORE) if found >= 0 else None


def _digest(file: Path, place: int) -> str:
    digest, left = hashlib.sha256(), place
    with file.open("rb") as opened:
        while left and (chunk := opened.read(min(left, 1 << 22))):
            digest.update(chunk)
            left -= len(chunk)
        opened.seek(len(EMPTY), 1)
        digest.update(EMPTY.encode())
        while chunk := opened.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
