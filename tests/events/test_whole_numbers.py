"""`whole_numbers` and `trees`: arithmetic in entries of `--schema` against Python's integers, which have no width."""

from __future__ import annotations

import itertools

import polars as pl
import pytest

from genrec_batch.events.expressions import entry

MIN, MAX = -(2**63), 2**63 - 1
EDGES = [0, 1, -1, 2, 7, -1000, 2**31, 2**32 + 1, 3_037_000_500, -(2**62), 2**62, MAX - 1, MAX, MIN, MIN + 1]
PAIRS = pl.DataFrame(list(itertools.product(EDGES, EDGES)), schema={"a": pl.Int64, "b": pl.Int64}, orient="row")


def quotient(a, b):
    if b == 0:
        return None
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


@pytest.mark.parametrize(
    ("sql", "exact"),
    [
        ("a + b", lambda a, b: a + b),
        ("a - b", lambda a, b: a - b),
        ("a * b", lambda a, b: a * b),
        ("a // b", quotient),
        ("-a", lambda a, _: -a),
        ("ABS(a)", lambda a, _: abs(a)),
        ("a * 1000000", lambda a, _: a * 1_000_000),
        ("a * 1000 + b", lambda a, b: a * 1000 + b if MIN <= a * 1000 <= MAX else 2**64),
        ("COALESCE(a * b, 7)", lambda a, b: a * b if MIN <= a * b <= MAX else 7),
    ],
)
def test_a_result_beyond_64_bits_is_null_and_fails_on_its_row(sql, exact):
    compiled = entry("watch_duration", sql, PAIRS.schema, "log")
    found = PAIRS.select(value=compiled.value, fails=compiled.fails)
    wanted = [exact(*row) for row in PAIRS.rows()]
    fits = [value is not None and MIN <= value <= MAX for value in wanted]
    assert found["value"].to_list() == [value if fit else None for value, fit in zip(wanted, fits, strict=True)]
    fails = [value is not None and not fit for value, fit in zip(wanted, fits, strict=True)]
    assert found["fails"].to_list() == fails


@pytest.mark.parametrize("sql", ["n * 1000", "n + n", "n * n - 1", "CAST(n AS SMALLINT) * 30000"])
def test_what_cannot_leave_64_bits_is_not_watched(sql):
    narrow = pl.DataFrame({"n": pl.Series([1, -(2**31), 2**31 - 1], dtype=pl.Int32)})
    outer = entry("watch_duration", sql, narrow.schema, "log")
    if sql in ("n * 1000", "n + n"):
        assert outer.fails is None
    assert narrow.select(outer.value).to_series().dtype == pl.Int64


def test_sums_of_lists_and_decimals_do_not_wrap():
    frame = pl.DataFrame({"list": [[2**62, 2**62], [1, None], [], None], "price": ["99999999999999999999.5"] * 4})
    frame = frame.with_columns(pl.col("price").cast(pl.Decimal(38, 2)))
    sums = entry("watch_duration", "ARRAY_SUM(list)", frame.schema, "log")
    assert frame.select(sums.value).to_series().to_list() == [None, 1, 0, None]
    assert frame.select(sums.fails).to_series().to_list() == [True, False, False, False]
    product = entry("watch_duration", "price * price", frame.schema, "log").value
    assert frame.select(product).to_series()[0] == pytest.approx(1e40)
