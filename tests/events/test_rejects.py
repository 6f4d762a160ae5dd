"""`rejects`, `times` and `lists`: one bad row costs one row, each reason has its count and its row, advice works."""

from __future__ import annotations

import datetime as dt
import json
import re
import resource
import time
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.events import lists
from genrec_batch.events.log import EventLog
from genrec_batch.io import read
from tests.conftest import small_log

START = 1_775_000_000  # April 2026
NOW = int(time.time())


def events(rows=200, **columns):
    log = pl.DataFrame(
        {
            "user_id": [f"u{i % 20}" for i in range(rows)],
            "video_id": [1000 + i % 30 for i in range(rows)],
            "timestamp": [START + 600 * i for i in range(rows)],
            "watch_duration": [float(i % 40) for i in range(rows)],
        }
    )
    return log.with_columns(**columns)


def with_bad(column, value, row=3):
    return pl.when(pl.int_range(pl.len()) == row).then(value).otherwise(column)


@pytest.fixture
def score(run, tmp_path):
    def call(log, *flags, schema=None):
        if log is not None:
            log.write_parquet("in.parquet")
        if schema is not None:
            (tmp_path / "s.toml").write_text(schema)
            flags = (*flags, "--schema", "s.toml")
        run("model", "init", "m", "--preset", "tiny")
        (tmp_path / "recs.parquet").unlink(missing_ok=True)
        return run("score", "in.parquet", "recs.parquet", "--model", "m", "--top-k", "2", "--engine", "torch", *flags)

    return call


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user_id", None, "user_id is null"),
        ("user_id", pl.lit(""), "user_id is empty"),
        ("video_id", None, "video_id is null"),
        ("timestamp", None, "timestamp is null"),
        ("timestamp", 0, "timestamp before 1990"),
        ("timestamp", -5, "timestamp before 1990"),
        ("timestamp", 4_080_000_000, "timestamp more than a day after now"),
        ("timestamp", START * 1000, "timestamp in ms, where most are in s"),
        ("user_id", pl.lit(" \t"), "user_id is empty"),
        ("timestamp", 253_402_214_400_000, "timestamp more than a day after now"),
    ],
)
def test_one_bad_row_is_one_reject_and_moves_nobody_else(score, column, value, reason):
    good = score(events())
    assert good.code == 0, good.err
    bad = score(events(**{column: with_bad(column, value)}), "--rejects", "rejects.parquet")
    assert bad.code == 0, bad.err
    assert bad.summary["rejected_because"] == {reason: 1}
    assert (bad.summary["rejected_rows"], bad.summary["as_of"]) == (1, good.summary["as_of"])
    assert reason in bad.err
    (row,) = pl.read_parquet("rejects.parquet").to_dicts()
    assert (row["input"], row["reason"], row["row"]) == ("events", reason, 3)
    assert row["file"].endswith("in.parquet")
    said = json.loads(row["values"])[column]
    assert said.strip() == "" if reason == "user_id is empty" else said == value


def test_rejects_of_several_files_have_their_file_and_row(score, tmp_path):
    folder = tmp_path / "in.parquet"
    folder.mkdir()
    log = events()
    log[:90].write_parquet(folder / "a.parquet")
    log[90:].with_columns(user_id=with_bad("user_id", None, row=7)).write_parquet(folder / "b.parquet")
    ran = score(None, "--rejects", "rejects.parquet")
    assert ran.code == 0, ran.err
    (row,) = pl.read_parquet("rejects.parquet").to_dicts()
    assert (row["file"].rsplit("/", 1)[1], row["row"]) == ("b.parquet", 7)


def test_more_than_the_share_is_exit_6_and_the_file_is_there(score, tmp_path):
    many = events(user_id=pl.when(pl.int_range(pl.len()) % 10 == 0).then(None).otherwise("user_id"))
    ran = score(many, "--rejects", "rejects.parquet")
    assert ran.code == 6
    assert "20 of 200 rows are rejected (user_id is null: 20), more than --max-rejects 0.05" in ran.err
    assert len(pl.read_parquet("rejects.parquet")) == 20
    assert not (tmp_path / "recs.parquet").exists()
    assert score(None, "--max-rejects", "0.2").code == 0


def test_a_clock_may_be_a_day_ahead(score):
    ahead = score(events(timestamp=with_bad("timestamp", NOW + 80_000)))
    assert ahead.summary["rejected_rows"] == 0
    assert score(events(timestamp=with_bad("timestamp", NOW + 90_000))).summary["rejected_rows"] == 1


