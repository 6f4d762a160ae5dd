"""Incremental runs: whose input is the same keeps his rows, and the output equals that of a full run."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from genrec_batch.core.errors import RetryError
from genrec_batch.io import sealed_file
from genrec_batch.model.weights import PRESETS, initial_weights, save
from genrec_batch.scoring.previous import Previous
from genrec_batch.scoring.shortfalls import nested
from tests.conftest import START

AS_OF = ["--as-of", "2026-06-01", "--shard-users", "7", "--precision", "fp32", "--engine", "onnxruntime"]
from tests.logs import catalog_of


@pytest.fixture
def nights(log, model_dir, run):
    """Two nights of one log: in the second some users watch more; `call` scores one and returns its summary."""
    log.write_parquet("night1.parquet")
    new = log.head(3).with_columns(
        user_id=pl.Series([103, 120, 999]), timestamp=pl.lit(START) + pl.duration(days=40), watch_percentage=0.5
    )
    pl.concat([log, new]).write_parquet("night2.parquet")

    def call(night, target, *flags):
        done = run("score", f"night{night}.parquet", target, "--model", model_dir, *AS_OF, *flags)
        assert done.code == 0, done.err
        return done

    return call


@pytest.mark.parametrize(("first", "second"), [("a.parquet", "b.parquet"), ("a", "b"), ("a", "b.parquet")])
@pytest.mark.parametrize("layout", ["long", "nested"])
def test_only_changed_users_are_scored_and_the_rows_are_those_of_a_full_run(nights, first, second, layout):
    flags = ["--layout", layout]
    nights(1, first, *flags)
    summary = nights(2, second, "--previous", first, *flags).summary
    assert (summary["users"], summary["carried_users"], summary["scored_users"]) == (41, 38, 3)
    nights(2, "full.parquet", *flags)
    rows = pl.read_parquet(second if second.endswith(".parquet") else f"{second}/part-*.parquet")
    full = pl.read_parquet("full.parquet")
    if layout == "nested":
        lists = [
            name for name, kind in full.schema.items() if kind.is_nested() and kind != full.schema["feature_scores"]
        ]
        rows, full = rows.explode(lists), full.explode(lists)
    floats = [name for name, kind in full.schema.items() if kind == pl.Float32]
    assert rows.drop(floats).equals(full.drop(floats))
    for name in floats:
        assert (rows[name] - full[name]).abs().max() < 1e-5
    assert rows.schema == full.schema


def test_the_same_night_again_scores_nobody(nights):
    nights(1, "a")
    summary = nights(1, "b", "--previous", "a").summary
    assert (summary["carried_users"], summary["scored_users"]) == (40, 0)
    assert pl.read_parquet("a/part-*.parquet").equals(pl.read_parquet("b/part-*.parquet"))
    assert nights(1, "c", "--previous", "b").summary["carried_users"] == 40, "what was carried can be carried on"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--top-k", "5"], "config.top_k"),
        (["--include-seen"], "config.include_seen"),
        (["--weights", "engagement=1"], "config.weights"),
    ],
)
def test_other_options_score_everybody_and_say_why(nights, flags, said):
    nights(1, "a")
    done = nights(1, "b", "--previous", "a", *flags)
    assert (done.summary["scored_users"], done.summary.get("carried_users", 0)) == (40, 0)
    assert said in done.err


def test_rows_computed_without_numba_are_not_carried_on_with_it(run, log, tmp_path, monkeypatch):
    torch_engine = pytest.importorskip("genrec_batch.engines.torch.engine")
    pytest.importorskip("numba")
    if not torch_engine.fast_int8():
        pytest.skip("this processor has no AVX-512 VNNI")
    log.write_parquet("night.parquet")
    config = replace(PRESETS["tiny"], heads=4)  # of 16 numbers, which kernels take
    save(tmp_path / "m", config, initial_weights(config, 3), trained=True, card="for tests\n")
    catalog_of(log, vocabulary=config.vocabulary).write(tmp_path / "m" / "catalog.parquet")
    flags = ["--model", tmp_path / "m", "--as-of", "2026-06-01", "--engine", "torch", "--precision", "bf16"]
    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, "find_spec", lambda _: None)
        done = run("score", "night.parquet", "a", *flags)
        assert "numba is not installed" in done.err
    again = run("score", "night.parquet", "b", "--previous", "a", *flags)
    assert (again.code, again.summary["scored_users"]) == (0, 40)
    assert "arithmetic" in again.err
    assert run("score", "night.parquet", "c", "--previous", "b", *flags).summary["carried_users"] == 40


def test_another_moment_changes_what_the_model_reads_of_everybody(nights):
    nights(1, "a")
    assert nights(1, "b", "--previous", "a", "--as-of", "2026-06-02").summary["scored_users"] == 40


@pytest.fixture
def by_day(log, model_dir, run):
    """Scores the log as it is after some days, with its last timestamp as as-of: each day one more user watches."""

    def call(days, target, *flags, code=0):
        end = log["timestamp"].max()
        new = pl.DataFrame(
            {"user_id": range(100, 101 + days), "timestamp": [end + dt.timedelta(days=d) for d in range(days + 1)]}
        )
        watched = log.head(len(new)).with_columns(
            user_id=new["user_id"], timestamp=new["timestamp"].cast(log.schema["timestamp"])
        )
        pl.concat([log, watched]).write_parquet(f"day{days}.parquet")
        done = run("score", f"day{days}.parquet", target, "--model", model_dir, *AS_OF[2:], *flags)
        assert done.code == code, done.err
        return done

    return call


def test_carry_for_keeps_users_without_new_events_until_their_rows_are_too_old(by_day):
    def counts(days):
        done = by_day(days, f"n{days}", "--previous", f"n{days - 1}", "--carry-for", "2d")
        return [done.summary[name] for name in ("scored_users", "carried_users", "carried_of_earlier_as_of")]

    by_day(0, "n0")
    assert counts(1) == [1, 39, 39]
    assert counts(2) == [1, 39, 39], "the rows of two days ago are carried once more"
    assert counts(3) == [38, 2, 2], "rows are as old as their as-of, however often they were carried"
    assert counts(4) == [2, 38, 38], "whose rows are of day 1 is scored again, the rows of day 3 are young"


def test_rows_that_are_all_too_old_are_said_to_be(by_day):
    by_day(0, "n0")
    done = by_day(9, "n9", "--previous", "n0", "--carry-for", "2d")
    assert (done.summary["carried_users"], done.summary["changed_only_by_as_of"]) == (0, 31)
    assert (
        "31 users without any change were scored again: their rows are older than --carry-for"
        in done.summary["warnings"][-1]
    )


def test_rows_that_were_carried_are_those_of_the_earlier_night(by_day):
    by_day(0, "n0.parquet")
    by_day(1, "n1.parquet", "--previous", "n0.parquet", "--carry-for", "36h")
    rows = [pl.read_parquet(f"n{night}.parquet").filter(pl.col("user_id") > 101) for night in (0, 1)]
    assert rows[0].equals(rows[1])
    by_day(1, "full.parquet")
    done = by_day(1, "again.parquet", "--previous", "n1.parquet")
    assert done.summary["carried_users"] == 1, "a run that carries nothing old scores them again"
    again, full = pl.read_parquet("again.parquet"), pl.read_parquet("full.parquet")
    assert again.select("user_id", "rank", "video_id").equals(full.select("user_id", "rank", "video_id"))
    assert not rows[1]["log_prob"].equals(full.filter(pl.col("user_id") > 101)["log_prob"])


def test_without_carry_for_a_run_that_carries_nobody_says_why_and_the_advice_works(by_day):
    by_day(0, "n0")
    done = by_day(1, "n1", "--previous", "n0")
    assert (done.summary["carried_users"], done.summary["changed_only_by_as_of"]) == (0, 39)
    said = done.summary["warnings"][-1]
    assert said.startswith("39 users without any change were scored again: as-of moved, and with it slot 1008")
    advice = said[said.index("--carry-for") :].split()[:2]
    assert by_day(1, "n1b", "--previous", "n0", *advice).summary["carried_users"] == 39


def test_nobody_in_common_is_said(nights, log):
    nights(1, "a")
    log.with_columns(pl.col("user_id") + 1000).write_parquet("night2.parquet")
    assert "nobody keeps rows, since what the model reads of every user" in nights(2, "b", "--previous", "a").err


def test_a_run_that_carries_old_rows_is_not_resumed_with_others(by_day):
    by_day(0, "n0")
    by_day(1, "n1")
    by_day(2, "n2", "--previous", "n1", "--carry-for", "2d")
    again = ["--carry-for", "2d", "--if-exists", "resume"]
    assert by_day(2, "n2", "--previous", "n1", *again).summary["already_complete"]
    assert "previous" in by_day(2, "n2", "--previous", "n0", *again, code=2).err


def test_a_later_as_of_is_no_age(by_day):
    by_day(1, "n1")
    assert by_day(0, "n0", "--previous", "n1", "--carry-for", "9d").summary["carried_of_earlier_as_of"] == 0


def test_carry_for_goes_with_previous(run, log_file):
    done = run("score", log_file, "o", "--carry-for", "7d")
    assert (done.code, "--carry-for goes with --previous" in done.err) == (2, True)
    done = run("score", log_file, "o", "--previous", "n", "--carry-for", "a week")
    assert (done.code, "--carry-for 'a week': a span of time" in done.err) == (2, True)


def test_a_changed_profile_scores_that_user_again(nights, log):
    ids = log["user_id"].unique().sort()
    profiles = pl.DataFrame({"user_id": ids, "age": range(len(ids))})
    profiles.write_parquet("users1.parquet")
    changed = profiles.with_columns(age=pl.when(pl.col("user_id") == 105).then(77).otherwise("age"))
    changed.write_parquet("users2.parquet")
    nights(1, "a", "--users", "users1.parquet")
    summary = nights(1, "b", "--previous", "a", "--users", "users2.parquet").summary
    assert (summary["carried_users"], summary["scored_users"]) == (39, 1)


def test_what_is_no_output_of_ours_is_refused(run, log_file, model_dir, nights):
    nights(1, "a.parquet")
    nights(2, "b.parquet")
    for path in ("nowhere", str(log_file)):
        done = run("score", log_file, "c.parquet", "--model", model_dir, "--previous", path)
        assert (done.code, f"--previous {path}: not an output of genrec-batch score" in done.err) == (3, True)
    Path("b.parquet.fingerprints").replace("a.parquet.fingerprints")
    done = run("score", log_file, "c.parquet", "--model", model_dir, "--previous", "a.parquet")
    assert (done.code, done.summary["carried_users"]) == (0, 0), "fingerprints of another output say nothing of this"
    assert "a.parquet.fingerprints is that of another run" in done.err


PART = "part-00001.parquet"


def flip(path, place=0.4):
    """Change one byte of a file."""
    whole = bytearray(path.read_bytes())
    whole[int(len(whole) * place)] ^= 0xFF
    path.write_bytes(whole)


def reword(path, old, new):
    """Damage the metadata at a file's end, which no page's checksum covers."""
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-50])


def only(path, keep, *, metadata=True):
    """Write some of a file's rows again, under its own metadata or as another program would."""
    kept = {key: value for key, value in pq.read_metadata(path).metadata.items() if key != b"ARROW:schema"}
    changed = keep(pl.DataFrame(pq.read_table(path))).to_arrow(compat_level=pl.CompatLevel.oldest())
    about = kept if metadata else {b"genrec.run_id": kept[b"genrec.run_id"]}
    pq.write_table(changed.replace_schema_metadata(about), path)


