"""Fuzzes one reader by hand, for minutes: `python tests/fuzz/run.py manifest --seconds 120 [--by atheris]`.

Hypothesis makes edits of a whole file; atheris (`pip install atheris`, not among the test requirements) is guided by
the branches of our modules that an input reaches. The last line is JSON: the inputs that were tried, how many were
accepted, and the distinct faults. The input of each fault is written to `tests/fuzz/seeds/NAME/`, where an ordinary
test reads it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
SEEDS = Path(__file__).parent / "seeds"


class Trial:
    """What was tried, and which faults were found; one seed for each place in the code that raised."""

    def __init__(self, name, harness):
        self.name, self.harness = name, harness
        self.tried = self.accepted = 0
        self.faults = {}

    def __call__(self, data):
        self.tried += 1
        try:
            self.accepted += self.harness.tried(data)
        except BaseException as error:  # Rust panics are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "genrec_batch" in f.filename]
            where = f"{type(error).__name__} at {ours[-1] if ours else '?'}: {str(error)[:120]}"
            key = (type(error).__name__, ours[-1] if ours else "?")
            if key not in self.faults:
                self.faults[key] = where
                seed = SEEDS / self.name / hashlib.sha256(data).hexdigest()[:16]
                seed.parent.mkdir(parents=True, exist_ok=True)
                seed.write_bytes(data)
                print(where, flush=True)

    def report(self, by, seconds):
        faults = sorted(self.faults.values())
        print(json.dumps({"fuzzed": self.name, "by": by, "seconds": seconds, "tried": self.tried,
                          "accepted": self.accepted, "faults": faults}), flush=True)  # fmt: skip


def edited(whole, choose):
    """Return a file with up to eight edits: bytes changed, cut out, repeated, or replaced by a number at a limit."""
    data = bytearray(whole)
    for _ in range(choose(1, 8)):
        place, kind = choose(0, max(0, len(data) - 1)), choose(0, 5)
        if kind == 0:
            data[place : place + 1] = bytes([choose(0, 255)])
        elif kind == 1:
            del data[place : place + choose(1, 16)]
        elif kind == 2:
            data[place:place] = data[place : place + choose(1, 32)]
        elif kind == 3:
            data[place : place + 4] = choose(0, 2**32 - 1).to_bytes(4, "little")
        elif kind == 4:
            data[place : place + 1] = b"\xff\xff\xff\xff\x0f"[: choose(1, 5)]
        else:
            texts = (b"null", b"[]", b"{}", b"-1", b"1e999", b'""', b"[" * 5000, b"9" * 5000, b"NaN", b"\x00")
            data[place : place + choose(0, 8)] = texts[choose(0, len(texts) - 1)]
    return bytes(data)


def by_hypothesis(trial, seconds, seed):
    """Try edits that Hypothesis draws, then, as its overhead is large, more of the same by a plain generator."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    end = time.monotonic() + seconds

    @settings(
        max_examples=500, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def drawn(data):
        trial(edited(trial.harness.whole, lambda low, high: data.draw(st.integers(low, high))))

    drawn()
    while time.monotonic() < end:
        trial(edited(trial.harness.whole, random.Random(seed).randint))
        seed += 1


def by_atheris(name, seconds):
    import atheris

    with atheris.instrument_imports(include=["genrec_batch"]):
        from tests.fuzz.harnesses import harnesses
    trial = Trial(name, harnesses()[name])
    corpus = Path(tempfile.mkdtemp())
    (corpus / "whole").write_bytes(trial.harness.whole)
    end = time.monotonic() + seconds

    def one(data):
        trial(data)
        if time.monotonic() > end:
            trial.report("atheris", seconds)
            os._exit(0)

    atheris.Setup([sys.argv[0], str(corpus), f"-max_len={4 * len(trial.harness.whole)}", "-verbosity=0"], one)
    atheris.Fuzz()


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("name")
    arguments.add_argument("--seconds", type=float, default=120)
    arguments.add_argument("--by", choices=("hypothesis", "atheris"), default="hypothesis")
    arguments.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args()
    if chosen.by == "atheris":
        by_atheris(chosen.name, chosen.seconds)
        return
    from tests.fuzz.harnesses import harnesses, remove

    trial = Trial(chosen.name, harnesses()[chosen.name])
    try:
        by_hypothesis(trial, chosen.seconds, chosen.seed)
    finally:
        trial.report("hypothesis", chosen.seconds)
        remove()


if __name__ == "__main__":
    main()
