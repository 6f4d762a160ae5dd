"""Fingerprints: whatever a user's rows depend on changes that user's fingerprint and no other.

Also tests `features.batches`.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from genrec_batch.core.arrays import Masks, Ragged, offsets_of
from genrec_batch.events.sorter_numba import NumbaSorter
from genrec_batch.features.batches import ModelInputs
from genrec_batch.scoring.fingerprints import fingerprints
from tests.histories import build, normalize
from tests.logs import catalog_of


def inputs_of(log):
    """Inputs with everything that a user's rows can depend on."""
    events = normalize(log)
    ids, built = build(events, catalog=catalog_of(events, vocabulary=99), as_of_us=2**52, max_events=20, seen_limit=9)
    users = len(ids)
    vectors = np.ones((users, 4), np.float32), np.ones(users, np.bool_)
    given = Ragged(offsets_N1=np.arange(users + 1) * 2, values=np.arange(2 * users, dtype=np.int32))
    dense_NF = np.tile(np.arange(1024, dtype=np.float32), (users, 1))
    return ModelInputs(
        histories=built, dense_NF=dense_NF, profile=vectors, video=vectors, candidates=given, include_seen=False
    )


def test_every_part_of_a_users_input_is_in_the_fingerprint(log):
    inputs = inputs_of(log)
    before = fingerprints(inputs)
    assert len(np.unique(before, axis=0)) == len(before), "users whose histories differ"
    assert (before == fingerprints(inputs_of(log))).all()
    assert (before[5:9] == fingerprints(inputs.take(np.arange(5, 9)))).all(), "neighbours do not matter"
    assert (before == fingerprints(inputs, NumbaSorter())).all(), "compiled sums are the same"
    user, rows = 7, inputs.histories
    for array, place in (
        (inputs.dense_NF, (user, 1023)),
        (rows.tokens_E, rows.offsets_N1[user]),
        (rows.seen.values, rows.seen.offsets_N1[user + 1] - 1),
        (inputs.candidates.values, 2 * user),
        (inputs.profile[0], (user, 3)),
        (inputs.video[1], user),
    ):
        kept, array[place] = array[place].copy(), 1 - array[place]
        changed = (fingerprints(inputs) != before).any(axis=1)
        assert changed.nonzero()[0].tolist() == [user]
        array[place] = kept


def test_a_users_own_mask_is_in_the_fingerprint(log):
    inputs = inputs_of(log)
    users, before = len(inputs.histories), fingerprints(inputs)
    banned_MV = np.zeros((3, 99), np.bool_)
    banned_MV[1, 40], banned_MV[2, [40, 98]] = True, True
    masks = Masks.of(banned_MV, np.arange(users) % 3)
    found = fingerprints(replace(inputs, masks=masks))
    changed = (found != before).any(axis=1)
    assert changed.tolist() == [number % 3 > 0 for number in range(users)]  # a mask that bans nothing changes no row
    other = fingerprints(replace(inputs, masks=Masks.of(banned_MV[[0, 2, 2]], masks.mask_B)))
    assert (other != found).any(axis=1).tolist() == [number % 3 == 1 for number in range(users)]
    again = Masks.of(banned_MV[[2, 1, 0]], 2 - masks.mask_B)  # the same bit maps in another order
    assert (fingerprints(replace(inputs, masks=again)) == found).all()
    assert (fingerprints(replace(inputs, masks=masks), NumbaSorter()) == found).all()
    taken = replace(inputs, masks=masks).take(np.array([5, 1, 8]))
    assert (fingerprints(taken) == found[[5, 1, 8]]).all()


def test_a_batch_has_its_own_users_masks(log):
    inputs = inputs_of(log)
    users = len(inputs.histories)
    banned_NV = np.random.default_rng(0).random((users, 99)) < 0.5
    inputs = replace(inputs, masks=Masks.of(banned_NV, np.arange(users)))
    for rows_B in (np.arange(3, 7), np.array([8, 2, 5])):
        masks = inputs.batch(rows_B).masks
        assert len(masks.banned_MW) == len(rows_B)
        assert (masks.unpacked(99)[masks.mask_B] == banned_NV[rows_B]).all()
    assert replace(inputs, masks=None).batch(np.arange(3)).masks is None


def test_a_users_own_list_is_in_its_fingerprint_and_goes_to_the_engine_as_seen(log):
    inputs = inputs_of(log)
    users = len(inputs.histories)
    nothing = Masks.of(np.zeros((1, 64), np.bool_), np.zeros(users))
    lengths_N = np.zeros(users, np.int64)
    lengths_N[4] = 2
    own = Ragged(offsets_N1=offsets_of(lengths_N), values=np.array([7, 9], np.int32))
    listed = replace(inputs, masks=replace(nothing, own=own))
    changed = np.flatnonzero((fingerprints(listed) != fingerprints(replace(inputs, masks=nothing))).any(axis=1))
    assert changed.tolist() == [4]
    for include_seen in (False, True):
        batch = replace(listed, include_seen=include_seen).batch(np.array([4, 2]))
        assert batch.masks is None
        assert set(batch.seen_BX[0]) >= {7, 9}
        assert include_seen <= (set(batch.seen_BX[1]) == {0})


def test_batches_of_all_users_are_views_of_the_features_and_equal_batches_made_alone(log):
    inputs = inputs_of(log)
    users = len(inputs.histories)
    inputs.dense_NF[:] = np.random.default_rng(4).random(inputs.dense_NF.shape, np.float32)
    order = np.random.default_rng(3).permutation(users)
    rows = np.split(order, [5, 6, 20])
    alone = [replace(inputs, dense_NF=inputs.dense_NF.copy()).batch(rows_B) for rows_B in rows]
    found = list(inputs.batches(rows))
    assert [rows_B.tolist() for rows_B, _ in found] == [rows_B.tolist() for rows_B in rows]
    for (_, batch), expected in zip(found, alone, strict=True):
        assert np.shares_memory(batch.dense_BF, inputs.dense_NF)
        for field in fields(batch):
            np.testing.assert_array_equal(getattr(batch, field.name), getattr(expected, field.name))
