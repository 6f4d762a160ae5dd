"""`wire`: a batch and its ranking are the same after the way over the wire."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.remote import wire
from tests.engines.remote.conftest import MODEL, batch


@pytest.mark.parametrize("options", [{}, {"given": True}, {"vectors": True}, {"masked": True}])
def test_a_batch_arrives_as_it_left(options):
    sent = batch(7, **options)
    tensors = wire.tensors_of(sent)
    assert all(wire.DTYPES[wire.INPUTS[name][0]] == each.dtype for name, each in tensors.items())
    got = wire.batch_of(tensors, MODEL)
    for field in fields(Batch):
        ours, theirs = getattr(sent, field.name), getattr(got, field.name)
        if field.name == "masks" and ours is not None:
            assert np.array_equal(ours.unpacked(75)[ours.mask_B], theirs.unpacked(75)[theirs.mask_B])
            assert len(theirs.banned_MW) <= len(ours.banned_MW)
        else:
            assert ours is theirs is None or np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding(mode="candidates", num_candidates=7), Decoding(top_k=3, beam_width=2)]
)
def test_a_decoding_arrives_as_it_left(decoding):
    assert wire.decoding_of(wire.parameters_of(decoding, "5eed")) == (decoding, "5eed")
