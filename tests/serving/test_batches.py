"""`batches`: a batch as tensors gets what the engine returns; what does not fit the model is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch
from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.engines.decode import Decoding, recommend
from genrec_batch.engines.remote import wire
from genrec_batch.engines.remote.wire import Facts
from genrec_batch.serving import batches

SLATE = Decoding(top_k=4)


def users(model, rows=3):
    random = np.random.default_rng(1)
    tokens = random.integers(2, model.tokens, (rows, 5)).astype(np.int32)
    return Batch(
        dense_BF=random.random((rows, model.config.features), np.float32),
        tokens_BS=tokens,
        lengths_B=np.full(rows, 5, np.int32),
        seen_BX=tokens,
    )


def asked(model, **change):
    """The tensors and the parameters of a batch, some of them changed or left out."""
    tensors = wire.tensors_of(users(model)) | change
    parameters = wire.parameters_of(SLATE, model.fingerprint)
    return {name: each for name, each in tensors.items() if each is not None}, parameters


def test_a_batch_gets_what_the_engine_returns_and_says_what_computed_it(sample):
    served = sample.served.served[0]
    tensors, parameters = asked(served.model)
    found = batches.answered(sample.served.served, tensors, parameters, 2)
    expected = recommend(served.engine, users(served.model), SLATE)
    np.testing.assert_array_equal(found["ITEM"], expected.tokens_BK)
    np.testing.assert_array_equal(found["RETENTION"], expected.heads_BKH[:, :, 2])
    facts = Facts.of(found["ENGINE"][0, 0].decode())
    assert (facts.model, facts.tokens) == (served.model.fingerprint, served.model.tokens)
    assert (facts.engine, facts.precision, facts.max_batch, facts.instances) == ("onnxruntime", "fp32", 32, 2)


def test_a_batch_for_another_model_is_not_computed(sample):
    tensors, parameters = asked(sample.served.served[0].model)
    found = batches.answered(sample.served.served, tensors, parameters | {"model": "another"}, 1)
    assert set(found) == {"ENGINE"}


def test_each_arm_of_an_experiment_computes_its_batches(sample):
    served = sample.served.served[0]
    other = SimpleNamespace(model=SimpleNamespace(fingerprint="another"))
    tensors, parameters = asked(served.model)
    found = batches.answered((other, served), tensors, parameters, 1)
    assert Facts.of(found["ENGINE"][0, 0].decode()).model == served.model.fingerprint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"FEATURES": None}, "a request has either REQUEST, or FEATURES"),
        ({"LENGTHS": None}, "LENGTHS is missing"),
        ({"FEATURES": np.zeros((3, 9), np.float32)}, "FEATURES has 9 columns, the model reads 1024"),
        ({"TOKENS": np.full((3, 5), 10**6, np.int32)}, "TOKENS has a token that is none of the model's"),
        ({"SEEN": np.full((3, 1), -1, np.int32)}, "SEEN has a token that is none of the model's"),
        ({"LENGTHS": np.full((3, 1), 6, np.int32)}, "LENGTHS: a history has 0 to 5 tokens"),
        ({"PROFILE": np.zeros((3, 4), np.float32)}, "PROFILE has 4 columns, the model reads 256"),
        ({"PROFILE": np.zeros((3, 256), np.float32)}, "PROFILE and HAS_PROFILE go together"),
        ({"BANNED": np.zeros((3, 1), np.uint32)}, "BANNED has 1 columns"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(sample, change, said):
    tensors, parameters = asked(sample.served.served[0].model, **change)
    with pytest.raises(InputError, match=said):
        batches.answered(sample.served.served, tensors, parameters, 1)


@pytest.mark.parametrize("change", [{"mode": "best"}, {"top_k": 0}, {"top_k": True}, {"beam_width": "2"}, {"model": 1}])
def test_a_batch_that_does_not_say_how_it_is_decoded_is_refused(sample, change):
    tensors, parameters = asked(sample.served.served[0].model)
    with pytest.raises(ConfigError, match="say how a batch is decoded"):
        batches.answered(sample.served.served, tensors, parameters | change, 1)


def test_more_items_than_there_are_are_refused(sample):
    tensors, parameters = asked(sample.served.served[0].model)
    with pytest.raises(InputError, match="top_k: more than the"):
        batches.answered(sample.served.served, tensors, parameters | {"top_k": 10**6}, 1)
