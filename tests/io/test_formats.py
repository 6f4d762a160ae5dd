"""What is read as a table, and what a person is told to do about everything else.

It tests `formats`, `text`, `csv_lines`, `json_lines` and `contents`: every command of a message ends in a scored log.
"""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pytest

from genrec_batch.core.errors import InputError
from genrec_batch.events.log import EventLog
from genrec_batch.io.read import scan

EVENTS = pl.DataFrame(
    {"user_id": [1, 1, 2], "video_id": [7, 8, 7], "timestamp": [1_760_000_000, 1_760_000_100, 1_760_000_200]}
)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, content):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def events(path, schema_name=None):
    log = EventLog.of(scan(path, "INPUT"), schema_name, f"INPUT {path}")
    return pl.concat([log.usable(number) for number in range(len(log.row_groups))])


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.inter", "a.parquet", "a"])
def test_a_text_is_read_as_the_same_log_in_parquet(separator, name, log):
    log.write_parquet("same.parquet")
    log.write_csv(name, separator=separator)
    same = events("same.parquet").with_columns(pl.col(pl.Float64).round(9))
    assert events(name).with_columns(pl.col(pl.Float64).round(9)).equals(same)


def test_packed_texts_and_folders_of_them_are_read():
    text = EVENTS.write_csv()
    write("log/day=1/a.csv", text)
    write("log/day=2/b.csv.gz", gzip.compress(text.encode()))
    write("log/README.txt", "about these files")
    assert events("log").equals(pl.concat([events("log/day=1/a.csv")] * 2))
    source = scan("log", "INPUT")
    assert source.frame().collect()["day"].to_list() == [1, 1, 1, 2, 2, 2]


def test_json_lines_keep_their_types():
    write("a.jsonl", EVENTS.write_ndjson())
    assert events("a.jsonl")["user_id"].to_list() == [1, 1, 2]
    write("b.jsonl", EVENTS.with_columns(pl.col("user_id").cast(pl.String)).write_ndjson())
    assert events("b.jsonl")["user_id"].to_list() == ["1", "1", "2"]


def test_ids_are_integers_only_if_every_value_of_every_file_is_one():
    for number, ids in enumerate((["7", "8"], ["007", "9"])):
        rows = "".join(f"{user},1,1760000000\n" for user in ids)
        write(f"log/{number}.csv", f"user_id,video_id,timestamp\n{rows}")
    assert events("log")["user_id"].to_list() == ["7", "8", "007", "9"]
    assert events("log/0.csv")["user_id"].to_list() == [7, 8]
    long = "12345678901234567890"
    write("long.csv", f"user_id,video_id,timestamp\n{long},1,1760000000\n")
    assert events("long.csv")["user_id"].to_list() == [long]


def test_values_that_are_no_numbers_are_null_and_not_the_end():
    write(
        "a.csv",
        "user_id,video_id,timestamp,watch_duration,is_liked,device_type,note\n"
        '1,7,2026-04-30T10:00:00Z,n/a,TRUE,"tv, old",\n'
        "1,7,2026-04-30 10:00:01,2.5,1,,x\n"
        "1,7,yesterday,3,0,\\N,\n",
    )
    read = events("a.csv")
    assert read["watch_duration"].to_list() == [None, 2.5]
    assert read["is_liked"].to_list() == [True, True]
    assert read["device_type"].to_list() == ["tv, old", None]
    write("b.csv", "user_id,video_id,timestamp\n1,7,1760000000\n1,7,unknown\n")
    assert events("b.csv")["timestamp"].dt.epoch("s").to_list() == [1_760_000_000]


def test_a_decimal_comma_is_one_where_no_comma_is_between_values():
    write("a.csv", "user_id;video_id;timestamp;watch_duration\n1;7;1760000000;2,5\n1;8;1760000000;3\n")
    assert events("a.csv")["watch_duration"].to_list() == [2.5, 3.0]


def test_the_copy_of_a_text_is_removed(tmp_path):
    EVENTS.write_csv("a.csv")
    (tmp_path / "spill").mkdir()
    source = scan("a.csv", "INPUT", spill_to=tmp_path / "spill")
    assert list((tmp_path / "spill").iterdir())
    assert source.frame().collect().equals(EVENTS)
    del source
    assert not list((tmp_path / "spill").iterdir())


