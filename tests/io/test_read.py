"""Reading files with `read`, `attempt` and `fingerprint`: every shape of input, every way a file can be bad."""

from __future__ import annotations

import hashlib

import polars as pl
import pytest

from genrec_batch.core.errors import InputError
from genrec_batch.io.attempt import reading
from genrec_batch.io.fingerprint import sha256
from genrec_batch.io.read import scan, table

ROWS = pl.DataFrame({"user_id": [1, 2, 3], "x": [1.0, 2.0, 3.0]})


def write(path, frame=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)
    return path


def test_file_glob_and_directory_read_the_same_rows(tmp_path):
    for part in range(3):
        write(tmp_path / "log" / f"{part}.parquet", ROWS[part : part + 1])
    for path in (tmp_path / "log", tmp_path / "log" / "*.parquet", tmp_path / "*" / "?.parquet"):
        source = scan(str(path), "INPUT")
        assert source.frame().collect().equals(ROWS)
        assert (len(source.files), source.rows) == (3, 3)


def test_hive_partitions_become_columns(tmp_path):
    write(tmp_path / "log" / "day=1" / "a.parquet", ROWS[:1])
    write(tmp_path / "log" / "day=2" / "a.parquet", ROWS[1:])
    for path in (tmp_path / "log", tmp_path / "log" / "*" / "*.parquet"):
        assert scan(str(path), "INPUT").frame().collect()["day"].to_list() == [1, 2, 2]


def test_files_may_have_other_partitions_than_their_neighbours(tmp_path):
    for place in ("day=1/a", "day=2/b", "c", "hour=3/d"):
        write(tmp_path / "env=prod" / "log" / f"{place}.parquet")
    frame = scan(str(tmp_path / "env=prod" / "log"), "INPUT").frame().collect()
    assert frame["day"].to_list() == [None, None, None, 1, 1, 1, 2, 2, 2, None, None, None]
    assert frame["hour"].to_list() == [*[None] * 9, 3, 3, 3]
    assert "env" not in frame.columns


def test_the_columns_of_a_file_without_rows_do_not_matter(tmp_path):
    write(tmp_path / "log" / "a.parquet")
    write(tmp_path / "log" / "b.parquet", pl.DataFrame({"user_id": [], "x": []}, {"user_id": pl.String, "x": pl.Date}))
    write(tmp_path / "log" / "c.parquet", pl.DataFrame())
    source = scan(str(tmp_path / "log"), "INPUT")
    assert source.frame().collect().equals(ROWS)
    assert len(source.files) == 3, "they are part of the input's state all the same"


def test_hidden_files_and_markers_are_left_alone(tmp_path):
    write(tmp_path / "log" / "a.parquet")
    write(tmp_path / "log" / ".tmp" / "b.parquet")
    write(tmp_path / "log" / "_old.parquet")
    assert scan(str(tmp_path / "log"), "INPUT").rows == 3


def test_columns_of_later_files_are_read_and_types_widen(tmp_path):
    write(tmp_path / "log" / "a.parquet", ROWS.select(pl.col("user_id").cast(pl.Int32)))
    write(tmp_path / "log" / "b.parquet", ROWS)
    frame = scan(str(tmp_path / "log"), "INPUT").frame().collect()
    assert frame.schema["user_id"] == pl.Int64
    assert frame["x"].to_list() == [None, None, None, 1.0, 2.0, 3.0]


def test_files_that_disagree_are_named(tmp_path):
    write(tmp_path / "log" / "a.parquet")
    write(tmp_path / "log" / "b.parquet", ROWS.with_columns(pl.col("x").cast(pl.String)))
    with pytest.raises(InputError, match=r"'x' is Float64 in .*a.parquet and String in .*b.parquet"):
        scan(str(tmp_path / "log"), "INPUT").frame()


def test_fingerprint_follows_content_and_not_the_clock(tmp_path):
    one = scan(str(write(tmp_path / "a" / "x.parquet")), "INPUT").fingerprint
    same = scan(str(write(tmp_path / "b" / "x.parquet")), "INPUT").fingerprint
    other = scan(str(write(tmp_path / "c" / "x.parquet", ROWS.reverse().with_columns(x=9.0))), "INPUT").fingerprint
    assert one == same != other


def test_a_file_is_hashed_to_its_last_byte(tmp_path):
    content = bytes(range(256)) * 3000 + b"end"
    (tmp_path / "x").write_bytes(content)
    assert sha256(str(tmp_path / "x")) == hashlib.sha256(content).hexdigest()


