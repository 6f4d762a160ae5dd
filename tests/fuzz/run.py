"""Fuzzes one reader by hand, for minutes: `python tests/fuzz/run.py manifest --seconds 120 [--by atheris]`.

Hypothesis makes edits of a whole file; atheris (`pip install atheris`, not among the test requirements) is guided by
the branches of our modules that an input reaches. Both work in a process that may end by an abort of a library
(`watched.py`). The last line is JSON: the inputs that were tried, how many were accepted, the aborts that the command
line turns into an error, and the distinct faults. The input of each fault is written to `tests/fuzz/seeds/NAME/`,
where an ordinary test reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.fuzz.watched import STALL_S, Record, Watch, keep


class Trial:
    """What was tried, and which faults were found; one seed for each place in the code that raised."""

    def __init__(self, name, harness, record):
        self.name, self.harness, self.record = name, harness, record
        self.tried = self.accepted = 0
        self.faults = set(record.faults())

    def __call__(self, data):
        self.tried += 1
        self.record.put(self.tried, self.accepted, data)
        try:
            self.accepted += self.harness.tried(data)
        except BaseException as error:  # Rust panics are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "genrec_batch" in f.filename]
            where = f"{type(error).__name__} at {ours[-1] if ours else '?'}"
            if where not in self.faults:
                self.faults.add(where)
                self.record.add_fault(where)
                keep(self.name, data)
                print(where, str(error)[:300], file=sys.stderr, flush=True)

    def end(self):
        self.record.put(self.tried, self.accepted)


def edited(wholes, choose):
    """Return one of some files, with up to eight edits: bytes changed, cut out, repeated, or a number at a limit."""
    data = bytearray(wholes[choose(0, len(wholes) - 1)])
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
        trial(edited(trial.harness.wholes, lambda low, high: data.draw(st.integers(low, high))))

    drawn()
    while time.monotonic() < end:
        trial(edited(trial.harness.wholes, random.Random(seed).randint))
        seed += 1


def by_atheris(name, seconds, record):
    import atheris

    with atheris.instrument_imports(include=["genrec_batch"]):
        from tests.fuzz.harnesses import harnesses
    trial = Trial(name, harnesses()[name], record)
    corpus = record.folder / "corpus"  # the next process goes on with what this one has learnt
    corpus.mkdir(exist_ok=True)
    for number, whole in enumerate(trial.harness.wholes):
        (corpus / f"whole{number}").write_bytes(whole)
    end = time.monotonic() + seconds

    def one(data):
        trial(data)
        if time.monotonic() > end:
            trial.end()
            os._exit(0)

    handlers = [f"-handle_{name}=0" for name in ("abrt", "bus", "fpe", "ill", "segv", "term", "int")]
    handlers.append(f"-artifact_prefix={record.folder}/")
    limits = [
        f"-max_len={4 * max(map(len, trial.harness.wholes))}",
        "-rss_limit_mb=0",
        f"-timeout={10 * STALL_S}",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], str(corpus), *handlers, *limits], one)
    atheris.Fuzz()


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("name")
    arguments.add_argument("--seconds", type=float, default=120)
    arguments.add_argument("--by", choices=("hypothesis", "atheris"), default="hypothesis")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--record", type=Path, help=argparse.SUPPRESS)  # this process is one that is watched
    chosen = arguments.parse_args()
    if chosen.record is None:
        print(json.dumps(Watch(name=chosen.name, by=chosen.by).run(chosen.seconds, chosen.seed)), flush=True)
    elif chosen.by == "atheris":
        by_atheris(chosen.name, chosen.seconds, Record(chosen.record))
    else:
        from tests.fuzz.harnesses import harnesses

        trial = Trial(chosen.name, harnesses()[chosen.name], Record(chosen.record))
        by_hypothesis(trial, chosen.seconds, chosen.seed)
        trial.end()


if __name__ == "__main__":
    main()