def sealed(path, keep):
    """Write some of a file's rows again, as a run of ours with a fault would."""
    only(path, keep)
    about = {**pq.read_metadata(path).metadata, **sealed_file.OPEN}
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pq.ParquetWriter(path, (table := pq.read_table(path)).schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({key: value for key, value in about.items() if key != b"ARROW:schema"})
    sealed_file.seal(Path(path))


def flip_the_last(path):
    """Change the footer's length."""
    path.write_bytes(path.read_bytes()[:-8] + b"\x01\x00\x00\x00PAR1")


def without(folder, name):
    """Take a part and its entry away: the manifest's list is that of the files again."""
    (folder / name).unlink()
    manifest = json.loads((folder / "_manifest.json").read_text())
    manifest["files"] = [entry for entry in manifest["files"] if entry["file"] != name]
    (folder / "_manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / PART).unlink(), f"{PART} is missing or not what"),
        (
            lambda folder: shutil.copy(folder / PART, folder / "part-00099.parquet"),
            "part-00099.parquet is in the folder and",
        ),
        (
            lambda folder: only(folder / PART, lambda rows: rows.with_columns(score=pl.lit(-1.0, pl.Float32))),
            f"bytes of {PART}, which has",
        ),
        (lambda folder: flip(folder / PART), f"{PART} is missing or not what"),
        (lambda folder: truncate(folder / PART), f"{PART} is missing or not what"),
        (lambda folder: flip(folder / "_fingerprints", 0.1), "_fingerprints is damaged"),
        (lambda folder: truncate(folder / "_fingerprints"), "_fingerprints is damaged"),
        (
            lambda folder: reword(folder / "_fingerprints", b'{"arithmetic"', b'x"arithmetic"'),
            "_fingerprints is damaged",
        ),
        (lambda folder: reword(folder / "_fingerprints", b"parquet-cpp", b"parquet-CPP"), "_fingerprints is damaged"),
        (lambda folder: (folder / "_manifest.json").write_text("{}"), "it is not a finished output"),
        (lambda folder: (folder / "_fingerprints").unlink(), "_fingerprints is missing"),
        (
            lambda folder: sealed(folder / "_fingerprints", lambda rows: rows.drop("as_of")),
            "_fingerprints has other columns than this version writes",
        ),
        (lambda folder: without(folder, PART), "rows and its metadata says"),
    ],
)
def test_a_folder_that_is_not_as_its_run_left_it_scores_everybody_with_a_warning(nights, spoil, named):
    nights(1, "a")
    spoil(Path("a"))
    assert_scored_in_full(nights, "a", named)