def test_a_line_with_more_or_fewer_values_is_one_reject_in_its_place(run, model_dir):
    lines = ["user_id,video_id,timestamp,name", *(f"{n % 5},{1000 + n},{1_775_000_000 + n},x" for n in range(50))]
    lines[4], lines[9], lines[20] = "1,1001,1775000000,Doe, Jane", "2,10", '"3",1002,1775000000,"two\nlines"'
    for name in ("odd.csv", "odd.csv.gz"):
        text = ("\n".join([*lines[:30], "", *lines[30:]]) + "\n").encode()
        write(name, gzip.compress(text) if name.endswith(".gz") else text)
        rejects = ["--rejects", "rejects.parquet", "--max-rejects", "0.1"]
        done = run("score", name, f"{name}.parquet", "--model", model_dir, *rejects)
        assert done.code == 0, done.err
        assert (done.summary["input_rows"], done.summary["events"], done.summary["rejected_rows"]) == (50, 48, 2)
        assert pl.read_parquet("rejects.parquet")["row"].to_list() == [3, 8]
        assert "2 of its lines have more or fewer values than its first line has names" in done.err
        assert "row 3 ('1,1001,1775000000,Doe, Jane')" in done.err


def test_a_text_without_names_of_columns_says_so(run, model_dir):
    write("a.csv", "1,7,1760000000\n1,8,1760000001\n")
    done = run("score", "a.csv", "recs.parquet", "--model", model_dir)
    assert (done.code, "write a line with the names of the columns above it" in done.err) == (3, True), done.err


def test_a_value_that_is_no_utf8_is_null():
    write(
        "a.csv", b"user_id,video_id,timestamp,device_type\n" + b"1,7,1760000000,tv\n" * 9000 + b"1,8,1760000000,\xff\n"
    )
    assert events("a.csv")["device_type"].null_count() == 1


def test_strict_takes_a_text(run, model_dir):
    write("a.csv", "user_id,video_id,timestamp\n1,1000,1775000000\n1,1001,1775000001\n")
    done = run("score", "a.csv", "recs.parquet", "--model", model_dir, "--strict", "--min-match", "0")
    assert done.code == 0, done.err
    assert "faster is Parquet" in str(done.summary["warnings"]), "it is said all the same"


def shell(run, model_dir, file, command):
    """Run the shell command of a file's error; then its result is scored."""
    done = run("score", file, "recs.parquet", "--model", model_dir)
    assert (done.code, f"with {command} < {shlex.quote(file)} > " in done.err) == (3, True), done.err
    said = done.err[done.err.index(f"{command} <") :].splitlines()[0]
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"no {command} here")
    subprocess.run(["/bin/sh", "-c", said], check=True)
    made = shlex.split(said)[-1]
    after = run("score", made, "recs.parquet", "--model", model_dir, "--min-match", "0")
    assert after.code == 0, after.err
    assert set(pl.read_parquet("recs.parquet")["user_id"]) == {1, 2}


@pytest.mark.parametrize(("encoding", "to"), [("latin-1", "ISO-8859-1"), ("utf-16", "UTF-16"), ("utf-16-be", "UTF-16")])
def test_a_text_of_another_encoding_is_converted_by_the_command_of_its_error(run, model_dir, encoding, to):
    text = EVENTS.with_columns(name=pl.lit("Jürgen")).write_csv()
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    write("it's b.csv", (mark + text).encode(encoding))
    shell(run, model_dir, "it's b.csv", f"iconv -f {to} -t UTF-8")


@pytest.mark.parametrize(
    ("name", "program", "packed"),
    [
        ("b.parquet.gz", "gunzip", gzip.compress),
        ("b.parquet", "gunzip", gzip.compress),
        ("b.csv.bz2", "bunzip2", bz2.compress),
        ("b.csv.xz", "unxz", lzma.compress),
        ("b.parquet.zst", "unzstd", lambda content: pa.compress(content, "zstd", asbytes=True)),
    ],
)
def test_what_is_packed_is_unpacked_by_the_command_of_its_error(run, model_dir, name, program, packed):
    EVENTS.write_parquet("same.parquet")
    content = Path("same.parquet").read_bytes() if ".parquet" in name else EVENTS.write_csv().encode()
    write(name, packed(content))
    shell(run, model_dir, name, program)


