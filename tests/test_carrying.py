"""Incremental runs: whose input is the same keeps his rows, and the output equals that of a full run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import START

from genrec_batch import carrying, histories, ordering
from genrec_batch.arrays import Ragged
from genrec_batch.batching import Part
from genrec_batch.catalog import Catalog
from genrec_batch.schema import normalize

AS_OF = ["--as-of", "2026-06-01", "--shard-users", "7", "--precision", "fp32", "--engine", "onnxruntime"]


@pytest.fixture
def nights(log, model_dir, run):
    """Two nights of one log: in the second some users watch more; `call` scores one and returns its summary."""
    log.write_parquet("night1.parquet")
    new = log.head(3).with_columns(
        user_id=pl.Series([103, 120, 999]), timestamp=pl.lit(START) + pl.duration(days=40), watch_percentage=0.5
    )
    pl.concat([log, new]).write_parquet("night2.parquet")

    def call(night, target, *flags):
        done = run("score", f"night{night}.parquet", target, "--model", model_dir, *AS_OF, *flags)
        assert done.code == 0, done.err
        return done

    return call


@pytest.mark.parametrize(("first", "second"), [("a.parquet", "b.parquet"), ("a", "b"), ("a", "b.parquet")])
@pytest.mark.parametrize("layout", ["long", "nested"])
def test_only_changed_users_are_scored_and_the_rows_are_those_of_a_full_run(nights, first, second, layout):
    flags = ["--layout", layout]
    nights(1, first, *flags)
    summary = nights(2, second, "--previous", first, *flags).summary
    assert (summary["users"], summary["carried_users"], summary["scored_users"]) == (41, 38, 3)
    nights(2, "full.parquet", *flags)
    rows = pl.read_parquet(second if second.endswith(".parquet") else f"{second}/part-*.parquet")
    full = pl.read_parquet("full.parquet")
    if layout == "nested":
        lists = [
            name for name, kind in full.schema.items() if kind.is_nested() and kind != full.schema["feature_scores"]
        ]
        rows, full = rows.explode(lists), full.explode(lists)
    floats = [name for name, kind in full.schema.items() if kind == pl.Float32]
    assert rows.drop(floats).equals(full.drop(floats))
    for name in floats:
        assert (rows[name] - full[name]).abs().max() < 1e-5
    assert rows.schema == full.schema


def test_the_same_night_again_scores_nobody(nights):
    nights(1, "a")
    summary = nights(1, "b", "--previous", "a").summary
    assert (summary["carried_users"], summary["scored_users"]) == (40, 0)
    assert pl.read_parquet("a/part-*.parquet").equals(pl.read_parquet("b/part-*.parquet"))
    assert nights(1, "c", "--previous", "b").summary["carried_users"] == 40, "what was carried can be carried on"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--top-k", "5"], "config.top_k"),
        (["--include-seen"], "config.include_seen"),
        (["--weights", "engagement=1"], "config.weights"),
    ],
)
def test_other_options_score_everybody_and_say_why(nights, flags, said):
    nights(1, "a")
    done = nights(1, "b", "--previous", "a", *flags)
    assert (done.summary["scored_users"], done.summary.get("carried_users", 0)) == (40, 0)
    assert said in done.err


def test_another_moment_changes_what_the_model_reads_of_everybody(nights):
    nights(1, "a")
    assert nights(1, "b", "--previous", "a", "--as-of", "2026-06-02").summary["scored_users"] == 40


def test_a_changed_profile_scores_that_user_again(nights, log):
    ids = log["user_id"].unique().sort()
    profiles = pl.DataFrame({"user_id": ids, "age": range(len(ids))})
    profiles.write_parquet("users1.parquet")
    changed = profiles.with_columns(age=pl.when(pl.col("user_id") == 105).then(77).otherwise("age"))
    changed.write_parquet("users2.parquet")
    nights(1, "a", "--users", "users1.parquet")
    summary = nights(1, "b", "--previous", "a", "--users", "users2.parquet").summary
    assert (summary["carried_users"], summary["scored_users"]) == (39, 1)


def test_what_is_no_output_of_ours_is_refused(run, log_file, model_dir, nights):
    nights(1, "a.parquet")
    nights(2, "b.parquet")
    for path in ("nowhere", str(log_file)):
        done = run("score", log_file, "c.parquet", "--model", model_dir, "--previous", path)
        assert (done.code, f"--previous {path}" in done.err) == (3, True)
    Path("b.parquet.fingerprints").replace("a.parquet.fingerprints")
    done = run("score", log_file, "c.parquet", "--model", model_dir, "--previous", "a.parquet")
    assert done.code == 3, "fingerprints of another output say nothing of this one"


def part_of(log):
    """A part with everything that a user's rows can depend on."""
    events = normalize(log)
    ids, built = histories.build(
        events, catalog=Catalog.from_events(events, vocabulary=99), as_of_us=2**52, max_events=20, seen_limit=9
    )
    users = len(ids)
    vectors = np.ones((users, 4), np.float32), np.ones(users, np.bool_)
    given = Ragged(offsets_N1=np.arange(users + 1) * 2, values=np.arange(2 * users, dtype=np.int32))
    dense_NF = np.tile(np.arange(1024, dtype=np.float32), (users, 1))
    return Part(
        histories=built, dense_NF=dense_NF, profile=vectors, video=vectors, candidates=given, include_seen=False
    )


def test_every_part_of_a_users_input_is_in_the_fingerprint(log):
    part = part_of(log)
    before = carrying.fingerprints(part)
    assert len(np.unique(before, axis=0)) == len(before), "users whose histories differ"
    assert (before == carrying.fingerprints(part_of(log))).all()
    assert (before[5:9] == carrying.fingerprints(part.take(np.arange(5, 9)))).all(), "neighbours do not matter"
    assert (before == carrying.fingerprints(part, ordering.kernels())).all(), "compiled sums are the same"
    user, rows = 7, part.histories
    for array, place in (
        (part.dense_NF, (user, 1023)),
        (rows.tokens_E, rows.offsets_N1[user]),
        (rows.seen.values, rows.seen.offsets_N1[user + 1] - 1),
        (part.candidates.values, 2 * user),
        (part.profile[0], (user, 3)),
        (part.video[1], user),
    ):
        kept, array[place] = array[place].copy(), 1 - array[place]
        changed = (carrying.fingerprints(part) != before).any(axis=1)
        assert changed.nonzero()[0].tolist() == [user]
        array[place] = kept