def assert_scored_in_full(nights, earlier, named):
    done = nights(2, "b.parquet", "--previous", earlier)
    warnings = [warning for warning in done.summary["warnings"] if f"--previous {earlier}: " in warning]
    assert named in warnings[0]
    assert warnings[0].endswith("so no row is carried over and all users are scored")
    assert (done.summary["scored_users"], done.summary["carried_users"]) == (41, 0)
    nights(2, "full.parquet")
    assert pl.read_parquet("b.parquet").equals(pl.read_parquet("full.parquet"))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda: flip(Path("a.parquet")), "a.parquet is damaged"),
        (lambda: truncate(Path("a.parquet")), "it is not a finished output"),
        (lambda: flip(Path("a.parquet.fingerprints"), 0.1), "a.parquet.fingerprints is damaged"),
        (lambda: only("a.parquet", lambda rows: rows), "a.parquet is damaged"),
        (lambda: reword(Path("a.parquet"), b"parquet-cpp", b"parquet-CPP"), "a.parquet is damaged"),
        (lambda: flip_the_last(Path("a.parquet")), "it is not a finished output"),
        (lambda: sealed("a.parquet", lambda rows: rows.filter(pl.col("user_id") != 105)), "rows and its metadata says"),
        (
            lambda: only("a.parquet", lambda rows: rows, metadata=False),
            "a.parquet was rewritten by another program",
        ),
        (
            lambda: sealed("a.parquet", lambda rows: pl.concat([rows.slice(0, 10), rows.head(len(rows) - 10)])),
            "user 100 has too many or too few rows",
        ),
        (
            lambda: sealed("a.parquet", lambda rows: rows.with_columns(user_id=pl.col("user_id").replace(105, 5))),
            "rows of users without a fingerprint",
        ),
    ],
)
def test_a_file_that_is_not_as_its_run_left_it_scores_everybody_with_a_warning(nights, spoil, named):
    nights(1, "a.parquet")
    spoil()
    assert_scored_in_full(nights, "a.parquet", named)


