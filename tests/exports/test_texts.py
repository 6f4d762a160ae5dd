"""`texts`, `form` and the command `cli.export`: outputs as JSON lines and CSV that other programs read back."""

from __future__ import annotations

import csv
import fcntl
import gzip
import io
import json
from pathlib import Path

import polars as pl
import pytest
import zstandard

from genrec_batch.exports import form
from tests.fakes import recs

LAYOUTS = ("long", "nested", "wide")


@pytest.fixture(params=LAYOUTS)
def output(request, tmp_path):
    recs.write(tmp_path / "recs", 20, layout=request.param)
    return request.param


def test_json_lines_are_the_rows_as_they_are_stored(output, run):
    done = run("export", "recs", "recs.jsonl")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in Path("recs.jsonl").read_text().splitlines()]
    assert rows == pl.read_parquet("recs/part-*.parquet").to_dicts()
    assert (done.summary["rows"], done.summary["layout"]) == (60 if output == "long" else 20, output)


def test_csv_has_a_row_for_each_recommendation_or_a_wide_one(output, run):
    assert run("export", "recs", "recs.csv").code == 0
    rows = list(csv.DictReader(io.StringIO(Path("recs.csv").read_text())))
    if output == "wide":
        assert list(rows[3])[-3:] == ["title_1", "title_2", "title_3"]
        assert (rows[3]["video_id_2"], rows[3]["title_2"]) == ("302", 'night 0, "2"')
        assert len(rows) == 20
        return
    assert len(rows) == 60
    assert {name: rows[4][name] for name in ("user_id", "rank", "video_id", "score", "title")} == {
        "user_id": "1", "rank": "2", "video_id": "102", "score": "-0.25", "title": 'night 0, "2"'
    }  # fmt: skip
    assert (rows[4]["about.like"], rows[4]["about.tags"]) == ("0.25", '["a","b"]')


@pytest.mark.parametrize("name", ["recs.jsonl.gz", "recs.ndjson.zst", "recs.csv.gz"])
def test_a_compressed_file_holds_the_same(run, tmp_path, name):
    recs.write(tmp_path / "recs.parquet", 20)
    plain = name.rpartition(".")[0]
    assert run("export", "recs.parquet", name).code == 0
    assert run("export", "recs.parquet", plain).code == 0
    packed = Path(name).read_bytes()
    unpacked = (
        gzip.decompress(packed)
        if name.endswith("gz")
        else zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    )
    assert unpacked == Path(plain).read_bytes()


def test_columns_are_chosen_and_ordered(output, run):
    assert run("export", "recs", "recs.csv", "--columns", "score,user_id").code == 0
    first = Path("recs.csv").read_text().splitlines()[0]
    assert first == ("score_1,score_2,score_3,user_id" if output == "wide" else "score,user_id")


def test_bytes_are_base64_and_what_no_text_can_hold_is_an_error():
    frame = pl.DataFrame(
        {"a": [b"\x00\xff", None], "n": [float("nan"), 1.0], "s": pl.Series([1500, None]).cast(pl.Duration("ms"))}
    )
    assert form.as_json_lines(frame.drop("s")).decode().splitlines() == ['{"a":"AP8=","n":null}', '{"a":null,"n":1.0}']
    assert form.as_csv(frame, header=True).decode().splitlines() == ["a,n,s", "AP8=,NaN,PT1.5S", ",1.0,"]
    with pytest.raises(form.ConfigError, match="which is no text; leave it out with --columns"):
        form.check_types({"x": pl.List(pl.Binary)}, "RECS r")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["recs", "recs.xlsx"], 2, "neither redis://HOST:PORT/DB nor a file that ends in .jsonl, .ndjson, .csv"),
        (["recs", "nowhere/recs.csv"], 2, "the folder nowhere does not exist"),
        (["recs", "there.csv"], 2, "--if-exists overwrite"),
        (["recs", "a.csv", "--columns", "titel"], 2, "has no column 'titel'. Did you mean 'title'?"),
        (["recs", "a.csv", "--columns", "title,title"], 2, "a name is there twice"),
        (["rec", "a.csv"], 3, "RECS rec: no such file or directory. Did you mean 'recs'?"),
        (["events.parquet", "a.csv"], 3, "not a finished output of `genrec-batch score`"),
        (["torn", "a.csv"], 3, "RECS torn: part-00001.parquet is missing or does not match the manifest"),
        (["recs", "s3://bucket/a.csv"], 2, "an output is written to a local path"),
        (["recs", "a.csv", "--if-exists", "ask"], 2, "is not one of error, overwrite"),
    ],
)
@pytest.mark.usefixtures("log_file")
def test_what_cannot_be_exported_is_refused(run, tmp_path, arguments, code, said):
    for name in ("recs", "torn"):
        recs.write(tmp_path / name, 20)
    (tmp_path / "torn" / "part-00001.parquet").write_bytes(b"torn")
    Path("there.csv").write_text("mine")
    done = run("export", *arguments)
    assert (done.code, said in done.err) == (code, True), done.err
    assert Path("there.csv").read_text() == "mine"
    assert not Path("a.csv").exists()


def test_an_existing_file_is_replaced_when_the_new_one_is_whole(run, tmp_path):
    recs.write(tmp_path / "recs", 20)
    Path("recs.csv").write_text("old")
    assert run("export", "recs", "recs.csv", "--if-exists", "overwrite").code == 0
    assert len(Path("recs.csv").read_text().splitlines()) == 61
    assert [file.name for file in tmp_path.iterdir() if "unfinished" in file.name] == []


def test_two_exports_do_not_write_one_file(run, tmp_path):
    recs.write(tmp_path / "recs", 20)
    with Path(".recs.csv.unfinished").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        done = run("export", "recs", "recs.csv")
    assert (done.code, "is being written by another export now" in done.err) == (75, True)


def test_what_a_killed_export_left_is_overwritten(run, tmp_path):
    recs.write(tmp_path / "recs", 20)
    Path(".recs.csv.unfinished").write_text("half a line that is much longer than " * 1000)
    assert run("export", "recs", "recs.csv").code == 0
    assert len(Path("recs.csv").read_text().splitlines()) == 61
