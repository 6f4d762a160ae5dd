"""The 1024 feature slots: which number means what. The only file with slot numbers.

Owns: names, ranges and category lists of the layout, and its fingerprint. Knows nothing of how a value is computed
(`features.py`) or of who reads it (the model).
"""

from __future__ import annotations

import hashlib

FEATURES = 1024


def names() -> list[str]:
    """Return the 1024 slot names in order; reserved slots are named `reserved_<slot>`."""
    raise AssertionError("written with features.py")


def fingerprint() -> str:
    """Return the sha256 of the layout as 64 hex digits; two layouts with the same one mean the same features."""
    return hashlib.sha256("\n".join(names()).encode()).hexdigest()
