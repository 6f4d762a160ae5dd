"""`--verify-input`: damaged pages, and contents that are not those of an earlier output, end a run before it writes."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def score(run, model_dir):
    def call(source, output, *flags):
        return run("score", source, output, "--model", model_dir, "--engine", "onnxruntime", "--quiet", *flags)

    return call


def test_a_damaged_page_is_found_where_pages_have_checksums(score, log):
    whole = log.select("user_id", "video_id", "timestamp", note=pl.lit("nobody reads this column")).to_arrow()
    pq.write_table(whole, "log.parquet", write_page_checksum=True, compression="none", use_dictionary=False)
    assert score("log.parquet", "a.parquet", "--verify-input", "pages").code == 0
    data = Path("log.parquet").read_bytes()
    place = len(data) // 2 + data[len(data) // 2 :].index(b"nobody reads this column") + 7  # far from the statistics
    Path("log.parquet").write_bytes(data[:place] + b"X" + data[place + 1 :])
    assert score("log.parquet", "b.parquet").code == 0, "nothing that is read is damaged"
    done = score("log.parquet", "c.parquet", "--verify-input", "pages")
    assert (done.code, "INPUT log.parquet: row group 0 is damaged" in done.err) == (3, True), done.err
    assert not Path("c.parquet").exists()


def test_contents_are_compared_with_those_of_an_earlier_output(score, log):
    log.write_parquet("log.parquet")
    log.select("user_id").unique().write_parquet("users.parquet")
    for name in ("one.parquet", "parts"):
        assert score("log.parquet", name).code == 0
        assert score("log.parquet", f"again-{name}", "--verify-input", name).code == 0
    log.head(100).write_parquet("log.parquet")
    done = score("log.parquet", "changed.parquet", "--verify-input", "parts")
    assert done.code == 3, done.err
    assert "events log.parquet: not the contents that parts was made from" in " ".join(done.err.split())
    assert not Path("changed.parquet").exists()
    log.write_parquet("log.parquet")
    done = score("log.parquet", "more.parquet", "--users", "users.parquet", "--verify-input", "parts")
    assert (done.code, "the run of parts had no such input" in " ".join(done.err.split())) == (3, True), done.err


def test_what_is_neither_pages_nor_an_output_is_refused(score, log_file):
    for name in ("nowhere", "events.parquet"):
        done = score(log_file, "a.parquet", "--verify-input", name)
        assert (done.code, "neither `pages` nor a finished output" in " ".join(done.err.split())) == (2, True), done.err
