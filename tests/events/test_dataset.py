"""From files and options to users, events, tables, catalog and model; `user_histories` loads what they hold."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.errors import ConfigError, InputError, NothingToScoreError
from genrec_batch.core.options import HistoryConfig
from genrec_batch.events import dataset
from genrec_batch.events.dataset import Dataset


@pytest.fixture
def config(model_dir):
    return HistoryConfig(model=str(model_dir), shard_users=7, max_events=9)


def tokens(dataset):
    """Return the kept tokens of each user, by id."""
    with closing(dataset.users):
        shards = list(dataset.users.shards())
    assert [shard.number for shard in shards] == list(range(len(shards)))
    ids = dataset.users.ids.to_list()
    return {
        ids[shard.start + row]: shard.histories.slice(row, row + 1).tokens_E.tolist()
        for shard in shards
        for row in range(len(shard))
    }


def test_a_file_and_its_rows_in_memory_are_the_same_data_set(log, log_file, config):
    read, held = Dataset.open(str(log_file), config), Dataset.open(log, config)
    assert (set(read.inputs), set(held.inputs)) == ({"events"}, set())
    assert tokens(read) == tokens(held)
    assert read.facts["users"] == held.facts["users"] == log["user_id"].n_unique()
    assert read.model.tokens == 2 + len(read.catalog)


def test_rows_in_memory_are_never_spilled_and_a_file_beyond_the_memory_limit_is(log, log_file, config, tmp_path):
    rows = pl.concat([log] * 60)
    rows.write_parquet(log_file)
    small = HistoryConfig(model=config.model, shard_users=7, max_events=9, memory_limit="1MiB")
    read, held = Dataset.open(str(log_file), small, spill_beside=str(tmp_path / "recs")), Dataset.open(rows, small)
    assert (read.facts["partitioned"], held.facts["partitioned"]) == ("spill", "memory")
    assert list(tmp_path.glob(".genrec-spill-*"))
    assert tokens(read) == tokens(held)
    assert not list(tmp_path.glob(".genrec-spill-*")), "closed"


def test_shards_that_are_skipped_are_not_loaded(log_file, config):
    dataset = Dataset.open(str(log_file), config)
    loaded = []
    dataset.users.load = lambda bucket: loaded.append(bucket) or dataset.users.__class__.load(dataset.users, bucket)
    assert [shard.number for shard in dataset.users.shards(dataset.users.groups({0, 2}))] == [1, 3, 4, 5]
    assert list(dataset.users.shards(dataset.users.groups(range(6)))) == []
    assert len(loaded) == 1


def test_the_first_shard_is_loaded_once(log_file, config):
    dataset = Dataset.open(str(log_file), config)
    first = dataset.users.first_shard()
    assert len(first) == 7
    again = next(dataset.users.shards())
    np.testing.assert_array_equal(again.histories.tokens_E, first.tokens_E)
    assert np.shares_memory(again.histories.tokens_E, first.tokens_E)


def test_a_head_start_knows_the_model_with_its_catalog(log_file, config):
    told = []

    class Ahead:
        def start(self):
            told.append("start")

        def know(self, model):
            told.append(model.tokens)

    dataset = Dataset.open(str(log_file), config, ahead=Ahead())
    assert told == ["start", dataset.model.tokens]


def test_users_of_the_tables_are_in_it_and_those_asked_for_alone(log_file, model_dir):
    pl.DataFrame({"user_id": [105, 9000], "country": ["x", "y"]}).write_parquet("users.parquet")
    options = {"model": str(model_dir), "users": "users.parquet"}
    dataset = Dataset.open(str(log_file), HistoryConfig(**options))
    assert dataset.users.ids.to_list() == [*range(100, 140), 9000]
    assert dataset.users.users.events_N[-1] == 0
    some = Dataset.open(str(log_file), HistoryConfig(**options, user=("9000", "105")))
    assert some.users.ids.to_list() == [105, 9000]
    table, rows = some.tables.profiles(some.users.table_row_N)
    assert (len(table.hashed_R200), rows.tolist()) == (2, [0, 1])
    with pytest.raises(ConfigError, match="--user 7: neither in INPUT"):
        Dataset.open(str(log_file), HistoryConfig(**options, user=("7",)))


def test_nobody_to_score_is_an_error_of_its_own(log, log_file, config):
    with pytest.raises(NothingToScoreError, match="no rows"):
        Dataset.open(log.clear(), config)
    with pytest.raises(NothingToScoreError, match="--as-of 2001-01-01"):
        Dataset.open(str(log_file), HistoryConfig(model=config.model, as_of="2001-01-01"))
    with pytest.raises(InputError, match=r"missing\.parquet"):
        Dataset.open(str(Path("missing.parquet")), config)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize(
    "command",
    [
        "score {log} recs.parquet --model {model}",
        "evaluate {log} --model {model}",
        "verify {log} --model {model}",
        "train {log} --out new --init-from {model} --epochs 1",
    ],
)
def test_a_model_that_is_replaced_while_read_is_another_time(
    run, log_file, model_dir, tmp_path, monkeypatch, damaged, command
):
    shutil.copytree(model_dir, tmp_path / "m")
    load = dataset.weights.load

    def replaced(directory, *named):
        loaded = load(directory, *named)
        file = directory / "catalog.parquet"
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(b"PAR1" if damaged else content + b"")
        os.utime(file, ns=(0, 1))
        return loaded

    monkeypatch.setattr(dataset.weights, "load", replaced)
    done = run(*command.format(log=log_file, model=tmp_path / "m").split())
    assert (done.code, "catalog.parquet changed while it was read" in done.err) == (75, True), done.err
