"""What a step reads: the input of `score` at a cut, targets after it, and nothing that is already seen."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest

from genrec_batch.core.options import HistoryConfig
from genrec_batch.events.dataset import Dataset
from genrec_batch.events.labels import head_labels
from genrec_batch.events.whole import read_whole
from genrec_batch.features.batches import Vectorizer
from genrec_batch.model import weights
from genrec_batch.runtime.clock import Stages
from genrec_batch.training.inputs import DROPPED, Events, Standard
from genrec_batch.training.rows import Rows, Window, batches, draw, generator, shuffled
from tests.conftest import START, small_log

VOCABULARY = 60
LATER = START + dt.timedelta(days=60)
WINDOW = Window(history=6, horizon=4)
from tests.logs import catalog_of


def side_tables(folder):
    pl.DataFrame({"user_id": range(95, 130), "level": [i % 5 for i in range(35)], "vip": [True, None] * 17 + [False]}
    ).write_parquet(folder / "users.parquet")  # fmt: skip
    pl.DataFrame(
        {
            "video_id": range(1000, 1100),
            "category": [f"c{i % 7}" for i in range(100)],
            "video_vector": [[float(i % 3), *[0.5] * 511] for i in range(100)],
        }
    ).write_parquet(folder / "videos.parquet")
    return {"users": str(folder / "users.parquet"), "videos": str(folder / "videos.parquet")}


@pytest.fixture
def logs(tmp_path):
    """A log, and the same with one more event of each user, all of them at one moment."""
    log = small_log()
    more = log.unique("user_id", keep="first", maintain_order=True).with_columns(
        timestamp=pl.lit(LATER).cast(log.schema["timestamp"]), video_id=pl.lit(1003, pl.Int64)
    )
    log.write_parquet(tmp_path / "log.parquet")
    pl.concat([log, more]).write_parquet(tmp_path / "more.parquet")
    return tmp_path


def learned(folder, name, *, include_seen=False, **sides):
    catalog = catalog_of(small_log(), vocabulary=VOCABULARY)
    log = read_whole(str(folder / name), lambda *_: catalog, Stages(), **sides)
    events = Events.of(
        log.events,
        head_labels(log.events),
        users=log.users,
        videos=log.videos,
        include_seen=include_seen,
        window=WINDOW,
        kernel="numpy",
    )
    return catalog, events


def rows_at_the_end(events):
    """Each user's newest event as the target."""
    stop = events.whole.offsets_N1[1:]
    return Rows(
        user_R=np.arange(len(stop)),
        first_R=np.maximum(events.whole.offsets_N1[:-1], stop - 1 - WINDOW.history),
        target_R=stop - 1,
        stop_R=stop,
        cut_R=np.ones(len(stop), np.bool_),
        moment_R=np.ones(len(stop)),  # as of the target itself
    )


def test_a_row_cut_at_the_last_event_reads_what_score_feeds_the_engine(logs):
    sides = side_tables(logs)
    catalog, events = learned(logs, "more.parquet", **sides)
    directory = logs / "model"
    config = weights.ModelConfig(vocabulary=VOCABULARY, width=16, ffn=16, layers=1, positions=64, heads=2)
    weights.save(directory, config, weights.initial_weights(config, 3), trained=True, card="")
    catalog.write(directory / "catalog.parquet")
    scored = HistoryConfig(model=str(directory), as_of=LATER.isoformat(), max_events=WINDOW.history, **sides)
    dataset = Dataset.open(str(logs / "log.parquet"), scored)
    of_score = Vectorizer.of(dataset).inputs(dataset.users.load(dataset.users.store.buckets[0]), 0)
    ids = dataset.users.ids.to_list()
    kept = [place for place, user in enumerate(ids) if user in set(small_log()["user_id"])]
    batch = of_score.batch(np.array(kept))
    (ours,) = events.batches(rows_at_the_end(events), [np.arange(len(kept))], seed=1, epoch=0, start=0, unknown=0.0)
    np.testing.assert_array_equal(ours.vectors.dense_KF, batch.dense_BF)
    np.testing.assert_array_equal(ours.vectors.video[0], batch.video_BV)
    np.testing.assert_array_equal(ours.vectors.video[1], batch.has_video_B)
    np.testing.assert_array_equal(ours.lengths_B - 1, batch.lengths_B)  # the target itself is read for the heads
    real = np.arange(batch.tokens_BS.shape[1]) < batch.lengths_B[:, None]
    np.testing.assert_array_equal(ours.tokens_BS[:, :-1][real], batch.tokens_BS[real])


