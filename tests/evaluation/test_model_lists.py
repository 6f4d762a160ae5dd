"""Lists and heads of all rows, whatever the batches; what a full device does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch, Ragged
from genrec_batch.core.errors import DeviceMemoryError
from genrec_batch.engines.decode import Decoding, recommend
from genrec_batch.engines.feed import Feed
from genrec_batch.engines.registry import open_engine
from genrec_batch.evaluation import model_lists
from genrec_batch.evaluation.lists import Lists
from genrec_batch.evaluation.model_lists import Inputs
from genrec_batch.model import weights
from genrec_batch.model.catalog import Catalog
from genrec_batch.runtime.clock import Stages
from tests.fakes.engine import PartialEngine
from tests.histories import build, normalize

TOP = Decoding(mode="candidates", top_k=7, num_candidates=7)


@pytest.fixture(scope="module")
def model(model_dir):
    loaded = weights.load(model_dir)
    return loaded.with_catalog(len(Catalog.read(model_dir / "catalog.parquet", vocabulary=1000)))


@pytest.fixture(scope="module")
def engine(model):
    return open_engine(model, name="torch", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def inputs(log, model_dir):
    events = normalize(log)
    catalog = Catalog.read(model_dir / "catalog.parquet", vocabulary=1000)
    _, built = build(events, catalog=catalog, as_of_us=2**52, max_events=50, seen_limit=1000)
    return Inputs(histories=built, users=None, videos=None, max_events=50, include_seen=False)


@pytest.fixture(scope="module")
def exposures(inputs):
    random = np.random.default_rng(1)
    lengths = random.integers(0, 12, len(inputs.histories))
    lengths[3], lengths[4] = 90, 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Ragged(offsets_N1=offsets, values=random.integers(1, 100, lengths.sum()).astype(np.int32))


def feed(engine, decoding=TOP, users=16):
    return Feed(engine=engine, decoding=decoding, stages=Stages(), batch_users=users)


def one_by_one(engine, inputs, exposures):
    tokens, heads = [], []
    for row in range(len(inputs.histories)):
        batch = inputs.of_rows(np.array([row])).batch(np.array([0]))
        tokens.append(recommend(engine, batch, TOP).tokens_BK[0])
        state = engine.prefill(batch, steps=1)
        shown = exposures.padded(np.array([row]))
        heads.append(engine.score(state, shown)[0][: exposures.lengths_N[row]])
    return np.stack(tokens), np.concatenate(heads)


def test_one_look_gives_what_each_row_gets_alone(engine, inputs, exposures):
    found, heads = model_lists.look(feed(engine), inputs, exposures, 7)
    tokens, alone = one_by_one(engine, inputs, exposures)
    np.testing.assert_array_equal(found.tokens_MK, tokens)
    np.testing.assert_allclose(heads, alone, atol=1e-5)
    np.testing.assert_array_equal(model_lists.recommend(feed(engine), inputs, None).tokens_MK, tokens)


def test_candidates_are_ranked_by_weights(engine, inputs):
    wide = replace(TOP, num_candidates=30)
    found = model_lists.recommend(feed(engine, wide), inputs, {"retention": 1.0})
    batch = inputs.of_rows(np.arange(5)).batch(np.arange(5))
    ranked = recommend(engine, batch, wide)
    order = np.argsort(-ranked.heads_BKH[:, :, 2], axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(found.tokens_MK[:5], np.take_along_axis(ranked.tokens_BK, order, axis=1))


class Small(PartialEngine):
    """An engine whose device holds two users."""

    def __init__(self, engine):
        self.engine, self.asked = engine, []

    def prefill(self, batch: Batch, **rest):
        self.asked.append(len(batch))
        if len(batch) > 2:
            raise DeviceMemoryError("full")
        return self.engine.prefill(batch, **rest)

    def choose(self, state):
        return self.engine.choose(state)

    def score(self, state, tokens_BC):
        return self.engine.score(state, tokens_BC)


def test_a_full_device_gets_halves(engine, inputs, exposures):
    small = Small(engine)
    found, heads = model_lists.look(feed(small), inputs, exposures, 7)
    whole, expected = model_lists.look(feed(engine), inputs, exposures, 7)
    assert max(small.asked) > 2
    np.testing.assert_array_equal(found.tokens_MK, whole.tokens_MK)
    np.testing.assert_allclose(heads, expected, atol=1e-5)


def test_a_slate_has_its_own_order_at_each_length():
    lists = Lists(tokens_MK=np.array([[5, 6, 7]]), score_MK=np.array([[-2.0, -1.0, -0.5]], np.float32))
    assert [lists.best(k).tolist() for k in (1, 2, 3)] == [[[5]], [[6, 5]], [[7, 6, 5]]]
    assert [ks for _, ks in lists.by_length((1, 3))] == [(1,), (3,)]
    [(tokens, ks)] = Lists(tokens_MK=np.array([[5, 6, 7]])).by_length((1, 3))
    assert (tokens.tolist(), ks) == ([[5, 6, 7]], (1, 3))
