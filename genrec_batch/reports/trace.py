"""`--trace`: a run's spans as a timeline that Perfetto and chrome://tracing open.

Owns: the Trace Event Format (Google, "Trace Event Format", 2016): complete events ("ph": "X") with begin and duration
in microseconds, one lane per thread, named by a metadata event ("ph": "M"). Must not know: what the stages do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genrec_batch.core.errors import ConfigError, refused
from genrec_batch.runtime.clock import Stages


def events(stages: Stages) -> list[dict[str, Any]]:
    """Return the trace's events: a name for each lane, in the order the lanes first worked, then every span."""
    lanes: dict[str, int] = {}
    for span in sorted(stages.spans, key=lambda span: span.start_s):
        lanes.setdefault(span.lane, len(lanes) + 1)
    process = {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "genrec-batch"}}
    named = [
        {"ph": "M", "pid": 1, "tid": number, "name": kind, "args": args}
        for lane, number in lanes.items()
        for kind, args in (("thread_name", {"name": lane}), ("thread_sort_index", {"sort_index": number}))
    ]
    spans = [
        {
            "ph": "X",
            "pid": 1,
            "tid": lanes[span.lane],
            "name": span.stage,
            "cat": "stage",
            "ts": round(span.start_s * 1e6, 3),
            "dur": round((span.stop_s - span.start_s) * 1e6, 3),
            "args": {"rows": span.rows, "bytes": span.bytes},
        }
        for span in stages.spans
    ]
    return [process, *named, *spans]


def write(stages: Stages, path: Path) -> None:
    """Write the trace as JSON, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    whole_file(path, "--trace", json.dumps({"traceEvents": events(stages), "displayTimeUnit": "ms"}) + "\n")


def whole_file(path: Path, flag: str, text: str) -> None:
    """Write a text file by a temporary name and a rename.

    Raises:
        ConfigError: it cannot be written; the message names the flag.
        RetryError: the disk is full.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        if scratch.is_file():
            scratch.unlink()
        raise refused(error, f"{flag} {path}", ConfigError) from error