def read_order(mine, block, number):
    """The events of each row's targets in the order in which they are read."""
    events = [event for row in range(len(mine)) for event in range(mine.target_R[row], mine.stop_R[row])]
    if block > 1:
        events = [events[place] for place in shuffled(mine, block, generator(1, DROPPED, 0, number))]
    ends = np.cumsum(mine.stop_R - mine.target_R)
    return [
        events[end - stop + target : end] for end, stop, target in zip(ends, mine.stop_R, mine.target_R, strict=True)
    ]


@pytest.mark.parametrize("block", [1, 3])
def test_targets_follow_what_is_read_and_what_is_seen_is_masked(logs, block):
    _, events = learned(logs, "log.parquet")
    rows, order = events.epoch(1, 0, 8)
    tokens, codes = events.whole.tokens_E, events.whole.video_code_E
    for number, batch in enumerate(events.batches(rows, order, seed=1, epoch=0, start=0, unknown=0.0, block=block)):
        mine, width = rows.take(order[number]), batch.tokens_BS.shape[1] + 1
        targets, labels = read_order(mine, block, number), []
        seen_by_place = dict(zip(batch.place_P.tolist(), range(len(batch.place_P)), strict=True))
        expected = []
        for row in range(len(mine)):
            first, target, stop = (int(a[row]) for a in (mine.first_R, mine.target_R, mine.stop_R))
            begin = int(events.whole.offsets_N1[mine.user_R[row]])
            assert batch.lengths_B[row] == stop - first - (not mine.cut_R[row])
            for step, event in enumerate(targets[row], target - first):
                place = row * width + step
                p = seen_by_place[place]
                expected.append(place)
                read = [*range(begin, target), *targets[row][: step - (target - first)]]
                before = set(tokens[read].tolist()) - {1}
                start, count = batch.seen_start_P[p], batch.seen_count_P[p]
                assert {int(m) + 2 for m in batch.seen_M[start : start + count]} == before
                fresh = codes[event] not in codes[read]
                assert batch.weight_P[p] == (tokens[event] > 1 and fresh)
                if tokens[event] > 1:
                    assert batch.target_P[p] == tokens[event] - 2
                if step:  # the position has read all events before its target, and no more
                    assert batch.tokens_BS[row, step - 1] == tokens[read[-1]]
                if mine.cut_R[row]:
                    labels.append(events.labels_EH[event])
        np.testing.assert_array_equal(batch.labels_QH, labels)
        assert sorted(batch.place_P.tolist()) == sorted(expected)


def test_including_what_is_seen_masks_nothing_and_counts_repeats(logs):
    _, events = learned(logs, "log.parquet", include_seen=True)
    rows, order = events.epoch(1, 0, 64)
    for batch in events.batches(rows, order, seed=1, epoch=0, start=0, unknown=0.0):
        assert not batch.seen_count_P.any()
        assert batch.weight_P.mean() > 0.5


def test_heads_are_learned_only_after_a_cut(logs):
    _, events = learned(logs, "log.parquet")
    rows, order = events.epoch(1, 0, 16)
    for number, batch in enumerate(events.batches(rows, order, seed=1, epoch=0, start=0, unknown=0.0)):
        mine, width = rows.take(order[number]), batch.tokens_BS.shape[1] + 1
        row_Q, read_Q = batch.place_Q // width, batch.place_Q % width
        assert mine.cut_R[row_Q].all()
        assert (mine.first_R[row_Q] + read_Q - 1 >= mine.target_R[row_Q]).all()
        np.testing.assert_array_equal(batch.labels_QH, events.labels_EH[mine.first_R[row_Q] + read_Q - 1])