def test_bytes_0_in_a_text_are_removed_by_the_command_of_its_error(run, model_dir):
    write("a b.csv", EVENTS.write_csv().replace("2,7", "2\0,7"))
    shell(run, model_dir, "a b.csv", r"tr -d '\000'")


def test_a_damaged_file_of_a_folder_is_named():
    write("log/a.csv", EVENTS.write_csv())
    write("log/b.csv", b"PAR1")
    with pytest.raises(InputError, match=r"b\.csv: truncated"):
        scan("log", "INPUT")


def test_texts_among_parquet_files_are_left_out_and_named(caplog):
    write("log/a.csv", EVENTS.write_csv())
    EVENTS.write_parquet("log/b.parquet")
    EVENTS.write_parquet("log/c.PARQUET")
    EVENTS.write_parquet("log/000000_0")
    EVENTS.write_parquet("log/d.parquet.tmp")
    with caplog.at_level(logging.WARNING, "genrec_batch"):
        assert scan("log", "INPUT").rows == 9
    assert "2 files are left out for their names or formats: a.csv, d.parquet.tmp" in caplog.text
    write("log/e.parquet", EVENTS.write_csv())
    with pytest.raises(InputError, match=r"e\.parquet: CSV among Parquet files"):
        scan("log", "INPUT")


MADE_BY_COMMAND = {
    "a.feather": lambda file: pa.feather.write_feather(EVENTS.to_arrow(), file),
    "a.orc": lambda file: pa.orc.write_table(EVENTS.to_arrow(), file),
    "a.avro": EVENTS.write_avro,
    "a.json": EVENTS.write_json,
    "it's a.csv": EVENTS.write_csv,
    "a.tsv": lambda file: EVENTS.write_csv(file, separator="\t"),
    "a.jsonl": EVENTS.write_ndjson,
    "a.parquet": EVENTS.write_ndjson,
}


@pytest.mark.parametrize("name", MADE_BY_COMMAND)
def test_the_command_of_a_message_makes_a_log_that_is_scored(run, model_dir, caplog, name):
    MADE_BY_COMMAND[name](name)
    done = run("score", name, "before.parquet", "--model", model_dir)
    if done.code == 0:  # read, with the advice in the log
        assert len(pl.read_parquet("before.parquet"))
    said = done.err + caplog.text
    scored_after(run, model_dir, said)


def scored_after(run, model_dir, said, *more):
    command = said[said.index("python -c") :].splitlines()[0].replace("python", sys.executable, 1)
    if "and name the columns" in command:
        command = command[: command.index(" and name the columns")]
    there = set(Path().iterdir())
    subprocess.run(["/bin/sh", "-c", command], check=True)
    (made,) = set(Path().iterdir()) - there
    done = run("score", made.name, "after.parquet", "--model", model_dir, *more)
    assert done.code == 0, done.err
    assert set(pl.read_parquet("after.parquet")["user_id"]) == {1, 2}


@pytest.mark.parametrize("separator", [",", ";"])
def test_the_command_keeps_what_a_text_holds(caplog, separator):
    lines = ["user_id,video_id,timestamp,watch_duration", "007,1,2026-04-30T10:00:00,2", "8,2,2026-04-30T10:00:01,3.5"]
    write("a.csv", "\n".join(lines).replace(",", separator).replace(".", "," if separator == ";" else "."))
    with caplog.at_level(logging.INFO, "genrec_batch"):
        read = events("a.csv")
    said = caplog.text
    command = said[said.index("python -c") :].splitlines()[0].replace("python", sys.executable, 1)
    subprocess.run(["/bin/sh", "-c", command], check=True)
    assert read["user_id"].to_list() == ["007", "8"]
    assert events("a.parquet").equals(read)


