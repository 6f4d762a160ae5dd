"""The identity of a run: what decides the bytes of its output, and in what two of them differ.

Owns: the run id, and a difference in words. Must not know: what is in an identity, where it is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from genrec_batch.core.declare import differences

Identity = Mapping[str, Any]  # JSON-able, no clock, no machine
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


def run_id(identity: Identity) -> str:
    """Return 16 hex digits of the sha256 of everything that decides the output's bytes."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def difference(stored: Mapping[str, str], identity: Identity) -> str:
    """Return in words how a run differs from the one that stored this metadata."""
    began = {key: _value(stored[f"genrec.{key}"]) for key in identity if f"genrec.{key}" in stored}
    now = {key: json.loads(json.dumps(identity[key])) for key in began}
    if "config" in began:  # stored with paths, which decide nothing
        began["config"] = {name: value for name, value in began["config"].items() if name in now["config"]}
    if "input" in began:
        began["input"] = {name: {**source, "path": ""} for name, source in began["input"].items()}
    differ = ", ".join(differences(began, now)) or "something that its files do not record"
    return "it is of another run, which differs in " + DIGEST.sub(r"\1...", differ)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
