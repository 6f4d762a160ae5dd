"""Text from data is shown, never obeyed: in errors, logs, tables and pages, from ids, columns and file names."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.text import harmless

EVIL = "a\x1b[31mred\x07\x9b2J\u202egnp\u2066x\r\nerror: all is well\x00"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def test_what_would_be_obeyed_is_an_escape_and_other_text_stays():
    assert harmless(EVIL) == r"a\x1b[31mred\x07\x9b2J\u202egnp\u2066x\r" + "\nerror: all is well" + r"\x00"
    assert harmless("a\nb\tc", one_line=True) == r"a\nb\tc"
    assert harmless("its faults:\n  a\n  b", one_line=True) == "its faults:\n  a\n  b"
    assert harmless("\ud800 東京 é ß 🎬 [x]") == r"\ud800 東京 é ß 🎬 [x]"


@pytest.fixture
def evil_log(log):
    """A log whose ids, an ignored column's name and file name hold control characters."""
    name = f"evil{EVIL.replace(chr(0), '')}.parquet"
    rows = log.with_columns(
        user_id=pl.col("user_id").cast(pl.String) + EVIL,
        video_id=pl.col("video_id").cast(pl.String) + EVIL,
        **{f"{EVIL}": pl.lit(1)},
    )
    rows.write_parquet(name)
    return name


def clean(text):
    lines = [line for line in text.splitlines() if line.startswith("error: all is well")]
    return not OBEYED.search(text.replace("\n", "")) and not lines


def test_nothing_that_a_command_prints_or_writes_for_people_has_a_control_character(run, evil_log, log):
    assert run("model", "init", "m", "--preset", "tiny", "--catalog-from", evil_log).code == 0
    common = ("--model", "m", "--engine", "onnxruntime", "--limit", 3)
    user = f"101{EVIL}"
    for arguments in (
        ("score", evil_log, "recs.parquet", *common, "--report", "run.html", "--verbose"),
        ("score", evil_log, "--user", user.replace("\0", ""), *common),
        ("score", evil_log, *common),
        ("score", evil_log, *common, "--layout", "nested"),
        ("score", evil_log, "--explain", user, "--model", "m", "--engine", "onnxruntime"),
        ("inspect", "recs.parquet"),
        ("inspect", "recs.parquet", "--json"),
        ("score", evil_log, "again.parquet", "--model", f"m{EVIL[:20]}"),
        ("score", f"no{EVIL[:20]}", "again.parquet", "--model", "m"),
        ("score", evil_log, f"no{EVIL[:30]}/recs", "--model", "m"),
    ):
        done = run(*arguments)
        assert clean(done.out), (arguments, done.out)
        assert clean(done.err), (arguments, done.err)
    page = re.sub("<script>.*?</script>|<style>.*?</style>", "", Path("run.html").read_text(), flags=re.DOTALL)
    assert clean(page)
    log.with_columns(timestamp=pl.lit("x")).rename({"watch_duration": EVIL}).write_parquet("wrong.parquet")
    done = run("score", "wrong.parquet", "recs2.parquet", "--model", "m")
    assert done.code == 3
    assert clean(done.err), done.err