def test_movielens_lines_are_converted_and_named(run, model_dir):
    write("ratings.dat", "".join(f"{u}::{v}::5::{t}\n" for u, v, t in EVENTS.iter_rows()))
    done = run("score", "ratings.dat", "before.parquet", "--model", model_dir)
    assert (done.code, "values with '::' between them" in done.err) == (3, True), done.err
    write("s.toml", 'user_id = "column_1"\nvideo_id = "column_2"\ntimestamp = "column_4"\n')
    scored_after(run, model_dir, done.err, "--schema", "s.toml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n<!DOCTYPE html><html>sign in", r"web page \(HTML\)"),
        (b"<?xml version='1.0'?><Error>", "XML, such as the answer of a store"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of git-lfs.*git lfs pull"),
        (b"PARE" + b"x" * 100 + b"PARE", "footer is encrypted"),
        (b"PK\x03\x04abc", "zip archive or an Excel file"),
        (b"BZh91AY", "bunzip2"),
        (b"SQLite format 3\0", "SQLite"),
        (b"\xff\xfeu\0s\0", "UTF-16; convert it with iconv"),
        (b"\x00\x01\x02binary", "neither Parquet nor a text"),
        (b"one column\nof words\n", "its first line .* has no comma"),
        (b"PAR1 and no end", "truncated or damaged"),
    ],
)
def test_what_is_no_table_is_told_apart_and_never_read_as_csv(content, said):
    for name in ("a.parquet", "a.csv", "a"):
        write(name, content)
        with pytest.raises(InputError, match=said) as raised:
            scan(name, "INPUT")
        assert "scan_csv" not in str(raised.value)


def test_a_line_that_is_no_json_object_is_one_reject_in_its_place(run, model_dir):
    rows = ({"user_id": n % 5, "video_id": 1000 + n, "timestamp": 1_775_000_000 + n} for n in range(50))
    lines = [json.dumps({**row, "watch_duration": 1.5}) for row in rows]
    lines[3], lines[7] = (
        lines[3][:20],
        '{"user_id": 1, "video_id": 1000, "timestamp": 1775000000, "watch_duration": NaN}',
    )
    write("a.jsonl", b"\xef\xbb\xbf" + "\n\n".join(lines).encode() + b'\n{"user_id": 4, "vid')
    write("b.jsonl.gz", gzip.compress(Path("a.jsonl").read_bytes()))
    for name in ("a.jsonl", "b.jsonl.gz"):
        rejects = ["--rejects", "rejects.parquet", "--max-rejects", "0.1"]
        done = run("score", name, f"{name}.parquet", "--model", model_dir, *rejects)
        assert done.code == 0, done.err
        assert (done.summary["events"], done.summary["rejected_rows"]) == (49, 2)
        assert pl.read_parquet("rejects.parquet")["row"].to_list() == [3, 50]
        assert "2 of its lines are no JSON object, and are rejected, such as row 3" in done.err


def test_ids_of_json_beyond_64_bits_are_texts():
    large = [2**63 + 1, 2**64 + 2, 3]
    rows = ({"user_id": id_, "video_id": 1, "timestamp": 1_775_000_000} for id_ in large)
    write("a.jsonl", "\n".join(map(json.dumps, rows)))
    assert events("a.jsonl")["user_id"].to_list() == [str(id_) for id_ in large]


def test_objects_over_several_lines_name_the_command(run, model_dir):
    write("a.json", "\n".join(json.dumps(row, indent=1, default=str) for row in EVENTS.to_dicts()))
    done = run("score", "a.json", "recs.parquet", "--model", model_dir)
    assert (done.code, "with jq -c . < a.json > a.ndjson" in done.err) == (3, True), done.err
    if shutil.which("jq"):
        subprocess.run(["/bin/sh", "-c", "jq -c . a.json > a.ndjson"], check=True)
        assert run("score", "a.ndjson", "recs.parquet", "--model", model_dir, "--min-match", "0").code == 0


def test_a_line_of_excel_above_the_names_is_told(run, model_dir):
    write("a.csv", "sep=;\n" + EVENTS.write_csv(separator=";"))
    done = run("score", "a.csv", "recs.parquet", "--model", model_dir)
    command = re.search(r"sed -i 1d a\.csv", done.err)
    assert (done.code, command is not None) == (3, True), done.err
    subprocess.run(["/bin/sh", "-c", command[0]], check=True)
    assert run("score", "a.csv", "recs.parquet", "--model", model_dir).code == 0


def test_names_once_more_in_the_middle_of_a_text_are_no_event():
    text = EVENTS.write_csv()
    write("a.csv", text + text)
    assert events("a.csv")["user_id"].to_list() == [1, 1, 2] * 2