def test_rows_that_go_while_they_are_read_are_scored_by_the_same_command_again(nights, run, model_dir, monkeypatch):
    nights(1, "a.parquet")
    compared = Previous.compared
    command = ["score", "night2.parquet", "b", "--model", model_dir, *AS_OF, "--previous", "a.parquet"]

    def later(previous, *arguments):
        only("a.parquet", lambda rows: rows.filter(pl.col("user_id") != 105))
        return compared(previous, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Previous, "compared", later)
        done = run(*command)
    assert done.code == 75, (done.code, done.err)
    assert "--previous a.parquet: it has changed while it was read" in done.err
    done = run(*command)
    assert (done.code, done.summary["users"]) == (0, 41), done.err


def test_an_earlier_output_that_is_replaced_after_its_check_is_another_time(nights, run, model_dir, monkeypatch):
    nights(1, "a")
    compared = Previous.compared

    def later(previous, *arguments):
        part = Path("a", PART)
        rows = pl.read_parquet(part).with_columns(score=pl.lit(-1.0, pl.Float32))  # as many rows for each user
        rows.write_parquet("other.parquet")
        Path("other.parquet").replace(part)
        return compared(previous, *arguments)

    monkeypatch.setattr(Previous, "compared", later)
    done = run("score", "night2.parquet", "b", "--model", model_dir, *AS_OF, "--previous", "a")
    assert (done.code, f"a/{PART} changed while it was read" in done.err) == (75, True), done.err
    assert not Path("b").exists()


