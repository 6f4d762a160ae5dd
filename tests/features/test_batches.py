"""Batches: everybody once, like lengths together, little padding."""

from __future__ import annotations

import numpy as np
import pytest

from genrec_batch.engines.cuda.loop import grid
from genrec_batch.features.batches import cuts, mixed


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
