"""fp16-fast of the hand-fused engine, keys and values kept in e4m3, on a CPU with the kernels' plain twin."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from genrec_batch.core.arrays import Batch
from genrec_batch.core.errors import EngineError
from genrec_batch.engines import choose
from genrec_batch.engines.cuda import engine as torch_cuda
from genrec_batch.engines.cuda.engine import TorchCudaEngine
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.registry import open_engine
from genrec_batch.model.weights import ModelConfig, demo_model
from tests.twins import kernels as plain_kernels

SIZES = ModelConfig(vocabulary=61, width=64, ffn=64, layers=3, positions=24, heads=4, features=24)
STEPS = 4


def opened(precision, model=None):
    return TorchCudaEngine(model or demo_model(SIZES), device="cpu", precision=precision, kernels=plain_kernels)


def drawn(lengths, seed=0):
    random, longest = np.random.default_rng(seed), max(1, *lengths)
    tokens = random.integers(2, SIZES.vocabulary, (len(lengths), longest)).astype(np.int32)
    tokens[np.arange(longest) >= np.array(lengths)[:, None]] = 0
    return Batch(
        dense_BF=random.standard_normal((len(lengths), SIZES.features), np.float32),
        tokens_BS=tokens,
        lengths_B=np.array(lengths, np.int32),
        seen_BX=tokens[:, :2].copy(),
    )


def through(engine, batch, items):
    """What an engine says of given items: log-probabilities and heads after the history, and along a list of them."""
    state = engine.prefill(batch, steps=STEPS)
    after = engine.log_probs(state, items), engine.score(state, items)
    for k in range(STEPS):
        engine.decode(state, items[:, k])
    ranked = engine.collect(state)
    return *after, ranked.log_prob_BK, ranked.heads_BKH


def test_scores_are_closer_to_those_of_fp32_than_in_fp8():
    batch = drawn(np.random.default_rng(1).integers(0, 19, 40).tolist())
    items = np.random.default_rng(2).integers(2, SIZES.vocabulary, (len(batch), STEPS)).astype(np.int32)
    exact, fast, fp16, fp8 = (through(opened(p), batch, items) for p in ("fp32", "fp16-fast", "fp16", "fp8"))
    for one, rounded, half, least in zip(exact, fast, fp16, fp8, strict=True):
        errors = [float(np.abs(found - one).mean() / one.std()) for found in (half, rounded, least)]
        assert errors[0] < errors[1] < errors[2]
        assert errors[1] < 0.05


def test_the_slate_loop_gives_what_the_protocol_gives_and_replays():
    batch, engine = drawn([5, 0, 17, 1, 9]), opened("fp16-fast")
    first, again = (next(engine.slate([batch], STEPS)) for _ in range(2))
    np.testing.assert_array_equal(first.tokens_BK, again.tokens_BK)
    state = engine.prefill(batch, steps=STEPS)
    for _ in range(STEPS):
        engine.decode(state)
    ranked = engine.collect(engine.select(state, np.arange(len(batch))))
    np.testing.assert_array_equal(ranked.tokens_BK, first.tokens_BK)
    np.testing.assert_array_equal(ranked.log_prob_BK, first.log_prob_BK)


def test_selected_rows_take_what_was_read_along():
    batch, engine = drawn([5, 0, 17, 1, 9]), opened("fp16-fast")
    items = np.random.default_rng(2).integers(2, SIZES.vocabulary, (len(batch), 2)).astype(np.int32)
    rows = np.array([4, 2, 2, 0])
    state, alone = (engine.prefill(b, steps=2) for b in (batch, drawn_rows(batch, rows)))
    engine.decode(state, items[:, 0])
    chosen = engine.select(state, rows)
    engine.decode(alone, items[rows, 0])
    for one in (chosen, alone):
        engine.decode(one, items[rows, 1])
    np.testing.assert_array_equal(engine.collect(chosen).log_prob_BK, engine.collect(alone).log_prob_BK)


def drawn_rows(batch, rows):
    names = ("dense_BF", "tokens_BS", "lengths_B", "seen_BX")
    return Batch(**{name: getattr(batch, name)[rows] for name in names})


def test_a_history_takes_half_the_memory_and_one_buffer_for_all_layers():
    batch = drawn([17] * 8)
    fast, fp16 = (opened(p).prefill(batch, steps=1).history for p in ("fp16-fast", "fp16"))
    assert fast.cache(0).element_size() * 2 == fp16.cache(0).element_size()
    assert len({qkv.data_ptr() for qkv in fast.qkv_M3}) == 1


def test_a_model_that_the_kernels_cannot_compute_is_refused_and_auto_goes_on_without_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(torch_cuda.importlib.util, "find_spec", lambda _name: True)
    narrow = demo_model(ModelConfig(vocabulary=61, width=36, ffn=64, layers=2, positions=24, heads=4, features=24))
    with pytest.raises(EngineError, match="multiples of 8"):
        open_engine(narrow, name="torch", device="cuda:0", precision="fp16-fast")
    monkeypatch.setattr(choose, "device_of", lambda *_: "cuda:0")
    monkeypatch.setattr(choose, "open_engine", lambda _model, **given: given["precision"])
    for model, expected in ((narrow, ["fp32", "fp16"]), (demo_model(SIZES), ["fp32", "fp16-fast", "fp16"])):
        found = choose._opened(model, Decoding(), None, name="torch", device="cuda:0", precision="auto")
        assert [*found.engines, *(opens() for opens in found.slower)] == expected
    found = choose._opened(model, Decoding(mode="candidates"), None, name="torch", device="cuda:0", precision="auto")
    assert [*found.engines, *found.slower] == ["fp32", "fp16"]  # candidates gain nothing