def test_missing_file_shows_near_names(tmp_path):
    write(tmp_path / "events.parquet")
    with pytest.raises(InputError, match=r"no such file or directory. Did you mean 'events.parquet'"):
        scan(str(tmp_path / "event.parquet"), "INPUT")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty \(0 bytes\), so no table; copy it again"),
        (None, "truncated or damaged"),
    ],
)
def test_files_that_are_not_whole_parquet(tmp_path, content, message):
    path = write(tmp_path / "events.parquet")
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(InputError, match=message):
        scan(str(path), "INPUT")


def test_a_damaged_page_is_an_input_error_that_names_the_file(tmp_path):
    path = write(tmp_path / "events.parquet", pl.DataFrame({"x": range(100_000)}))
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\0" * (len(data) // 2 - len(data) // 3)
    path.write_bytes(bytes(data))
    source = scan(str(path), "INPUT")
    with pytest.raises(InputError, match=r"events\.parquet: cannot be read"):
        reading(source.frame().collect, f"INPUT {path}")


def test_empty_directory_and_pattern_without_match(tmp_path):
    with pytest.raises(InputError, match="holds no Parquet file, and no CSV or JSON lines"):
        scan(str(tmp_path), "INPUT")
    with pytest.raises(InputError, match="no file matches"):
        scan(str(tmp_path / "*.parquet"), "INPUT")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"uid": [1]}), "'user_id' is missing"),
        (pl.DataFrame({"user_id": [1.5]}), "expected an integer or a string"),
    ],
)
def test_tables_need_a_column_of_ids(tmp_path, frame, message):
    path = write(tmp_path / "users.parquet", frame)
    with pytest.raises(InputError, match=message):
        table(str(path), "--users", "user_id", lambda lazy: lazy)


def test_a_column_without_values_takes_the_type_of_other_files(tmp_path):
    write(tmp_path / "log" / "a.parquet")
    write(tmp_path / "log" / "b.parquet", ROWS.with_columns(x=pl.lit(None)))
    assert scan(str(tmp_path / "log"), "INPUT").frame().collect()["x"].to_list() == [
        1.0,
        2.0,
        3.0,
        None,
        None,
        None,
    ]


def test_partition_ids_with_leading_zeros_stay_as_they_are(tmp_path):
    for value in ("001", "01"):
        write(tmp_path / "log" / f"user_id={value}" / "a.parquet", ROWS.select("x"))
    assert scan(str(tmp_path / "log"), "INPUT").frame().collect()["user_id"].unique().sort().to_list() == [
        "001",
        "01",
    ]


def test_names_with_glob_characters_are_read(tmp_path):
    path = write(tmp_path / "we[1]rd.parquet")
    assert scan(str(path), "INPUT").frame().collect().equals(ROWS)


def test_an_empty_name_is_refused():
    with pytest.raises(InputError, match="INPUT is empty"):
        scan("", "INPUT")


def test_same_footer_and_other_values_is_another_input(tmp_path):
    values = list(range(100))
    for name, order in (("a", values), ("b", values[:1] + values[1:-1][::-1] + values[-1:])):
        (tmp_path / name).mkdir()
        pl.DataFrame({"x": order}).write_parquet(
            tmp_path / name / "f.parquet",
            compression="uncompressed",
            use_pyarrow=True,
            pyarrow_options={"use_dictionary": False},
        )
    sizes = {(tmp_path / name / "f.parquet").stat().st_size for name in "ab"}
    assert len(sizes) == 1
    prints = {scan(str(tmp_path / name / "f.parquet"), "INPUT").fingerprint for name in "ab"}
    assert len(prints) == 2


def test_a_file_uri_is_the_path(tmp_path):
    path = write(tmp_path / "a b.parquet")
    for uri in (f"file://{path}", f"file://localhost{path}", f"file://{path}".replace(" ", "%20")):
        assert scan(uri, "INPUT").fingerprint == scan(str(path), "INPUT").fingerprint


def test_a_partition_column_that_the_files_have_too_is_read_from_the_files(tmp_path):
    write(tmp_path / "log" / "user_id=7" / "a.parquet")
    assert scan(str(tmp_path / "log"), "INPUT").frame().collect()["user_id"].to_list() == [1, 2, 3]


def test_files_whose_moments_have_other_units_are_one_log(tmp_path):
    moments = pl.Series([1_775_000_000_123, 1_775_000_001_456]).cast(pl.Datetime("ms", "UTC"))
    for unit in ("ms", "us", "ns"):
        frame = pl.DataFrame({"user_id": [1, 2], "timestamp": moments.dt.cast_time_unit(unit)})
        frame.write_parquet(tmp_path / f"{unit}.parquet")
    source = scan(str(tmp_path), "INPUT")
    read = source.frame().collect()
    assert read["timestamp"].to_list() == moments.to_list() * 3
    joined = pl.concat(
        [
            group.collect(lambda frame, _: frame.cast({"timestamp": pl.Datetime("us", "UTC")}), "log")
            for group in source.row_groups
        ]
    )
    assert joined.equals(read)
