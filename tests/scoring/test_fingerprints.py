"""Fingerprints: whatever a user's rows depend on changes that user's fingerprint and no other.

Also tests `features.batches`.
"""

from __future__ import annotations

import numpy as np

from genrec_batch.core.arrays import Ragged
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