@pytest.mark.parametrize("layout", ["long", "nested"])
def test_rows_that_did_not_come_back_are_noticed(nights, layout):
    nights(1, "a", "--layout", layout)
    previous = Previous.open("a")
    rows, items_N = previous.rows_of(previous.ids[3:9])
    assert rows["user_id"].unique(maintain_order=True).to_list() == previous.ids[3:9].to_list()
    assert items_N.tolist() == [10] * 6
    without_one = replace(previous, rows=previous.rows.filter(pl.col("user_id") != 105))
    with pytest.raises(RetryError, match="rows of user 105 are missing"):
        without_one.rows_of(previous.ids[3:9])


@pytest.mark.parametrize("name", ["a", "a.parquet"])
def test_an_output_can_take_the_place_of_the_one_it_carries_from(nights, name):
    nights(1, name)
    summary = nights(2, name, "--previous", name, "--if-exists", "overwrite").summary
    assert (summary["carried_users"], summary["scored_users"], summary["rows"]) == (38, 3, 410)


def test_videos_of_another_type_are_scored_again(nights, log):
    nights(1, "a")
    log.with_columns(pl.col("video_id").cast(pl.Int32)).write_parquet("night1.parquet")
    done = nights(1, "b", "--previous", "a")
    assert done.summary["scored_users"] == 40
    assert "video_id (Int64, now Int32)" in done.err


COUNTED = ("users", "users_without_events", "cold_start_users", "unknown_events", "short_users", "rows")


@pytest.mark.parametrize("flags", [[], ["--layout", "nested"], ["--candidates", "given.parquet"]])
def test_counts_are_those_of_a_full_run(nights, log, flags):
    """Some users know no video of the catalog, are in the table of users alone, or get fewer videos than asked for."""
    ids = log["user_id"].unique().sort()
    pl.DataFrame({"user_id": [*ids, 7, 8], "age": range(len(ids) + 2)}).write_parquet("users.parquet")
    given = pl.DataFrame({"user_id": ids, "video_id": [[1000, 1001, 1002, 1003]] * len(ids)})
    given.write_parquet("given.parquet")
    strange = log.head(30).with_columns(
        video_id=pl.int_range(30, dtype=pl.Int64), user_id=pl.int_range(300, 330, dtype=pl.Int64) // 3
    )
    old = pl.concat([log.filter(pl.col("user_id") > 104), strange])
    changed = log.head(1).with_columns(user_id=pl.lit(120, pl.Int64), timestamp=pl.lit(START) + pl.duration(days=40))
    old.write_parquet("night1.parquet")
    pl.concat([old, changed]).write_parquet("night2.parquet")
    flags = [*flags, "--users", "users.parquet", "--top-k", "110"]
    nights(1, "a", *flags)
    done = nights(2, "b", "--previous", "a", *flags)
    full = nights(2, "full", *flags).summary
    names = [*COUNTED, "shortfalls", *(["seen_candidates"] if "--candidates" in flags else [])]
    assert full["short_users"] > 1
    assert "--candidates" in flags or full["cold_start_users"] > 1
    assert {name: done.summary[name] for name in names} == {name: full[name] for name in names}
    assert done.summary["scored_users"] == 1
    counts = json.loads(json.loads(Path("b/_manifest.json").read_text())["metadata"]["genrec.counts"])
    assert counts.pop("changed_only_by_as_of") == 0
    counts = nested(counts)
    assert counts == {**{name: full[name] for name in names if name in counts}, "carried_users": full["users"] - 1}
    assert any(line.split() == ["carried", "over", str(full["users"] - 1)] for line in done.err.splitlines())
