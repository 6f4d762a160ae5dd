"""`recommended`: whatever the layout, the same row for each recommendation."""

from __future__ import annotations

import json

import polars as pl
import pytest

from genrec_batch.io.published import PARTITION
from genrec_batch.io.recommended import FORM, Recommended

LONG = pl.DataFrame(
    {
        "user_id": [1, 1, 3],
        "rank": pl.Series([1, 2, 1], dtype=pl.Int32),
        "video_id": ["a", "b", "c"],
        "score": [0.5, 0.25, None],
        "tags": [["x"], None, ["y", "z"]],
        "age": [7, 7, 9],
        "langs": [["de"], ["de"], ["fr"]],
    }
)
ABOUT = {FORM: json.dumps({"items": ["rank", "video_id", "score", "tags"], "layout": "any"})}
NESTED = pl.DataFrame(
    {
        "user_id": [1, 2, 3],
        "video_id": [["a", "b"], [], ["c"]],
        "score": [[0.5, 0.25], [], [None]],
        "tags": [[["x"], None], [], [["y", "z"]]],
        "age": [7, 8, 9],
        "langs": [["de"], None, ["fr"]],
    },
    schema_overrides={"score": pl.List(pl.Float64), "tags": pl.List(pl.List(pl.String))},
)
WIDE = pl.DataFrame(
    {
        "user_id": [1, 2, 3],
        "video_id_1": ["a", None, "c"],
        "video_id_2": ["b", None, None],
        "score_1": [0.5, None, None],
        "score_2": [0.25, None, None],
        "tags_1": [["x"], None, ["y", "z"]],
        "tags_2": pl.Series([None] * 3, dtype=pl.List(pl.String)),
        "age": [7, 8, 9],
        "langs": [["de"], None, ["fr"]],
    }
)


@pytest.fixture(params=["long", "nested", "nested with ranks", "wide"])
def output(request, tmp_path):
    ranks = pl.Series("rank", [[1, 2], [], [1]], dtype=pl.List(pl.Int32))
    stored = {"long": LONG, "nested": NESTED, "nested with ranks": NESTED.with_columns(ranks), "wide": WIDE}
    stored[request.param].write_parquet(tmp_path / "recs.parquet")
    found = Recommended.of([tmp_path / "recs.parquet"], ABOUT)
    assert found.layout == request.param.partition(" ")[0]
    return found


def test_all_layouts_give_the_same_rows(output):
    assert output.all_rows(LONG.columns).collect().equals(LONG)
    assert set(output.names) == set(LONG.columns)
    assert output.all_rows().collect().select(LONG.columns).equals(LONG)


@pytest.mark.parametrize("columns", [["user_id"], ["rank"], ["age", "video_id"], ["tags", "user_id"]])
def test_some_columns_are_those_of_all(output, columns):
    assert output.all_rows(columns).collect().equals(LONG.select(columns))


def test_shards_are_row_groups_of_one_file(tmp_path):
    LONG.sort("user_id").write_parquet(tmp_path / "recs.parquet", row_group_size=2)
    shards = list(Recommended.of([tmp_path / "recs.parquet"], {}).shards())
    assert [shard["user_id"].to_list() for shard in shards] == [[1, 1], [3]]


def test_many_folders_are_one_scan(tmp_path, recwarn):
    """One scan for each folder starts threads for each, until Polars warns of a deadlock."""
    folders = [tmp_path / f"user_id={user}" for user in range(600)]
    for folder in folders:
        folder.mkdir()
        LONG.head(1).drop("user_id").write_parquet(folder / "part-00000.parquet")
    metadata = {PARTITION: json.dumps({"column": "user_id", "type": "Int64"})}
    rows = Recommended.of([folder / "part-00000.parquet" for folder in folders], metadata)
    found = rows.all_rows(["user_id", "video_id"]).sort("user_id").collect()
    assert found.rows() == [(user, "a") for user in range(600)]
    assert not recwarn.list


@pytest.mark.parametrize("partition", [None, "age"])
def test_shards_have_the_columns_that_are_asked_for(tmp_path, partition):
    folder, metadata, frame = tmp_path, dict(ABOUT), LONG
    if partition is not None:
        folder, frame = tmp_path / "age=7", LONG.drop("age")
        folder.mkdir()
        metadata[PARTITION] = json.dumps({"column": "age", "type": "Int64"})
    frame.write_parquet(folder / "part-00000.parquet")
    rows = Recommended.of([folder / "part-00000.parquet"], metadata)
    (shard,) = rows.shards(["age", "video_id"])
    assert shard.columns == ["age", "video_id"]
    assert shard["video_id"].to_list() == ["a", "b", "c"]
