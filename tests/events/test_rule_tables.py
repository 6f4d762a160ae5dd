"""`rule_tables` and `moments`: which rows of a table of a rule count, and what is said of those that cannot."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.core.rule_options import MaxAge
from genrec_batch.events.moments import moments_us
from genrec_batch.events.rule_tables import uploaded

AS_OF = "2026-05-01T12:00:00"


@pytest.fixture
def score(run, log_file, model_dir):
    def call(*flags):
        fixed = ["--model", model_dir, "--engine", "torch", "--precision", "fp32", "--top-k", 4, "--as-of", AS_OF]
        return run("score", log_file, "o.parquet", *fixed, "--if-exists", "overwrite", *flags)

    return call


@pytest.fixture
def recommended(score):
    """Return the videos of some user after a run with some flags, all users of all by default."""

    def call(*flags, user=None):
        done = score(*flags)
        assert done.code == 0, done.err
        rows = pl.read_parquet("o.parquet")
        return set((rows if user is None else rows.filter(pl.col("user_id") == user))["video_id"])

    return call


def table(name, **columns):
    pl.DataFrame(columns).write_parquet(name)
    return name


def test_a_row_counts_while_as_of_is_between_from_and_until(recommended):
    free = sorted(recommended())
    a, b, c, d, e = free[:5]
    first = ["2026-05-01", "2026-05-02", None, "2026-04-01T00:00:00+02:00", "2026-05-01T12:00:00"]
    until = [None, None, "2026-05-01 12:00:00", "2026-05-01T12:00:01Z", "2026-06-01"]
    banned = table("bans.parquet", video_id=[a, b, c, d, e], **{"from": first, "until": until})
    found = recommended("--exclude", banned)
    assert found & {a, d, e} == set()
    assert {b, c} <= found


def test_epochs_and_dates_are_moments_too(recommended):
    free = sorted(recommended())
    now = dt.datetime(2026, 5, 1, 12, tzinfo=dt.timezone.utc)
    epochs = [int(now.timestamp()) - 1, int(now.timestamp()) + 1]
    assert free[0] not in recommended("--exclude", table("a.parquet", video_id=free[:2], **{"from": epochs}))
    assert free[1] in pl.read_parquet("o.parquet")["video_id"]
    dates = [dt.date(2026, 5, 1), dt.date(2026, 5, 2)]
    found = recommended("--exclude", table("b.parquet", video_id=free[:2], until=dates))
    assert (free[0] in found, free[1] in found) == (True, False)


def test_a_row_that_cannot_be_read_is_rejected_and_never_one_for_everybody(score, recommended):
    free = sorted(recommended())
    rows = {
        "video_id": [free[0], free[1], None, free[2], free[3]],
        "user_id": [None, 101, 101, 101, 101],
        "from": ["2020-01-01", "soon", "2020-01-01", "2026-01-02", "2020-01-01"],
        "until": [None, None, None, "2026-01-01", None],
    }
    table("own.parquet", **rows)
    assert score("--exclude", "own.parquet").code == 6
    done = score("--exclude", "own.parquet", "--max-rejects", "1", "--rejects", "rejects.parquet")
    assert done.code == 0, done.err
    reasons = {"user_id is null": 1, "from is no moment": 1, "video_id is null": 1, "from is not before until": 1}
    assert done.summary["rejected_rows_of_tables"] == {"exclude": reasons}
    assert set(pl.read_parquet("rejects.parquet").filter(pl.col("input") == "exclude")["row"]) == {0, 1, 2, 3}
    assert free[0] in pl.read_parquet("o.parquet")["video_id"]


def test_a_text_with_an_id_on_each_line_is_a_table(recommended, tmp_path):
    free = sorted(recommended())
    (tmp_path / "bans.txt").write_text(f"video_id\n{free[0]}\n{free[1]}\n\n")
    assert recommended("--exclude", "bans.txt") & set(free[:2]) == set()
    (tmp_path / "some.txt").write_text("\n".join(map(str, free[:40])))
    assert recommended("--only", "some.txt") <= set(free[:40])


def test_ids_of_another_type_are_compared_or_refused(score, recommended):
    free = sorted(recommended())
    assert free[0] not in recommended("--exclude", table("a.parquet", video_id=[str(free[0])]))
    done = score("--exclude", table("b.parquet", video_id=["x", "y"]))
    assert (done.code, "column 'video_id' is String" in done.err) == (3, True)
    done = score("--exclude", table("c.parquet", video_id=[free[0]] * 2, user_id=["101", "x"]), "--max-rejects", 0.5)
    assert done.code == 0, done.err
    assert done.summary["rejected_rows_of_tables"]["exclude"] == {"user_id is no Int64, as the log's are": 1}
    assert done.summary["rules"]["--exclude c.parquet"] == {"users": 1, "rows": 1}


def test_unknown_videos_are_counted_and_a_table_of_nothing_else_is_an_error(score, log):
    known = int(log["video_id"][0])
    done = score("--exclude", table("a.parquet", video_id=[known, 5, 6]))
    assert done.code == 0, done.err
    assert done.summary["matches"]["exclude"] == {"ids": 3, "against": "catalog and log", "met": 1}
    assert "1 of its 3 video_id are in the model's catalog or in INPUT" in done.err
    for flag in ("--exclude", "--only"):
        done = score(flag, table("b.parquet", video_id=[5, 6]))
        assert (done.code, "0 of its 2 video_id" in done.err, "--min-match 0" in done.err) == (3, True, True)
    assert score("--exclude", "b.parquet", "--min-match", 0).code == 0


def test_an_empty_table_excludes_nothing_and_allows_nothing(score):
    table("none.parquet", video_id=pl.Series([], dtype=pl.Int64))
    done = score("--exclude", "none.parquet")
    assert (done.code, "no row counts, so it excludes nothing" in done.err) == (0, True)
    done = score("--only", "none.parquet")
    assert (done.code, "--only none.parquet: no rows, so nothing could be recommended" in done.err) == (3, True)
    table("past.parquet", video_id=[1001], until=["2020-01-01"])
    done = score("--only", "past.parquet")
    assert (done.code, "none of its 1 rows counts at as-of" in done.err) == (3, True)


def test_a_table_without_video_id_names_the_nearest_column(score):
    done = score("--exclude", table("a.parquet", vide_id=[1]))
    assert (done.code, "column 'video_id' is missing. Did you mean 'vide_id'?" in done.err) == (3, True)


def test_tables_are_inputs_of_the_run(score, log):
    table("a.parquet", video_id=[int(log["video_id"][0])])
    first, second = score("--exclude", "a.parquet").summary, score("--exclude", "a.parquet").summary
    table("a.parquet", video_id=[int(log["video_id"][1])])
    assert first["run_id"] == second["run_id"] != score("--exclude", "a.parquet").summary["run_id"]


def test_nothing_eligible_ends_the_run_before_scoring(score, log):
    table("all.parquet", video_id=log["video_id"].unique())
    done = score("--exclude", "all.parquet")
    assert (done.code, "no video of the catalog is left for anybody, so nothing is scored" in done.err) == (6, True)


VIDEOS = pl.DataFrame({"video_id": [1, 2], "upload_dt": ["2026-01-01", None], "seen": [0.5, 1.5], "note": ["x", "y"]})


def test_the_obvious_column_has_the_time_of_upload():
    found = uploaded(VIDEOS, MaxAge(column=None, span_us=1), "--videos v")
    assert found.rows() == [(1, 1767225600 * 10**6), (2, None)]
    assert uploaded(VIDEOS, None, "--videos v") is None


@pytest.mark.parametrize(
    ("frame", "column", "message"),
    [
        (VIDEOS, "upload_date", "--max-age upload_date: --videos v has no such column. Did you mean 'upload_dt'"),
        (VIDEOS.drop("upload_dt"), None, "no column of --videos v that is obviously.* candidates: seen, note"),
        (VIDEOS.with_columns(created_at=0), None, "several columns of --videos v .* candidates: created_at, upload_dt"),
        (VIDEOS, "note", "--videos v: column 'note' holds no moments, such as 'x'"),
        (VIDEOS, "seen", "--videos v: column 'seen' holds no moments, such as 0.5"),
        (VIDEOS.with_columns(pl.lit([[1]]).alias("list")), "list", "column 'list' is List"),
    ],
)
def test_a_column_that_cannot_have_the_time_of_upload_is_an_error(frame, column, message):
    with pytest.raises((ConfigError, InputError), match=message):
        uploaded(frame, MaxAge(column=column, span_us=1), "--videos v")


def test_moments_of_all_kinds_are_microseconds():
    us = 1767225600 * 10**6
    for values in ([1767225600, None], [1767225600.0, None], ["2026-01-01", None], ["2026-01-01T00:00:00Z", None]):
        assert moments_us(pl.Series("at", values), "t").to_list() == [us, None]
    berlin = pl.Series("at", [us]).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone("Europe/Berlin")
    assert moments_us(berlin, "t").to_list() == [us]
    assert moments_us(pl.Series("at", [None, None]), "t").to_list() == [None, None]
    with pytest.raises(InputError, match="column 'at' is Duration"):
        moments_us(pl.Series("at", [dt.timedelta(1)]), "t")