@pytest.mark.parametrize("block", [1, 3])
def test_any_batch_on_an_epoch_continues_as_it_was(logs, block):
    _, events = learned(logs, "log.parquet")
    rows, order = events.epoch(7, 3, 4)
    whole = list(events.batches(rows, order, seed=7, epoch=3, start=0, unknown=0.3, block=block))
    rest = list(events.batches(rows, order, seed=7, epoch=3, start=5, unknown=0.3, block=block))
    for a, b in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(a.target_P, b.target_P)
        np.testing.assert_array_equal(a.tokens_BS, b.tokens_BS)
        np.testing.assert_array_equal(a.vectors.dense_KF, b.vectors.dense_KF)
    assert any((batch.tokens_BS == 1).any() for batch in whole)


def test_rows_of_an_epoch_are_of_their_user_and_of_both_kinds():
    lengths = np.array([1, 0, 5, 30, 200])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = draw(offsets, Window(history=10, horizon=10), generator(1, 0))
    assert np.bincount(rows.user_R, minlength=5).tolist() == [1, 0, 1, 2, 10]
    assert (rows.first_R >= offsets[rows.user_R]).all()
    assert (rows.stop_R <= offsets[rows.user_R + 1]).all()
    assert (rows.first_R <= rows.target_R).all()
    assert (rows.target_R < rows.stop_R).all()
    assert rows.cut_R.sum() == len(rows) // 2
    begins = rows.first_R == offsets[rows.user_R]
    whole = ~rows.cut_R
    assert (rows.target_R[whole & begins] == rows.first_R[whole & begins]).all(), "position 0 predicts a life's first"
    assert (rows.target_R[whole & ~begins] == rows.first_R[whole & ~begins] + 1).all(), "and nothing in its middle"
    assert (rows.target_R - rows.first_R <= 10)[rows.cut_R].all()
    other = draw(offsets, Window(history=10, horizon=10), generator(1, 1))
    assert not np.array_equal(rows.first_R, other.first_R), "windows are drawn anew"
    taken = np.concatenate(batches(rows, 3, generator(1, 0)))
    assert sorted(taken.tolist()) == list(range(len(rows)))


def test_only_what_follows_a_cut_is_shuffled_and_only_within_blocks():
    lengths = np.full(40, 60)
    rows = draw(np.concatenate([[0], np.cumsum(lengths)]), Window(history=10, horizon=25), generator(1, 0))
    order = shuffled(rows, 10, generator(2, 0))
    ends = np.cumsum(rows.stop_R - rows.target_R)
    moved = []
    for end, count, cut in zip(ends, rows.stop_R - rows.target_R, rows.cut_R, strict=True):
        places = order[end - count : end] - (end - count)
        assert sorted(places) == list(range(count))
        assert (places // 10 == np.arange(count) // 10).all()
        assert cut or (places == np.arange(count)).all()
        moved.append((places != np.arange(count)).any())
    assert np.mean(np.array(moved)[rows.cut_R]) > 0.9
    assert (order == shuffled(rows, 10, generator(2, 0))).all()


def test_standardised_features_stay_within_reach_and_constants_say_nothing():
    random = np.random.default_rng(1)
    dense = np.stack(
        [random.normal(5, 2, 500), np.full(500, 7.7), np.r_[np.zeros(499), 100], random.normal(0, 1e-3, 500)], 1
    ).astype(np.float32)
    standard = Standard.of(dense)
    found = standard.apply(dense)
    assert abs(found[:, 0].std() - 1) < 0.01
    assert (found[:, 1] == 0).all()
    assert np.abs(found).max() <= 8.001
    assert np.abs(found[:, 3]).max() < 0.1  # hardly varies: not blown up
