"""The contract of `schema`, `schema_file`, `columns` and `log`: what is accepted or refused, and with which message."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.events import schema, schema_file
from genrec_batch.events.columns import LABELS
from tests.conftest import small_log
from tests.histories import normalize

MOMENT = dt.datetime(2026, 4, 30, 12, 34, 56, 789000, tzinfo=dt.timezone.utc)


def log(**columns):
    return pl.DataFrame({"user_id": [1], "video_id": [2], "timestamp": [MOMENT], **columns})


@pytest.mark.parametrize(
    ("unit", "factor"), [("epoch s", 1), ("epoch ms", 10**3), ("epoch us", 10**6), ("epoch ns", 10**9)]
)
def test_epoch_unit_is_found_by_magnitude(unit, factor):
    epoch = int(MOMENT.timestamp()) * factor
    frame = log(timestamp=[epoch]).lazy()
    found = schema.read_contract(frame, {}, "log")
    assert found.reading.time_unit == unit
    assert found.events(frame).collect()["timestamp"][0] == MOMENT.replace(microsecond=0)


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([MOMENT]),
        pl.Series([MOMENT.replace(tzinfo=None)]),
        pl.Series([MOMENT]).dt.convert_time_zone("Asia/Shanghai"),
        pl.Series([MOMENT]).dt.cast_time_unit("ns"),
        pl.Series([MOMENT]).dt.cast_time_unit("ms"),
    ],
)
def test_datetimes_of_any_unit_and_zone_are_the_same_moment(values):
    assert normalize(log(timestamp=values))["timestamp"][0] == MOMENT


@pytest.mark.parametrize("bad", [[5], [-1], [12345678901]])
def test_implausible_timestamps_are_refused_with_their_range(bad):
    frame = pl.DataFrame({"user_id": [1] * len(bad), "video_id": [1] * len(bad), "timestamp": bad})
    with pytest.raises(InputError, match=f"log.*'timestamp'.*{min(bad)}"):
        schema.read_contract(frame.lazy(), {}, "log")


def test_all_faults_come_in_one_error_with_near_names():
    frame = pl.DataFrame(
        {"userid": [1], "video_id": [True], "timestamp": [True], "is_liked": ["x"], "device_type": [1]}
    )
    with pytest.raises(InputError) as caught:
        normalize(frame)
    said = str(caught.value)
    assert "'user_id' is missing. Did you mean 'userid'?" in said
    for column, kind in (
        ("video_id", "Boolean"),
        ("timestamp", "Boolean"),
        ("is_liked", "String"),
        ("device_type", "Int64"),
    ):
        assert f"{column!r} is {kind}" in said
    assert "--schema" in said


def test_the_first_line_of_an_error_holds_the_fault_and_the_way_out():
    columns = {"userid": pl.Int64(), "video_id": pl.Int64(), "timestamp": pl.Int64()}
    with pytest.raises(InputError) as caught:
        schema.check(columns, "INPUT log.parquet")
    first, *others = str(caught.value).splitlines()
    assert first == (
        "INPUT log.parquet: column 'user_id' is missing. Did you mean 'userid'? "
        "Use --schema FILE.toml to name or convert columns"
    )
    assert others == ["  the file's columns are: userid, video_id, timestamp"]
    with pytest.raises(InputError) as caught:
        schema.check({**columns, "is_liked": pl.String()}, "INPUT log.parquet")
    first, second, _ = str(caught.value).splitlines()
    assert first.endswith("(and 1 more below)")
    assert "'is_liked' is String" in second


def test_the_error_names_a_built_in_schema_that_fits_the_columns():
    names = ("user_id", "video_id", "time_ms", "play_time_ms", "duration_ms", "is_like", "is_forward", "is_comment")
    columns = {name: pl.Int64() for name in (*names, "is_follow", "tab", "is_click")}
    with pytest.raises(InputError, match="--schema kuairand reads it"):
        schema.check(columns, "INPUT log.parquet")
    del columns["tab"]
    with pytest.raises(InputError, match=r"--schema FILE\.toml"):
        schema.check(columns, "INPUT log.parquet")


def test_numbers_that_are_not_finite_and_flags_that_are_not_flags_become_null():
    frame = log(watch_duration=[float("nan")], watch_percentage=[float("inf")], is_liked=[-124], is_shared=[1])
    row = normalize(frame).row(0, named=True)
    assert (row["watch_duration"], row["watch_percentage"], row["is_liked"], row["is_shared"]) == (
        None,
        None,
        None,
        True,
    )


def test_rows_without_ids_or_time_are_not_usable():
    frame = pl.DataFrame(
        {"user_id": [1, None, 1, 1], "video_id": [1, 1, None, 1], "timestamp": [MOMENT, MOMENT, MOMENT, None]}
    )
    assert len(normalize(frame)) == 1


def test_unknown_columns_are_named_and_known_unread_ones_are_not():
    reading = schema.read_contract(log(colour=["red"], comment_text=["hi"]).lazy(), {}, "log").reading
    assert reading.ignored == ("colour",)


def test_schema_file_renames_and_converts(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('user_id = "uid"\ntimestamp = "at_s * 1000"\n[events]\nwatch_duration = "played_ms / 1000.0"\n')
    frame = pl.DataFrame({"uid": ["a"], "video_id": ["v"], "at_s": [1_700_000_000], "played_ms": [2500]})
    found = schema.read_contract(frame.lazy(), schema_file.column_names(str(file)).events, "log")
    got, reading = found.events(frame.lazy()), found.reading
    row = got.collect().row(0, named=True)
    assert (row["user_id"], row["watch_duration"], row["timestamp"].year) == ("a", 2.5, 2023)
    assert reading.ignored == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id = ", "not valid TOML"),
        ('usr_id = "x"', "usr_id: not a column of the events contract. Did you mean 'user_id'"),
        ("user_id = 3", "an expression is a string"),
    ],
)
def test_bad_schema_files_say_what_is_wrong(tmp_path, text, message):
    file = tmp_path / "my.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        schema_file.column_names(str(file))


def test_unknown_schema_name_and_missing_columns_are_config_errors():
    with pytest.raises(ConfigError, match="Did you mean 'kuairand'"):
        schema_file.column_names("kuairnd")
    with pytest.raises(InputError, match="reads 'uid', which log does not have"):
        schema.read_contract(log().lazy(), {"user_id": "uid"}, "log")
    with pytest.raises(ConfigError, match="not a Polars SQL expression"):
        schema.read_contract(log().lazy(), {"user_id": "uid +"}, "log")


def test_labels_are_read_only_where_they_are_wanted():
    frame = pl.DataFrame(
        {
            "user_id": [1, 1, 1],
            "video_id": [1, 2, 3],
            "timestamp": [1_700_000_000] * 3,
            "engagement_label": [True, None, False],
            "bought": [0, 1, 7],
        }
    )
    names = {"monetization_label": "bought"}
    assert not set(schema.read_contract(frame.lazy(), names, "log").reading.columns) & set(LABELS)
    scored = schema.read_contract(frame.drop("bought").lazy(), names, "log")  # a column that only training needs
    assert scored.reading.columns == ("user_id", "video_id", "timestamp")
    trained = schema.read_contract(frame.lazy(), names, "log", labels=True)
    events = trained.events(frame.lazy()).collect()
    assert events["engagement_label"].to_list() == [1.0, None, 0.0]
    assert events["monetization_label"].to_list() == [0.0, 1.0, None]


def test_a_label_of_the_wrong_type_is_an_error_where_labels_are_wanted():
    frame = pl.DataFrame({"user_id": [1], "video_id": [1], "timestamp": [1_700_000_000], "engagement_label": ["yes"]})
    schema.read_contract(frame.lazy(), {}, "log")
    with pytest.raises(InputError, match=r"'engagement_label' is String, expected a Boolean, or a number from 0 to 1"):
        schema.read_contract(frame.lazy(), {}, "log", labels=True)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("user_id", pl.struct(name=pl.lit(1.5), id="user_id")),
        ("user_id", pl.col("user_id").cast(pl.Decimal(20, 2))),
        ("watch_duration", pl.duration(seconds="watch_duration")),
        ("watch_duration", pl.col("watch_duration").cast(pl.String)),
        ("time_of_day", pl.lit(dt.time(3, 30))),
        ("time_of_day", pl.lit("14:30:00")),
        ("is_liked", pl.lit("true")),
        ("device_type", pl.lit(1)),
        ("device_type", pl.concat_list(pl.lit("tv"))),
    ],
)
def test_the_entry_that_an_error_about_a_type_gives_ends_in_a_scored_log(run, model_dir, column, values):
    small_log().with_columns(values.alias(column)).write_parquet("in.parquet")
    done = run("score", "in.parquet", "recs.parquet", "--model", model_dir)
    assert done.code == 3, done.err
    entry = re.search(rf'as ({column} = ".*?") makes it', done.err.replace("\n", " "))
    assert entry is not None, done.err
    Path("s.toml").write_text(entry[1])
    done = run("score", "in.parquet", "recs.parquet", "--model", model_dir, "--schema", "s.toml")
    assert (done.code, done.summary["rejected_rows"]) == (0, 0), done.err


def test_a_required_field_inside_a_struct_is_found(run, model_dir):
    small_log().select(pl.exclude("user_id"), payload=pl.struct(who=pl.struct("user_id"))).write_parquet("in.parquet")
    done = run("score", "in.parquet", "recs.parquet", "--model", model_dir)
    entry = re.search(r'user_id = "payload.who.user_id"', done.err)
    assert (done.code, entry is not None) == (3, True), done.err
    Path("s.toml").write_text(entry[0])
    assert run("score", "in.parquet", "recs.parquet", "--model", model_dir, "--schema", "s.toml").code == 0


def test_required_fields_in_a_list_of_structs_are_found(run, model_dir):
    rows = small_log().group_by("user_id", maintain_order=True).agg(ev=pl.struct("video_id", "timestamp"))
    rows.write_parquet("in.parquet")
    done = run("score", "in.parquet", "recs.parquet", "--model", model_dir)
    assert done.code == 3
    said = done.err.replace("\n", " ")
    entries = [re.search(rf'{name} = (\["ev"\]|"ev.{name}")', said)[0] for name in ("explode", "video_id", "timestamp")]
    Path("s.toml").write_text("\n".join(entries))
    done = run("score", "in.parquet", "recs.parquet", "--model", model_dir, "--schema", "s.toml")
    assert (done.code, done.summary["events"]) == (0, len(small_log())), done.err


def test_a_column_that_some_files_do_not_have_is_named(run, model_dir):
    Path("days").mkdir()
    log = small_log()
    log[:200].write_parquet("days/1.parquet")
    log[200:].drop("is_liked").write_parquet("days/2.parquet")
    done = run("score", "days", "recs.parquet", "--model", model_dir)
    assert (done.code, done.summary["absent_columns"]) == (0, {"is_liked": 1}), done.err
    assert "columns that are missing in some files, and null there: is_liked (in 1 of 2)" in done.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("entry", "code", "said"),
    [
        ("where = 'device_type'", 3, "where = \"(device_type) = 'view'\""),
        ("where = 'watch_duration'", 3, 'where = "(watch_duration) = 1"'),
        ("where = 'watch_duration < -1'", 3, "`where` of --schema is true for none of them"),
        ("watch_percentage = 'device_type || 1'", 3, 'watch_percentage = "CAST((device_type || 1) AS DOUBLE)"'),
        ("watch_percentage = 'device_type / 2.0'", 3, "TRY_CAST(device_type AS DOUBLE) makes them null"),
    ],
)
def test_an_entry_of_another_type_is_told_with_the_way_out(run, model_dir, entry, code, said):
    small_log().write_parquet("in.parquet")
    Path("s.toml").write_text(entry)
    done = run("score", "in.parquet", "recs.parquet", "--model", model_dir, "--schema", "s.toml")
    assert (done.code, said in done.err.replace("\n", " ")) == (code, True), done.err
