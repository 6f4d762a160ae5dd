"""The folder in which other processes write the parts of one run: in the staging folder, by a name of its own.

Owns: its name, how it is made, how it goes. Must not know: what is in it. A writer may end after its run: the next run
removes the folder before it does anything else, so the writer has no place left.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from genrec_batch.io.published import RECEIPTS

APART, GONE = "apart-", "gone-"  # begin the names


def made(staging: Path) -> Path:
    """Return a new folder.

    Raises:
        OSError: the disk refuses.
    """
    folder = staging / f"{APART}{secrets.token_hex(8)}"
    (folder / RECEIPTS).mkdir(parents=True)
    return folder


def remove(staging: Path) -> None:
    """Remove the folders of all runs; each is renamed first, since somebody may still write.

    Raises:
        OSError: the disk refuses.
    """
    for folder in staging.glob(f"{APART}*"):
        folder.rename(folder.with_name(f"{GONE}{folder.name}"))
    for folder in staging.glob(f"{GONE}*"):
        shutil.rmtree(folder)