def test_datetimes_are_held_to_the_same_span(score):
    moments = pl.from_epoch("timestamp").cast(pl.Datetime("us"))
    log = events().with_columns(timestamp=moments)
    log = log.with_columns(timestamp=with_bad("timestamp", dt.datetime(9999, 12, 31)))  # noqa: DTZ001
    ran = score(log)
    assert ran.summary["rejected_because"] == {"timestamp more than a day after now": 1}
    assert ran.summary["as_of"].startswith("2026")


def test_an_expression_that_fails_on_a_row_rejects_that_row(score):
    log = events(seconds=with_bad(pl.col("watch_duration").cast(pl.String), pl.lit("n/a"))).drop("watch_duration")
    ran = score(log, "--rejects", "rejects.parquet", schema='watch_duration = "CAST(seconds AS DOUBLE)"')
    assert ran.code == 0, ran.err
    assert ran.summary["rejected_because"] == {"watch_duration cannot be computed": 1}
    (row,) = pl.read_parquet("rejects.parquet").to_dicts()
    assert json.loads(row["values"])["seconds"] == "n/a"


def test_where_leaves_rows_out_that_are_no_rejects(score):
    log = events(is_click=pl.int_range(pl.len()) % 4 == 0)
    ran = score(log, schema='where = "is_click"')
    assert ran.code == 0, ran.err
    assert (ran.summary["events"], ran.summary["rejected_rows"], ran.summary["input_rows"]) == (50, 0, 200)
    same = score(log.filter("is_click"))
    assert same.summary["users"] == ran.summary["users"]
    assert ran.summary["filtered_rows"] == 150
    nulled = score(log, schema='video_id = "CASE WHEN is_click THEN video_id END"')
    assert (nulled.code, nulled.summary["events"], nulled.summary["rejected_rows"]) == (0, 50, 0), nulled.err
    assert score(log, schema='where = "watch_duration"').code == 3


@pytest.mark.parametrize(("clock", "code"), [(300, 3), (START + 3_600, 6)], ids=["1970", "a day behind"])
def test_a_clock_that_is_behind_is_named_where_it_calls_most_rows_future(score, monkeypatch, clock, code):
    with monkeypatch.context() as patched:
        patched.setattr(time, "time_ns", lambda: clock * 10**9)
        ran = score(events())
    said = re.search(r"this machine's clock is wrong, which says (\S+ \S+) UTC: set it", ran.err)
    assert (ran.code, said is not None) == (code, True), ran.err
    assert said[1].startswith(f"{dt.datetime.fromtimestamp(clock, dt.timezone.utc):%Y-%m-%d}")
    assert not Path("recs.parquet").exists()
    assert score(events()).code == 0
    few = score(events(user_id=with_bad(pl.col("user_id"), None, row=5)), "--max-rejects", "0")
    assert (few.code, "clock" in few.err) == (6, False)


def test_an_expression_over_a_null_is_a_null(score):
    ran = score(events(n=with_bad(pl.int_range(pl.len()), None)), schema='user_id = "n % 20"')
    assert ran.summary["rejected_because"] == {"user_id is null": 1}


def test_lists_of_a_user_become_events(score):
    wide = events().group_by("user_id", maintain_order=True).agg("video_id", "timestamp", "watch_duration")
    plain = score(wide)
    assert plain.code == 3
    advice = re.search(r"explode = \[.*?\]", plain.err.replace("\n", " "))
    ran = score(wide, schema=advice[0])
    assert ran.code == 0, ran.err
    assert (ran.summary["events"], ran.summary["rejected_rows"]) == (200, 0)
    rows = pl.read_parquet("recs.parquet")
    score(events().sort("user_id", maintain_order=True))
    assert pl.read_parquet("recs.parquet").drop("history_length").equals(rows.drop("history_length"))


