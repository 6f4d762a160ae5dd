"""Side tables and `hashing`: columns against the formula, value by value; vectors, codes, lists that do not fit."""

from __future__ import annotations

import datetime as dt
import math
from datetime import date
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_batch.core.errors import InputError
from genrec_batch.events.hashing import slot
from genrec_batch.events.side_tables import by_token, check_users, users_table, videos_table
from genrec_batch.io import read
from genrec_batch.model.catalog import Catalog


def add(vector, text, amount):
    """Add one hashed value, by the formula as published: slot h mod 200, sign + where bit 63 of h is 0."""
    h = xxhash.xxh64(text.encode("utf-8"), seed=0).intdigest()
    vector[h % 200] += amount if (h >> 63) & 1 == 0 else -amount


def by_hand(row):
    """Hash one row, value by value."""
    vector = [0.0] * 200
    for column, value in row.items():
        if value is None or column == "id" or column.endswith("_id"):
            continue
        if isinstance(value, bool):
            add(vector, f"{column}={'true' if value else 'false'}", 1.0)
        elif isinstance(value, str):
            add(vector, f"{column}={value}", 1.0)
        elif isinstance(value, date):
            add(vector, f"{column}={value.isoformat()}", 1.0)
        elif math.isfinite(value):
            add(vector, column, math.copysign(math.log1p(abs(value)), value))
    return vector


def assert_hashed(frame, rows=None):
    expected = np.array([by_hand(row) for row in rows or frame.to_dicts()])
    table = users_table(frame)
    assert table.hashed_R200.dtype == np.float32
    assert table.hashed_R200.shape == (len(frame), 200)
    np.testing.assert_allclose(table.hashed_R200, expected, rtol=1e-6, atol=1e-6)


def test_the_hash_of_one_known_text():
    """Pins xxh64 itself: another hash, seed or sign rule moves every hashed feature."""
    assert xxhash.xxh64_intdigest(b"", seed=0) == 0xEF46DB3751D8E999  # the algorithm's published test vector
    vector = users_table(pl.DataFrame({"user_id": [1], "country": ["de"]})).hashed_R200[0]
    h = xxhash.xxh64_intdigest(b"country=de", seed=0)
    assert np.flatnonzero(vector).tolist() == [h % 200]
    assert vector[h % 200] == (1 if h < 2**63 else -1)


def test_every_kind_of_column():
    frame = pl.DataFrame(
        {
            "user_id": [1, 2, 3, 4],
            "id": ["a", "b", "c", "d"],
            "friend_id": [9, 9, 9, 9],
            "city": ["Köln", "", None, "東京"],
            "vip": [True, False, None, True],
            "age": [31, -4, 0, None],
            "score": [0.25, math.nan, math.inf, -1e30],
            "level": pl.Series(["low", None, "high", "low"], dtype=pl.Enum(["low", "high"])),
            "plan": pl.Series(["x", "y", None, "x"], dtype=pl.Categorical),
            "born": [date(1999, 1, 31), None, date(2004, 2, 29), date(1970, 1, 1)],
            "nothing": pl.Series([None] * 4, dtype=pl.Null),
        }
    )
    assert_hashed(frame)


def test_decimals_and_unsigned_integers_are_numbers():
    frame = pl.DataFrame(
        {
            "user_id": [1, 2],
            "price": pl.Series([Decimal("12.50"), None], dtype=pl.Decimal(10, 2)),
            "visits": pl.Series([200, 0], dtype=pl.UInt8),
        }
    )
    assert_hashed(frame, [{"price": 12.5, "visits": 200}, {"price": None, "visits": 0}])


def test_datetimes_hash_as_iso_text():
    seen = pl.Series(["2026-04-01 12:30:05.25"]).str.to_datetime(time_unit="us")
    frame = pl.DataFrame({"user_id": [1], "seen": seen})
    assert_hashed(frame, [{"seen": "2026-04-01T12:30:05.250000"}])


