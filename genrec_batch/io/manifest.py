"""The manifest of an output of several files: its form, and the sha256 that it carries of itself.

Owns: which JSON is a manifest, how parts are named, its own hash. Must not know: where files are, whether they are what
it says (`published`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

RUN = r"-[0-9a-f]{16}"  # the run's id, which parts in a store have in their names
PLACE = re.compile(rf"(?:[^/]+=[^/]*/)?part-\d{{5,9}}(?:{RUN})?\.parquet")  # of a part in the output


def checked(found: Any) -> dict[str, Any] | None:
    """Return a value of JSON that is a manifest, None for any other.

    Its files are names of parts, never a path that leads elsewhere.
    """
    if not isinstance(found, dict) or not isinstance(found.get("metadata"), dict):
        return None
    if not all(isinstance(value, str) for value in found["metadata"].values()):
        return None
    entries = found.get("files")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None
    named = all(isinstance(entry.get(name), str) for entry in entries for name in ("file", "sha256"))
    return found if named and all(PLACE.fullmatch(entry["file"]) for entry in entries) else None


def parsed(content: bytes) -> dict[str, Any] | None:
    """Return the manifest in the bytes of a file, None where they are none."""
    try:
        return checked(json.loads(content))
    except (ValueError, RecursionError):
        return None


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the sha256 of itself: of its JSON with sorted names, without that entry."""
    return {**manifest, "sha256": seal(manifest)}


def seal(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 of a manifest without its own entry."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def text(manifest: Mapping[str, Any]) -> str:
    """Return the text of a manifest's file."""
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"
