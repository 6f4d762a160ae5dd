"""`expressions` and `times`: what an entry of `--schema` may read, integers that do not wrap, rows it fails on."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.events.expressions import entry

FRAME = pl.DataFrame(
    {
        "at": ["2026-01-02 03:04:05.5", "2026-01-02T03:04:05Z", "bad", None],
        "digits": ["1", "x", "3", "4"],
        "n": pl.Series([1, 2, 3, 200], dtype=pl.UInt8),
        "i": pl.Series([10, 20, 30, 2_000_000_000], dtype=pl.Int32),
        "big": pl.Series([1, 2, 3, 2**63 + 5], dtype=pl.UInt64),
        "flag": [True, False, None, True],
        "list": [[1, 2], [1], [], None],
        "moment": [dt.datetime(2026, 1, 1, 5, tzinfo=dt.timezone.utc)] * 4,
        "payload": [{"id": 1, "deep": {"z": 2}}] * 4,
        "user": [{"id": 7}] * 4,
        "order": [1, 2, 3, 4],
        "user_id:token": [1, 2, 3, 4],
    }
)


def compiled(sql, frame=FRAME):
    return entry("watch_duration", sql, frame.schema, "log")


def values(sql):
    return FRAME.select(v=compiled(sql).value)["v"].to_list()


def failures(sql):
    fails = compiled(sql).fails
    return [] if fails is None else FRAME.select(v=fails)["v"].arg_true().to_list()


@pytest.mark.parametrize(
    ("sql", "last"),
    [
        ("n - 201", -1),
        ("n * 1000", 200_000),
        ("-n", -200),
        ("i * 1000 + n", 2_000_000_000_200),
        ("CAST(n AS SMALLINT) * 30000", 6_000_000),
        ("LENGTH(digits) - 10", -9),
        ("DATE_PART('hour', moment) * 60", 300),
        ("60 * 60 * 1000000 * n", 720_000_000_000),
        ("n * 1.0 / 3", 200 / 3),  # no decimal of six places
        ("ABS(n - 201)", 1),
        ("CASE WHEN flag THEN n * n END", 40_000),
    ],
)
def test_integers_do_not_wrap(sql, last):
    assert values(sql)[-1] == pytest.approx(last, rel=1e-12)
    assert failures(sql) == []


@pytest.mark.parametrize("name", ["order", "user_id:token", '"order"', '"user_id:token"', "order "])
def test_the_name_of_a_column_is_that_column(name):
    if name == "order ":
        with pytest.raises(ConfigError, match="Did you mean 'order'"):
            compiled(name)
        return
    assert values(name) == [1, 2, 3, 4]


def test_a_column_that_is_only_named_keeps_its_type():
    assert FRAME.select(v=compiled("big").value)["v"].dtype == pl.UInt64
    assert FRAME.select(v=compiled('"big"').value)["v"].dtype == pl.UInt64
    assert values("CAST(big AS VARCHAR)")[-1] == str(2**63 + 5)


@pytest.mark.parametrize(("path", "value"), [("payload.id", 1), ("payload.deep.z", 2), ("user.id", 7)])
def test_fields_of_structs_are_named_by_their_path(path, value):
    assert values(path) == [value] * 4


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("CAST(digits AS BIGINT)", [1]),
        ("CAST(digits AS BIGINT) * 2 + n", [1]),
        ("TRY_CAST(digits AS BIGINT)", []),
        ("CASE WHEN digits <> 'x' THEN CAST(digits AS BIGINT) END", []),
        ("CASE WHEN digits = 'x' THEN CAST(digits AS BIGINT) END", [1]),
        ("COALESCE(CAST(digits AS BIGINT), -1)", []),
        ("CAST(at AS TIMESTAMP)", [2]),
        ("DATETIME(at)", [2]),
        ("STRPTIME(at, '%Y-%m-%d %H:%M:%S%.f')", [1, 2]),
        ("big + 1", [3]),
        ("CAST(n AS VARCHAR)", []),
    ],
)
def test_an_expression_fails_on_rows_not_on_the_run(sql, rows):
    assert failures(sql) == rows
    assert all(values(sql)[row] is None for row in rows)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-02", "2026-01-02T00:00:00"),
        ("2026-01-02 03:04", "2026-01-02T03:04:00"),
        (" 2026-01-02 03:04:05.123", "2026-01-02T03:04:05.123000"),
        ("2026-01-02T03:04:05.5Z", "2026-01-02T03:04:05.500000"),
        ("2026-01-02T03:04:05+02:00", "2026-01-02T01:04:05"),
        ("2026-01-02 03:04:05+0200", "2026-01-02T01:04:05"),
        ("02.01.2026", None),
        ("20260102", None),
    ],
)
def test_times_as_text_are_iso_8601_each_by_itself(text, moment):
    frame = pl.DataFrame({"at": ["1999-12-31", text]})  # the first has another form
    got = frame.select(v=compiled("CAST(at AS TIMESTAMP)", frame).value)["v"][1]
    assert (got and got.isoformat()) == moment


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("1700000000 + ROW_NUMBER() OVER ()", "window function"),
        ("RANK() OVER (ORDER BY n)", "window function"),
        ("LAG(n) OVER (ORDER BY i)", "window function"),
        ("SUM(n) OVER (PARTITION BY i)", "window function"),
        ("n - AVG(n)", "aggregate"),
        ("COUNT(*)", "aggregate"),
        ("QUANTILE_CONT(n, 0.5)", "aggregate"),
        ("CASE WHEN SUM(n) > 1 THEN n END", "aggregate"),
        ("n > ALL(i)", "aggregate"),
        ("n = ANY(i)", "not row-wise"),
        ("UNNEST(list)", "explode = "),
        ("COLUMNS('n.*')", "several columns"),
        ("(SELECT 1)", "subquery"),
        ("n IN (SELECT i FROM self)", "subquery"),
        ("(SELECT * FROM read_csv('/etc/hostname'))", "reads a file"),
        ("CURRENT_TIMESTAMP", "not the same at every evaluation"),
        ("n + DATE_PART('hour', now())", "not the same at every evaluation"),
        ("current_date", "not the same at every evaluation"),
        ("RANDOM()", "not the same at every evaluation"),
        ("n +", "not a Polars SQL expression"),
        ("order + 1", "in double quotes"),
    ],
)
def test_what_is_not_of_one_row_and_the_same_every_time_is_refused(sql, said):
    with pytest.raises(ConfigError, match=said) as caught:
        compiled(sql)
    assert f"watch_duration = {sql!r}" in str(caught.value)


@pytest.mark.parametrize("sql", ["at LIKE '%select now() from t%'", '"order" + 1 -- random()', "payload.id = 1"])
def test_words_in_texts_and_comments_are_no_functions(sql):
    compiled(sql)


def test_names_of_another_case_and_missing_ones_have_a_hint():
    with pytest.raises(InputError, match=r"reads 'DIGITS', which log does not have\. Did you mean 'digits'"):
        compiled("DIGITS")
    with pytest.raises(InputError, match="does not fit the columns of log"):
        compiled("NOT digits")
    with pytest.raises(InputError, match="does not fit the columns of log"):
        compiled("at ~ '('")