def test_lists_and_structs_are_left_out():
    plain = pl.DataFrame({"user_id": [1, 2], "age": [3, 4]})
    more = plain.with_columns(tags=pl.Series([["a"], ["b", "c"]]), place=pl.struct("age"))
    np.testing.assert_array_equal(users_table(more).hashed_R200, users_table(plain).hashed_R200)


def test_collisions_add_up():
    """Two texts of the same slot: found by search, so that the sum is seen."""
    first = {}
    for i in range(1000):
        h = xxhash.xxh64_intdigest(f"c{i}".encode(), seed=0)
        other = first.setdefault((h % 200, h >> 63), f"c{i}")
        if other != f"c{i}":
            break
    vector = users_table(pl.DataFrame({"user_id": [1], other: [math.e - 1], f"c{i}": [math.e - 1]})).hashed_R200[0]
    assert abs(vector[h % 200]) == pytest.approx(2)
    assert np.count_nonzero(vector) == 1


VALUES = st.fixed_dictionaries(
    {
        "name": st.none() | st.text(max_size=5),
        "flag": st.none() | st.booleans(),
        "count": st.none() | st.integers(-(2**53), 2**53),
        "ratio": st.none() | st.floats(width=32),
    }
)
SCHEMA = {"user_id": pl.Int64, "name": pl.String, "flag": pl.Boolean, "count": pl.Int64, "ratio": pl.Float64}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.lists(VALUES, min_size=1, max_size=8))
def test_any_values(rows):
    assert_hashed(pl.DataFrame([{"user_id": i, **row} for i, row in enumerate(rows)], schema=SCHEMA))


def test_a_row_does_not_depend_on_the_others():
    frame = pl.DataFrame({"user_id": range(50), "city": [f"c{i % 7}" for i in range(50)], "age": range(50)})
    whole = users_table(frame).hashed_R200
    np.testing.assert_array_equal(users_table(frame[[49, 3, 3]]).hashed_R200, whole[[49, 3, 3]])


def lists(*widths):
    return [None if width is None else [float(width + i) for i in range(width)] for width in widths]


@pytest.mark.parametrize("dtype", [pl.List(pl.Float64), pl.List(pl.Float32), pl.Array(pl.Float32, 200)], ids=str)
def test_own_floats_take_the_place_of_hashing(dtype):
    frame = pl.DataFrame(
        {"user_id": [1, 2], "profile": pl.Series(lists(200, None), dtype=dtype), "country": ["de", "fr"]}
    )
    table = users_table(frame)
    np.testing.assert_array_equal(table.hashed_R200, [[200 + i for i in range(200)], [0] * 200])
    assert table.has_hashed_R.tolist() == [True, False]
    videos = videos_table(frame.rename({"user_id": "video_id", "profile": "embedding"}))
    np.testing.assert_array_equal(videos.hashed_R200, table.hashed_R200)


@pytest.mark.parametrize(
    ("read", "column", "width"), [(users_table, "profile_vector", 256), (videos_table, "video_vector", 512)]
)
def test_vectors_for_the_model(read, column, width):
    ids = {"user_id": [1, 2, 3], "video_id": [1, 2, 3]}
    assert read(pl.DataFrame(ids)).dense_RD is None
    assert read(pl.DataFrame(ids)).has_dense_R is None
    table = read(pl.DataFrame({**ids, column: lists(width, None, width)}))
    assert table.dense_RD.dtype == np.float32
    assert table.dense_RD.shape == (3, width)
    assert table.has_dense_R.tolist() == [True, False, True]
    assert not table.dense_RD[1].any()
    np.testing.assert_array_equal(table.dense_RD[2], np.arange(width, 2 * width))


def same_partition(codes, values):
    """Codes are from 0, equal exactly where the values are, -1 exactly where those are null."""
    by_value = {}
    for code, value in zip(codes, values, strict=True):
        assert (code == -1) == (value is None)
        assert by_value.setdefault(value, code) == code
    known = {code for code in by_value.values() if code >= 0}
    assert known == set(range(len(known)))


