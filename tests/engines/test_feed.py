"""Feeding an engine: every user once, like lengths together, little padding, halves when the device is full."""

from __future__ import annotations

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch, Ranked
from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.engines.cuda.loop import grid
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.feed import Fed, Feed, batch_rows, cuts, mixed
from genrec_batch.runtime.clock import Stages
from tests.fakes.engine import PartialEngine


def padding_share(lengths, batches):
    computed = sum((lengths[start] + 1) * (stop - start) for start, stop in batches)
    return 1 - (lengths.sum() + len(lengths)) / computed


@pytest.mark.parametrize("size", [1, 7, 256])
@pytest.mark.parametrize("users", [1, 5, 3000])
def test_batches_hold_everybody_once_and_no_more_than_their_size(size, users):
    lengths = np.sort(np.random.default_rng(users).geometric(0.2, users) - 1)[::-1]
    batches = cuts(lengths, size)
    assert [row for start, stop in batches for row in range(start, stop)] == list(range(users))
    assert max(stop - start for start, stop in batches) <= size


def test_padding_of_a_skewed_log_stays_under_15_percent():
    lengths = np.sort(np.minimum(50, np.random.default_rng(1).lognormal(1.2, 0.8, 16384).astype(int)))[::-1]
    assert padding_share(lengths, cuts(lengths, 256)) < 0.15


def test_users_of_one_length_fill_whole_batches():
    assert cuts(np.full(1000, 50), 256) == [(0, 256), (256, 512), (512, 768), (768, 1000)]


def test_long_histories_come_in_small_batches():
    lengths = np.repeat([2000, 1000, 300, 127, 50], 600)
    batches = cuts(lengths, 256)
    assert [row for start, stop in batches for row in range(start, stop)] == list(range(len(lengths)))
    for start, stop in batches:
        assert (stop - start) * (lengths[start] + 1) ** 2 <= max(256 * 128**2, (lengths[start] + 1) ** 2)
    assert max(stop - start for start, stop in batches) == 256


def test_batches_of_a_packing_engine_are_alike_and_hold_everybody_once():
    lengths = np.random.default_rng(1).integers(5, 51, 16_384 * 4)
    batches = mixed(lengths, 4096, 4096 * 128)
    assert batches == [(start, start + 4096) for start in range(0, len(lengths), 4096)]
    positions = [int(lengths[start:stop].sum()) + stop - start for start, stop in batches]
    assert len({grid(count) for count in positions}) <= 6, "few sizes of work to capture"
    long = mixed(np.full(600, 2000), 256, 256 * 128)
    assert [row for start, stop in long for row in range(start, stop)] == list(range(600))
    assert max(stop - start for start, stop in long) == 256 * 128 // 2001


def test_nobody_makes_no_batch():
    assert cuts(np.zeros(0, np.int64), 256) == mixed(np.zeros(0, np.int64), 256, 999) == []


def batch_of(lengths):
    """A batch whose first feature says which user a row is."""
    lengths = np.array(lengths, np.int32)
    dense = np.zeros((len(lengths), 1024), np.float32)
    dense[:, 0] = np.arange(len(lengths))
    tokens = np.full((len(lengths), max(1, lengths.max(initial=0))), 2, np.int32)
    return Batch(dense_BF=dense, tokens_BS=tokens, lengths_B=lengths, seen_BX=np.zeros((len(lengths), 1), np.int32))


def test_a_batch_that_is_too_large_is_cut_by_users_and_by_positions():
    lengths = [8, 3, 8, 1, 8, 8, 2, 8, 5]
    fed = Fed(key="all", rows=slice(0, 9), batch=batch_of(lengths))
    parts = list(fed.cut(4, 20))
    assert [row for part in parts for row in range(part.rows.start, part.rows.stop)] == list(range(9))
    for part in parts:
        assert len(part.batch) == part.rows.stop - part.rows.start <= 4
        assert int(part.batch.lengths_B.sum()) + len(part.batch) <= 20
    assert [part.rows for part in fed.cut(4, 0)] == [slice(0, 4), slice(4, 8), slice(8, 9)]
    assert list(fed.cut(9, 0)) == [fed]
    inner = next(iter(parts[1].cut(1, 0)))
    assert (inner.rows.start, inner.batch.dense_BF[0, 0]) == (parts[1].rows.start, parts[1].rows.start)


class Small(PartialEngine):
    """An engine whose device takes `most` users a batch; it recommends to each row the number in its features."""

    name, device, precision = "small", "cpu", "fp32"

    def __init__(self, most, room=0):
        self.most, self.sizes, self._room = most, [], room

    def room(self, users):
        return self._room and users * self._room

    def prefill(self, batch, **_):
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            raise DeviceMemoryError("the device is out of memory")
        return batch.dense_BF[:, :1]

    def decode(self, state, tokens_B=None):
        pass

    def collect(self, state):
        heads = np.zeros((len(state), 1, 4), np.float32)
        return Ranked(tokens_BK=state.astype(np.int32) + 2, log_prob_BK=state, heads_BKH=heads)


@pytest.mark.parametrize("room", [0, 10])
@pytest.mark.parametrize(("most", "size"), [(99, 4), (99, 99), (2, 8), (1, 5)])
def test_every_row_is_answered_once_whatever_fits_the_device(most, size, room):
    engine = Small(most, room)
    feed = Feed(engine=engine, decoding=Decoding(mode="slate", top_k=1), stages=Stages(), batch_users=size)
    given = {"a": batch_of([3, 3, 2, 2, 1]), "b": batch_of([9]), "c": batch_of([4, 0, 4])}
    answered = {key: [] for key in given}
    for key, rows, ranked in feed.recommend(given.items()):
        assert (ranked.tokens_BK[:, 0] - 2).tolist() == list(range(rows.start, rows.stop))
        answered[key] += range(rows.start, rows.stop)
    assert answered == {key: list(range(len(batch))) for key, batch in given.items()}
    assert feed.fed_users == 9
    assert engine.sizes[-1] <= most
    assert feed.batch_users <= size
    assert 0 <= feed.padding_share < 1


def test_one_user_who_does_not_fit_is_an_error_that_names_the_beams():
    for beams, message in (
        (1, "the device is out of memory"),
        (3, "one user's 3 beams do not fit: lower --beam-width"),
    ):
        decoding = Decoding(mode="slate", top_k=1, beam_width=beams)
        feed = Feed(engine=Small(0), decoding=decoding, stages=Stages(), batch_users=4)
        with pytest.raises(DeviceMemoryError, match=message):
            list(feed.recommend([("all", batch_of([1, 2, 3]))]))


def test_batches_of_like_lengths_come_longest_first_and_packed_ones_as_they_come():
    lengths = np.array([1, 50, 2, 50])
    assert [rows.tolist() for rows in batch_rows(lengths, 2)] == [[1, 3], [2], [0]]
    assert [rows.tolist() for rows in batch_rows(lengths, 2, room=60)] == [[0, 1], [2, 3]]