def test_lists_of_unequal_length_and_empty_ones(score):
    wide = events(rows=800).with_columns(user_id=pl.int_range(pl.len()) // 10).group_by("user_id", maintain_order=True)
    wide = wide.agg("video_id", "timestamp")
    wide = wide.with_columns(
        video_id=pl.when(pl.col("user_id") == 5).then(pl.col("video_id").list.head(3)).otherwise("video_id"),
    ).with_columns(
        pl.when(pl.col("user_id") == 6).then(pl.lit([], pl.List(pl.Int64))).otherwise(n).alias(n)
        for n in ("video_id", "timestamp")
    )
    ran = score(wide, "--rejects", "rejects.parquet", schema='explode = ["video_id", "timestamp"]')
    assert ran.code == 0, ran.err
    assert ran.summary["rejected_because"] == {"lists of unequal length": 1}
    assert ran.summary["events"] == 780
    assert pl.read_parquet("rejects.parquet")["row"].to_list() == [5]
    assert score(wide, schema='explode = ["video"]').code == 3


def test_lists_are_read_in_parts_of_bounded_size_with_the_same_rows_and_rejects(score, monkeypatch):
    wide = events(rows=800).with_columns(user_id=pl.int_range(pl.len()) // 10).group_by("user_id", maintain_order=True)
    wide = wide.agg("video_id", "timestamp").with_columns(
        video_id=pl.when(pl.col("user_id") == 61).then(pl.col("video_id").list.head(3)).otherwise("video_id"),
        timestamp=pl.when(pl.col("user_id") == 70).then(pl.lit([None] * 10)).otherwise("timestamp"),
    )
    schema, found = 'explode = ["video_id", "timestamp"]', []
    for most in (lists.MOST_EVENTS, 100, 1):
        monkeypatch.setattr(lists, "MOST_EVENTS", most)
        ran = score(wide, "--rejects", "rejects.parquet", schema=schema)
        assert ran.code == 0, ran.err
        found.append((pl.read_parquet("recs.parquet"), pl.read_parquet("rejects.parquet")))
        (Path("s.toml")).write_text(schema)
        groups = EventLog.of(read.scan("in.parquet", "INPUT"), "s.toml", "INPUT").row_groups
        assert len(groups) == {100: 8, 1: 80}.get(most, 1)
    for recs, rejects in found[1:]:
        assert recs.equals(found[0][0])
        assert rejects.equals(found[0][1])
    assert set(rejects["row"]) == {61, 70}


MOMENT = pl.from_epoch("timestamp")
TICKS = 10_000_000


@pytest.mark.parametrize(
    "clock",
    [
        pytest.param(MOMENT.dt.strftime("%Y%m%d").cast(pl.Int64), id="coded date"),
        pytest.param(MOMENT.dt.strftime("%Y%m%d%H%M").cast(pl.Int64), id="coded minute"),
        pytest.param(MOMENT.dt.strftime("%Y%m%d%H%M%S").cast(pl.Int64), id="coded second"),
        pytest.param((pl.col("timestamp") + 11_644_473_600) * TICKS, id="FILETIME"),
        pytest.param((pl.col("timestamp") + 62_135_596_800) * TICKS, id=".NET ticks"),
        pytest.param((pl.col("timestamp") + 11_644_473_600) * 10**6, id="us since 1601"),
        pytest.param(pl.col("timestamp") // 60, id="minutes"),
        pytest.param(pl.col("timestamp") / 86_400 + 25_569, id="Excel"),
        pytest.param(MOMENT.dt.strftime("%d.%m.%Y %H:%M:%S"), id="text"),
        pytest.param(MOMENT.dt.strftime("%d.%m.%Y"), id="German date"),
        pytest.param(MOMENT.dt.strftime("%m/%d/%Y %I:%M:%S %p"), id="American"),
        pytest.param(MOMENT.dt.strftime("04-%d-%YT%H:%M"), id="month first"),
        pytest.param(MOMENT.dt.strftime("%d/04/%Y %H:%M").str.replace(r"^\d\d", "30"), id="day first"),
        pytest.param(pl.col("timestamp").cast(pl.String), id="number as text"),
    ],
)
def test_the_advice_about_another_clock_ends_in_a_scored_log(score, clock):
    log = events(timestamp=clock)
    ran = score(log)
    assert ran.code == 3, ran.err
    advice = re.findall(r'timestamp = ".*?"(?=[ ,;]|$)', ran.err.replace("\n", " "))
    assert advice, ran.err
    for entry in advice:
        ran = score(log, schema=entry.replace("your_column", "timestamp"))
        if ran.code == 0:
            break
    assert ran.code == 0, ran.err
    assert ran.summary["as_of"].startswith("2026-04")


@pytest.mark.parametrize("form", ["%Y/%m/%d %H:%M:%S", "%Y-%m-%d %H:%M:%S+00", "%Y-%m-%d %H:%M:%S%.3f UTC", "%FT%TZ"])
def test_texts_as_data_bases_write_them_are_times(score, form):
    ran = score(events(timestamp=MOMENT.dt.strftime(form)))
    assert (ran.code, ran.summary["rejected_rows"]) == (0, 0), ran.err


def test_nan_is_no_time_of_the_future(score):
    ran = score(events().with_columns(timestamp=with_bad(pl.col("timestamp").cast(pl.Float64), float("nan"))))
    assert ran.summary["rejected_because"] == {"timestamp cannot be read": 1}


def test_bytes_that_are_no_text_are_one_reject_and_shown_as_digits(score):
    user = with_bad(pl.col("user_id").cast(pl.Binary), pl.lit(b"\xff\xfe"))
    ran = score(
        events().with_columns(user_id=user, timestamp=with_bad("timestamp", 0, row=5)), "--rejects", "r.parquet"
    )
    assert (ran.code, ran.summary["rejected_rows"]) == (0, 2), ran.err
    log = events().with_columns(
        payload=pl.struct(user="user_id", raw=pl.lit(b"\xff")), timestamp=with_bad("timestamp", 0)
    )
    ran = score(log.drop("user_id"), "--rejects", "rejects.parquet", schema='user_id = "payload.user"')
    assert (ran.code, ran.summary["rejected_rows"]) == (0, 1), ran.err
    ran = score(events().with_columns(user_id=pl.lit(b"\xff")))
    assert (ran.code, "write user_id as text, such as HEX(user_id)" in ran.err.replace("\n", " ")) == (3, True), ran.err


def test_text_in_iso_8601_is_read_and_one_that_is_none_is_a_reject(score):
    text = MOMENT.dt.strftime("%Y-%m-%d %H:%M:%S%.3f")
    ran = score(events(timestamp=text).with_columns(timestamp=with_bad("timestamp", pl.lit("not a date"))))
    assert ran.code == 0, ran.err
    assert (ran.summary["timestamps"], ran.summary["rejected_because"]) == ("text", {"timestamp cannot be read": 1})


@pytest.mark.parametrize(
    ("column", "entry"),
    [
        ("order", "order + 1"),
        ("values", "values + LENGTH('x')"),
        ("played ms", "played ms / 1000"),
        ("current_date", "current_date + 1"),
        ("order", "Order"),
    ],
)
def test_the_advice_about_a_name_that_is_no_sql_ends_in_a_scored_log(score, column, entry):
    log = events().rename({"watch_duration": column})
    ran = score(log, schema=f'watch_duration = "{entry}"')
    assert ran.code == 2, ran.err
    said = ran.err.replace("\n", " ")
    quoted = re.search(r"""in double quotes: (watch_duration = (".*"|'.*'))""", said)[1]
    ran = score(log, schema=quoted)
    assert ran.code == 0, ran.err
    assert column not in ran.summary["ignored_columns"]


def test_rejects_that_no_disk_takes_are_another_time_and_leave_nothing(score, run):
    log = events(video_id=pl.int_range(pl.len()).cast(pl.String) + "x" * 90)
    log = log.with_columns(user_id=with_bad("user_id", None))
    assert score(log).code == 0
    command = ["score", "in.parquet", "again.parquet", "--model", "m", "--rejects", "rejects.parquet"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        done = run(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (done.code, "--rejects rejects.parquet: a file may not be so large" in done.err) == (75, True), done.err
    assert not list(Path().glob("rejects*"))


@pytest.mark.parametrize("command", [["train", "--out", "m", "--preset", "tiny", "--epochs", "1"], ["evaluate"]])
def test_training_and_evaluation_say_what_they_reject(run, model_dir, command):
    log = small_log(mean=30)
    bad = log.with_columns(timestamp=pl.when(pl.int_range(pl.len()) < 5).then(None).otherwise("timestamp"))
    bad.write_parquet("in.parquet")
    users = log.select(pl.col("user_id").unique(), city=pl.lit("x"))
    pl.concat([users, users[:1]]).with_columns(day=pl.int_range(pl.len())).write_parquet("users.parquet")
    model = ["--model", model_dir] if command == ["evaluate"] else []
    flags = ["--rejects", "rejects.parquet", "--users", "users.parquet"]
    done = run(command[0], "in.parquet", *command[1:], *model, *flags)
    assert done.code == 0, done.err
    reasons = {"timestamp is null": 5}
    of_tables = {"users": {"user_id repeats": 1}}
    assert len(pl.read_parquet("rejects.parquet")) == 6
    assert f"5 of {len(bad):,} rows rejected: timestamp is null: 5" in done.err
    assert (done.summary["rejected_because"], done.summary["rejected_rows_of_tables"]) == (reasons, of_tables)
    if command == ["evaluate"]:
        done = run("evaluate", "in.parquet", *model, *flags, "--side-tables-newest", "day")
        assert (done.code, done.summary.get("rejected_rows_of_tables")) == (0, None), done.err