@pytest.mark.parametrize("values", [[7, None, 7, 3], ["x", "y", None, "x"]], ids=["integers", "strings"])
def test_creators_and_categories_are_codes(values):
    table = videos_table(pl.DataFrame({"video_id": [1, 2, 3, 4], "creator_id": values, "category": values[::-1]}))
    same_partition(table.creator_R.tolist(), values)
    same_partition(table.category_R.tolist(), values[::-1])


def test_the_creator_is_creator_id_before_author_id():
    ids = {"video_id": [1, 2], "author_id": [5, 5]}
    assert videos_table(pl.DataFrame(ids)).creator_R.tolist() == [0, 0]
    both = videos_table(pl.DataFrame({**ids, "creator_id": [8, 9]}))
    same_partition(both.creator_R.tolist(), [8, 9])


def test_without_creator_or_category_all_are_null_and_users_have_none():
    videos = videos_table(pl.DataFrame({"video_id": [1, 2]}))
    assert videos.creator_R.tolist() == videos.category_R.tolist() == [-1, -1]
    users = users_table(pl.DataFrame({"user_id": [1, 2]}))
    assert len(users.creator_R) == len(users.category_R) == 0


def test_an_empty_table():
    table = users_table(pl.DataFrame(schema={"user_id": pl.Int64, "age": pl.Int64, "city": pl.String}))
    assert table.hashed_R200.shape == (0, 200)


def test_a_wrong_width_names_column_row_and_the_right_one():
    frame = pl.DataFrame({"user_id": [1, 2, 3], "profile": lists(200, None, 199)})
    with pytest.raises(InputError) as raised:
        check_users(frame, "--users u.parquet")
    for part in ("--users u.parquet", "'profile'", "199", "row 2", "200"):
        assert part in str(raised.value)
    assert raised.value.exit_code == 3


def test_a_vector_of_the_model_has_one_width():
    frame = pl.DataFrame({"video_id": [1], "video_vector": pl.Series(lists(128), dtype=pl.Array(pl.Float32, 128))})
    with pytest.raises(InputError, match="'video_vector' has 128 floats in row 0, expected 512"):
        videos_table(frame)


@pytest.mark.parametrize(
    "values",
    [["text"], [3.5], [[["nested"]]], [["a"] * 200], [[True] * 200]],
    ids=["string", "number", "lists of lists", "list of strings", "list of Booleans"],
)
def test_a_wrong_type_is_named(values):
    with pytest.raises(InputError, match=r"column 'profile' is .*, expected a list of floats"):
        check_users(pl.DataFrame({"user_id": [1], "profile": values}), "--users")


@pytest.mark.parametrize("odd", [None, math.nan, math.inf])
def test_a_list_with_a_hole_is_wrong(odd):
    with pytest.raises(InputError, match="column 'profile' holds null, NaN or infinity"):
        check_users(pl.DataFrame({"user_id": [1], "profile": [[odd, *[1.0] * 199]]}), "--users")


def test_all_faults_at_once():
    frame = pl.DataFrame({"video_id": [1], "embedding": ["neither"], "video_vector": ["not a list"]})
    with pytest.raises(InputError) as raised:
        videos_table(frame)
    assert "'embedding'" in str(raised.value)
    assert "'video_vector'" in str(raised.value)


@pytest.mark.parametrize("column", ["creator_id", "category"])
def test_one_creator_and_category_per_video(column):
    with pytest.raises(InputError, match=f"column '{column}' is List"):
        videos_table(pl.DataFrame({"video_id": [1], column: [["a", "b"]]}))


