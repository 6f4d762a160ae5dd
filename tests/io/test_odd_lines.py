"""`odd_lines`: lines of texts that are no rows are rejects of their own, with their text; and copies on a full disk."""

from __future__ import annotations

import errno
import json
import re
import subprocess

import polars as pl
import pytest

from genrec_batch.io import odd_lines, text

ROWS = [{"user_id": n % 5, "video_id": 1000 + n, "timestamp": 1_775_000_000 + n} for n in range(60)]


@pytest.fixture
def rejects(run, model_dir):
    def call(*arguments):
        done = run(
            *("score", *arguments, "--model", model_dir, "--rejects", "rejects.parquet", "--max-rejects", "0.2"),
            *("--min-match", "0", "--if-exists", "overwrite"),
        )
        assert done.code == 0, done.err
        return done, pl.read_parquet("rejects.parquet").select("input", "reason", "row", "values").rows()

    return call


def csv(*odd):
    lines = pl.DataFrame(ROWS).write_csv().splitlines()
    for at, line in odd:
        lines.insert(at, line)
    return "\n".join(lines)


def test_an_odd_line_of_a_text_is_told_with_its_text(rejects, tmp_path):
    names = "user_id,video_id,timestamp"
    (tmp_path / "a.csv").write_text(csv((3, "junk, line"), (9, "1,2,3,4"), (20, names), (30, ",1001,1775000000")))
    done, rows = rejects("a.csv", "recs.parquet")
    width = "line has another number of values than the first line has names"
    assert rows == [
        ("events", width, 2, json.dumps({"line": "junk, line"})),
        ("events", width, 8, json.dumps({"line": "1,2,3,4"})),
        ("events", "line is the first line once more", 19, json.dumps({"line": names})),
        ("events", "user_id is null", 29, '{"timestamp":1775000000,"user_id":null,"video_id":1001}'),
    ]
    assert done.summary["rejected_because"] == {width: 2, "line is the first line once more": 1, "user_id is null": 1}


def test_an_odd_line_of_json_and_of_a_side_table_is_told_with_its_text(rejects, tmp_path):
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "a.ndjson").write_text("\n".join([*lines[:7], "{broken", *lines[7:], "[1, 2]"]))
    users = [f"{n},{n}" for n in range(20)]
    (tmp_path / "u.csv").write_text("\n".join(["user_id,level", *users, "7"]))
    _, rows = rejects("a.ndjson", "recs.parquet", "--users", "u.csv")
    assert rows == [
        ("events", "line is no JSON object", 7, json.dumps({"line": "{broken"})),
        ("events", "line is no JSON object", 61, json.dumps({"line": "[1, 2]"})),
        ("users", "line has another number of values than the first line has names", 20, json.dumps({"line": "7"})),
    ]


def test_lines_beyond_the_kept_ones_and_long_ones_are_cut(rejects, tmp_path, monkeypatch):
    monkeypatch.setattr(odd_lines, "KEPT_LINES", 1)
    monkeypatch.setattr(odd_lines, "KEPT_SIGNS", 5)
    (tmp_path / "a.csv").write_text(csv((3, "long line"), (9, "another")))
    assert [values for *_, values in rejects("a.csv", "recs.parquet")[1]] == [json.dumps({"line": "long "}), "{}"]


@pytest.mark.parametrize("flag", ["", "--users"])
def test_a_copy_that_no_disk_takes_names_its_folder_and_the_flag(run, model_dir, log_file, tmp_path, monkeypatch, flag):
    (tmp_path / "a.csv").write_text(csv())
    (tmp_path / "spill").mkdir()

    def full(file, how, target, open_file):
        del file, how, open_file
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(text, "convert", full)
    inputs = [log_file, "recs.parquet", "--users", "a.csv"] if flag else ["a.csv", "recs.parquet"]
    done = run("score", *inputs, "--model", model_dir, "--spill-dir", "spill")
    assert done.code == 75, done.err
    assert f"{flag or 'INPUT'} a.csv: a text is read from a copy as Parquet, and the disk of spill/" in done.err
    assert "name a folder on another disk with --spill-dir" in done.err


