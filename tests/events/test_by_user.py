"""`by_user` and `survey`: a log in any order, of any size gives the same rows, in memory, spilled or direct."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec_batch.events import by_user, sorter_choice, sorter_numba
from genrec_batch.io import row_groups
from tests.conftest import small_log

SAMPLE = Path(__file__).parents[2] / "sample_data" / "events.parquet"
SMALL = ["--memory-limit", "1MiB", "--shard-users", "60"]


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    """Let a few hundred rows be what a million are in a real log."""
    monkeypatch.setattr(row_groups, "GROUP_ROWS", 700)


@pytest.fixture
def written(run, model_dir):
    """Run `features` and return its summary and rows; the run must work."""

    def call(log, *flags):
        target = f"out-{len(list(Path().glob('out-*')))}.parquet"
        done = run("features", log, target, "--model", model_dir, *flags)
        assert done.code == 0, done.err
        return done.summary, pl.read_parquet(target)

    return call


@pytest.fixture(scope="session")
def big():
    """Enough events that one MiB does not hold them."""
    return small_log(users=400, mean=30)


def test_the_rows_do_not_depend_on_the_way_or_the_memory(written, big):
    big.write_parquet("any.parquet")
    big.sort("timestamp", maintain_order=True).write_parquet("time.parquet")
    big.sort("user_id", maintain_order=True).write_parquet("user.parquet", row_group_size=350)
    ways = {}
    summary, expected = written("any.parquet")
    assert (summary["partitioned"], summary["buckets"]) == ("memory", 1)
    for log, flags in (("any", SMALL), ("time", SMALL), ("user", SMALL), ("user", []), ("time", [])):
        summary, rows = written(f"{log}.parquet", *flags)
        ways[log, bool(flags)] = summary["partitioned"]
        assert rows.drop("tokens").equals(expected.drop("tokens")), (log, flags)
        if log != "user":  # equal times keep the input order, and so do sorts by user and by time
            assert rows["tokens"].equals(expected["tokens"])
    assert ways == {
        ("any", True): "spill",
        ("time", True): "spill",
        ("user", True): "direct",
        ("user", False): "memory",  # one bucket
        ("time", False): "memory",
    }


@pytest.mark.parametrize("flags", [[], SMALL])
def test_compiled_sorts_give_the_rows_of_the_plain_ones(written, big, monkeypatch, flags):
    odd = ["user_id", "video_id", "timestamp", "is_liked", "device_type"]  # columns that do not fill whole words
    for number, columns in enumerate((odd, odd[:4], big.columns)):
        big.select(columns).write_parquet(f"log{number}.parquet")
        _, expected = written(f"log{number}.parquet", *flags)
        for tile_bytes, most_tiles in ((1 << 20, 1 << 14), (2000, 1 << 14), (2000, 1)):
            with monkeypatch.context() as patched:
                patched.setattr(sorter_choice, "COMPILED_FROM", 0)
                patched.setattr(sorter_numba, "TILE_BYTES", tile_bytes)
                patched.setattr(by_user, "MOST_TILES", most_tiles)
                assert written(f"log{number}.parquet", *flags)[1].equals(expected), (tile_bytes, most_tiles)


def test_time_order_is_found_and_reported(written, big):
    big.write_parquet("any.parquet")
    big.sort("timestamp").write_parquet("time.parquet")
    assert written("any.parquet")[0]["time_ordered"] is False
    assert written("time.parquet")[0]["time_ordered"] is True


def test_string_ids_and_ids_far_apart_go_the_same_ways(run, big, model_dir):
    Path("bare").mkdir()
    for name in ("config.json", "model.safetensors"):  # without a catalog: each log brings its own
        Path("bare", name).write_bytes(Path(model_dir, name).read_bytes())
    far = pl.col("user_id") * 7_919_000_000_003
    logs = {
        "near": big,
        "far": big.with_columns(user_id=far),
        "text": big.with_columns(user_id=pl.format("u{}", "user_id"), video_id=pl.format("v{}", "video_id")),
    }
    rows = {}
    for name, frame in logs.items():
        frame.write_parquet(f"{name}.parquet")
        for flags in ([], SMALL):
            target = f"{name}-{len(flags)}.parquet"
            done = run("features", f"{name}.parquet", target, "--model", "bare", *flags)
            assert done.code == 0, done.err
            rows[target] = pl.read_parquet(target)
    expected = rows["near-0.parquet"]
    for target, found in rows.items():
        assert found.drop("user_id").equals(expected.drop("user_id")), target
    assert rows["far-4.parquet"]["user_id"].equals(expected.select(far).to_series())
    assert rows["text-4.parquet"]["user_id"].equals(expected.select(pl.format("u{}", "user_id")).to_series())


def test_every_output_is_the_same_to_the_byte_whatever_the_memory(run, model_dir):
    for number, limit in enumerate(("1GiB", "1MiB")):
        flags = ["--shard-users", "100", "--memory-limit", limit, "--limit", "300", "--precision", "fp32"]
        flags += ["--min-match", "0"]  # the model is of another log
        done = run("score", SAMPLE, f"{number}", "--model", model_dir, "--engine", "onnxruntime", *flags)
        assert done.code == 0, done.err
        assert done.summary["partitioned"] == ("memory" if limit == "1GiB" else "spill")
    for name in ("part-00000.parquet", "part-00001.parquet", "part-00002.parquet"):
        assert Path("0", name).read_bytes() == Path("1", name).read_bytes()


def test_a_large_row_group_is_read_in_slices(written, big):
    big.write_parquet("one.parquet", row_group_size=10**9)
    big.write_parquet("many.parquet", row_group_size=100)
    folder = Path("files")
    folder.mkdir()
    for number in range(0, len(big), 97):
        big.slice(number, 97).write_parquet(folder / f"{number:06d}.parquet")
    _, expected = written("one.parquet", *SMALL)
    assert written("many.parquet", *SMALL)[1].equals(expected)
    assert written("files", *SMALL)[1].equals(expected)


def test_spill_files_go_whatever_ends_the_run(run, model_dir, big, monkeypatch):
    big.write_parquet("any.parquet")
    spill = Path("spill")
    spill.mkdir()
    flags = ["--model", model_dir, *SMALL, "--spill-dir", spill]
    done = run("features", "any.parquet", "a.parquet", *flags)
    assert (done.code, done.summary["partitioned"]) == (0, "spill"), done.err
    assert list(spill.iterdir()) == []

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(by_user.RecordReader, "_scored", stopped)
        assert run("features", "any.parquet", "b.parquet", *flags).code == 130
    assert list(spill.iterdir()) == []


def test_spill_files_that_are_written_only_in_part_are_another_time(run, model_dir, big):
    """A write that fits in part returns without an error, on a full disk as at the limit of a file's size."""
    big.write_parquet("any.parquet")
    Path("spill").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_001, before[1]))
    try:
        done = run("features", "any.parquet", "a.parquet", "--model", model_dir, *SMALL, "--spill-dir", "spill")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (done.code, "--spill-dir spill: a file may not be so large" in done.err) == (75, True), done.err
    assert not list(Path("spill").iterdir())
    assert not Path("a.parquet").exists()


def test_a_spill_folder_that_is_not_there_is_named(run, model_dir, log_file):
    done = run("features", log_file, "a.parquet", "--model", model_dir, "--spill-dir", "nowhere")
    assert (done.code, "--spill-dir nowhere" in done.err) == (2, True)


@pytest.mark.parametrize("limit", ["", "lots", "5", "10KiB", "-1GiB"])
def test_a_memory_limit_that_is_none_is_refused(run, log_file, limit):
    done = run("features", log_file, "a.parquet", "--memory-limit", limit)
    assert (done.code, "--memory-limit" in done.err) == (2, True)


def test_buckets_are_whole_shards_in_order():
    events_N = np.array([5, 5, 5, 90, 1, 1, 1, 1])
    users = by_user.Users(ids=pl.Series(range(8)), events_N=events_N)
    made = by_user.buckets(users, 2, 12)
    assert [(b.start, b.stop, b.events) for b in made] == [(0, 2, 10), (2, 4, 95), (4, 8, 4)]
    assert [b.number for b in made] == [0, 1, 2]