@pytest.mark.parametrize(
    ("log_type", "table_type"), [(pl.String, pl.Int64), (pl.Int64, pl.String), (pl.Int32, pl.Float64)]
)
def test_an_integer_and_the_text_that_it_is_written_as_are_one_id(run, model_dir, log, log_type, table_type):
    log.with_columns(pl.col("user_id").cast(log_type)).write_parquet("events.parquet")
    users = log.select(pl.col("user_id").unique().sort().cast(table_type)).with_columns(city=pl.lit("x"))
    users.write_parquet("users.parquet")
    done = run("score", "events.parquet", "recs.parquet", "--model", model_dir, "--users", "users.parquet")
    assert (done.code, done.summary["matches"]["users"]["share"]) == (0, 1.0), done.err
    assert done.summary["users"] == log["user_id"].n_unique()


def test_a_text_that_is_no_integer_is_none_of_a_log_of_integers(run, model_dir, log_file, log):
    users = log.select(pl.col("user_id").unique().cast(pl.String).str.zfill(6)).with_columns(city=pl.lit("x"))
    users.write_parquet("users.parquet")
    done = run("score", log_file, "recs.parquet", "--model", model_dir, "--users", "users.parquet")
    assert done.code == 3
    assert "column 'user_id' is String, such as '000" in done.err.replace("\n", " ")


def test_one_id_of_another_type_is_one_reject(run, model_dir, log_file, log):
    ids = log["user_id"].unique().sort().cast(pl.String).to_list()
    pl.DataFrame({"user_id": [*ids, "x", "007"], "city": "c"}).write_csv("users.csv")
    flags = ["--users", "users.csv", "--rejects", "rejects.parquet"]
    done = run("score", log_file, "recs.parquet", "--model", model_dir, *flags)
    assert done.code == 0, done.err
    assert done.summary["rejected_rows_of_tables"] == {"users": {"user_id is no Int64, as the log's are": 2}}
    assert done.summary["users"] == len(ids)
    rejects = pl.read_parquet("rejects.parquet")
    assert rejects["values"].to_list() == ['{"user_id":"x"}', '{"user_id":"007"}']
    assert rejects["row"].to_list() == [len(ids), len(ids) + 1]


def test_columns_of_any_type_are_hashed_or_left_out(run, model_dir, log_file, log):
    ids = log.select(pl.col("user_id").unique().sort())
    types = {
        "duration": pl.lit(dt.timedelta(hours=1)), "time": pl.lit(dt.time(3)), "day": pl.lit(dt.date(2026, 4, 1)),
        "bytes": pl.lit(b"\xff"), "amount": pl.lit(1).cast(pl.Decimal(10, 2)), "parts": pl.struct(a=pl.lit(1)),
        "large": pl.lit(1).cast(pl.Int128), "kind": pl.lit("a").cast(pl.Categorical), "nothing": pl.lit(None),
    }  # fmt: skip
    ids.with_columns(**types).write_parquet("users.parquet")
    done = run("features", log_file, "f.parquet", "--model", model_dir, "--users", "users.parquet")
    assert done.code == 0, done.err
    place, sign = slot("duration")
    value = pl.read_parquet("f.parquet")["features"].list.get(600 + place)[0]
    assert value == pytest.approx(sign * np.log1p(3600), abs=3), "a duration counts as its seconds"


def test_vectors_without_any_value_are_warned_about(run, model_dir, log_file, log):
    videos = log.select(pl.col("video_id").unique().sort())
    videos.with_columns(embedding=pl.lit(None, pl.List(pl.Float32))).write_parquet("videos.parquet")
    done = run("score", log_file, "recs.parquet", "--model", model_dir, "--videos", "videos.parquet")
    assert done.code == 0, done.err
    assert "column 'embedding' has no value in any row" in done.err.replace("\n", " ")


def test_videos_stand_in_the_order_of_the_catalogs_tokens():
    catalog = Catalog(items=pl.DataFrame({"video_id": [30, 10, 20], "count": [3, 2, 1]}))
    videos = pl.DataFrame(
        {"video_id": [10, 99, 30], "creator_id": ["a", "b", "c"], read.ROW: [0, 1, 2], read.PIECE: [0, 0, 0]}
    )
    assert by_token(videos, catalog).to_dict(as_series=False) == {"creator_id": ["c", "a", None]}