@pytest.mark.parametrize("name", ["middle", "last"])
def test_lines_that_a_quote_swallows_are_each_a_reject_and_the_rows_behind_them_stay(run, model_dir, tmp_path, name):
    rows = [(n % 5, 1000 + n, 1_775_000_000 + n, f"c{n}") for n in range(400)]
    lines = ["user_id,video_id,timestamp,comment_text", *(",".join(map(str, row)) for row in rows)]
    if name == "last":  # the row that swallows has the right width
        lines[101], lines[111] = '1,1001,1775000000,"open', '1,1001,1775000000,close"'
    else:
        lines[101], lines[111] = '1,"1001,1775000000,open', '1,1001",1775000000,close'
    lines[201] = "odd"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    command = [
        "score",
        "a.csv",
        "recs.parquet",
        "--model",
        model_dir,
        "--min-match",
        "0",
        "--rejects",
        "rejects.parquet",
    ]
    done = run(*command)
    assert done.code == 0, done.err
    assert (done.summary["events"], done.summary["rejected_rows"]) == (388, 12)
    rejects = pl.read_parquet("rejects.parquet")
    assert rejects["row"].to_list() == [*range(100, 111), 200]
    assert json.loads(rejects["values"][5])["line"] == lines[106]
    assert run(*command, "--max-rejects", "0.02", "--if-exists", "overwrite").code == 6


def test_columns_without_a_name_get_some_by_the_command_of_the_error(run, model_dir, tmp_path):
    (tmp_path / "a.csv").write_text("".join(f"{line},,\n" for line in csv().splitlines()))
    command = ["score", "a.csv", "recs.parquet", "--model", model_dir, "--min-match", "0"]
    done = run(*command)
    advice = re.search(r"sed -i '.*?' a\.csv", done.err)
    assert (done.code, "2 columns have no name" in done.err) == (3, True), done.err
    subprocess.run(["/bin/sh", "-c", advice[0]], check=True)
    assert run(*command).code == 0


def test_two_columns_of_one_name_are_told_apart_by_the_command_of_the_error(run, model_dir, tmp_path):
    lines = csv().splitlines()
    (tmp_path / "a.csv").write_text("\n".join([f"{lines[0]},user_id", *(f"{line},9" for line in lines[1:])]))
    command = ["score", "a.csv", "recs.parquet", "--model", model_dir, "--min-match", "0"]
    done = run(*command)
    advice = re.search(r"sed -i '.*?' a\.csv", done.err)
    assert (done.code, "two columns are named 'user_id'" in done.err) == (3, True), done.err
    subprocess.run(["/bin/sh", "-c", advice[0]], check=True)
    assert run(*command).code == 0
    assert set(pl.read_parquet("recs.parquet")["user_id"]) == set(range(5))


def test_lines_of_comments_are_removed_by_the_command_of_the_error(run, model_dir, tmp_path):
    (tmp_path / "a.csv").write_text("# exported\n# today\n" + csv())
    command = ["score", "a.csv", "recs.parquet", "--model", model_dir, "--min-match", "0"]
    done = run(*command)
    assert (done.code, "remove them with grep -v '^#' < a.csv > new-a.csv" in done.err) == (3, True), done.err
    subprocess.run(["/bin/sh", "-c", "grep -v '^#' < a.csv > new-a.csv"], check=True)
    assert run("score", "new-a.csv", *command[2:]).code == 0


def test_commas_between_json_lines_are_no_fault_and_no_command_writes_over_its_input(run, model_dir, tmp_path):
    (tmp_path / "a.ndjson").write_text(",\n".join(map(json.dumps, ROWS)))
    command = ["recs.parquet", "--model", model_dir, "--min-match", "0"]
    done = run("score", "a.ndjson", *command)
    assert (done.code, done.summary["rejected_rows"]) == (0, 0), done.err
    (tmp_path / "b.ndjson").write_text("\n".join(json.dumps(row, indent=1) for row in ROWS))
    assert "with jq -c . < b.ndjson > new-b.ndjson" in run("score", "b.ndjson", "other.parquet", *command[1:]).err
