"""The units of e4m3 numbers: nothing outgrows them, they change no result, and lists stay close to those of fp32."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from genrec_batch.core.arrays import Batch
from genrec_batch.core.errors import EngineError
from genrec_batch.engines.cuda import engine as torch_cuda
from genrec_batch.engines.cuda.engine import TorchCudaEngine
from genrec_batch.engines.cuda.fp8 import E4M3, LARGEST, fold, small_layers
from genrec_batch.engines.cuda.weights import fuse
from genrec_batch.engines.registry import open_engine
from genrec_batch.model.weights import ModelConfig, demo_model
from tests.twins import kernels as plain_kernels

SIZES = ModelConfig(vocabulary=61, width=32, ffn=64, layers=3, positions=24, heads=4, features=24)


def uneven(config, seed=0):
    """Weights whose outputs differ a thousandfold in size, as no initial weights do."""
    random, model = np.random.default_rng(seed), demo_model(config)
    weights = {
        name: value * np.exp(random.normal(0, 1.5, value.shape[:1] + (1,) * (value.ndim - 1)))
        for name, value in model.weights.items()
    }
    weights |= {name: np.exp(random.normal(0, 1, value.shape)) for name, value in weights.items() if "norm" in name}
    return replace(model, weights={name: value.astype(np.float32) for name, value in weights.items()})


def folded(model):
    raw = {name: torch.from_numpy(value.copy()) for name, value in model.weights.items()}
    units = fold(raw, model.config)
    return raw, units


def normalised(direction):
    """The row after LayerNorm's division that is largest in a direction."""
    return direction / direction.norm() * len(direction) ** 0.5


def test_no_row_after_a_layer_norm_outgrows_its_unit():
    raw, units = folded(uneven(SIZES))
    for i, unit in enumerate(units):
        at = f"encoder.layers.{i}."
        followers = [(1, f"{at}linear1.weight", f"{at}linear1.bias", unit.norm1)]
        if i + 1 < SIZES.layers:
            after = f"encoder.layers.{i + 1}.self_attn.in_proj_"
            followers.append((2, f"{after}weight", f"{after}bias", unit.norm2))
        for norm, weight, bias, of_rows in followers:
            gain, shift = raw[f"{at}norm{norm}.weight"], raw[f"{at}norm{norm}.bias"]
            most = 0.0
            for row, offset in zip(raw[weight], raw[bias], strict=True):
                for sign in (1, -1):
                    x = sign * normalised(row * gain) * gain + shift
                    assert (x * of_rows).abs().max() <= LARGEST
                    most = max(most, float((row @ x + offset).abs()))
            assert LARGEST / 4 < most <= LARGEST  # and the range is used


def test_units_change_no_result():
    model = uneven(SIZES)
    plain, scaled = (fuse(model, torch.device("cpu"), torch.float32, small=small) for small in (False, True))
    assert not plain.small
    x = torch.randn(5, SIZES.width)
    for i, (one, other) in enumerate(zip(plain.layers, scaled.layers, strict=True)):
        (q, k, v), (q2, k2, v2) = ((x @ layer.qkv[0].T + layer.qkv[1]).chunk(3, dim=1) for layer in (one, other))
        torch.testing.assert_close(q2 @ k2.T * scaled.score_unit(i), q @ k.T, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(v2 @ other.out[0].T, v @ one.out[0].T, rtol=1e-4, atol=1e-4)
        inner, inner2 = ((x @ layer.up[0].T + layer.up[1]).relu() @ layer.down[0].T for layer in (one, other))
        torch.testing.assert_close(inner2, inner, rtol=1e-4, atol=1e-3)


def test_products_of_e4m3_rows_are_those_of_the_weights():
    raw, units = folded(uneven(SIZES))
    for i, layer in enumerate(small_layers(raw, units, torch.float32)):
        at = f"encoder.layers.{i}."
        for product, name, unit in (
            (layer.qkv, f"{at}self_attn.in_proj_weight", units[i - 1].norm2),
            (layer.out, f"{at}self_attn.out_proj.weight", 1.0),
            (layer.up, f"{at}linear1.weight", units[i].norm1),
            (layer.down, f"{at}linear2.weight", 1.0),
        ):
            assert product.weight.dtype == E4M3
            assert product.of_rows == 1 / unit
            lost = (product.weight.float() * product.of_weight - raw[name]).norm(dim=1) / raw[name].norm(dim=1)
            assert lost.max() < 0.05  # 3 bits of mantissa


def drawn(lengths, seed=0):
    random = np.random.default_rng(seed)
    tokens = random.integers(2, SIZES.vocabulary, (len(lengths), max(lengths))).astype(np.int32)
    tokens[np.arange(max(lengths)) >= np.array(lengths)[:, None]] = 0
    return Batch(
        dense_BF=random.standard_normal((len(lengths), SIZES.features), np.float32),
        tokens_BS=tokens,
        lengths_B=np.array(lengths, np.int32),
        seen_BX=tokens[:, :2].copy(),
    )


@pytest.mark.parametrize("features", [1.0, 100.0], ids=["usual-features", "features-beyond-the-unit"])
def test_scores_are_close_to_those_of_fp32(features):
    batch = drawn(np.random.default_rng(1).integers(0, 20, 24).tolist())
    batch = replace(batch, dense_BF=batch.dense_BF * np.float32(features))
    given = np.random.default_rng(2).integers(2, SIZES.vocabulary, (len(batch), 9)).astype(np.int32)
    found = []
    for precision in ("fp32", "fp8"):
        engine = TorchCudaEngine(demo_model(SIZES), device="cpu", precision=precision, kernels=plain_kernels)
        state = engine.prefill(batch, steps=1)
        found.append((engine.log_probs(state, given), engine.score(state, given)))
    for exact, rounded in zip(*found, strict=True):
        assert np.isfinite(rounded).all()
        error = np.abs(rounded - exact).mean() / exact.std()
        assert 0 < error < (0.1 if features == 1 else 0.5)


def test_slates_replay_and_read_the_cache_of_items_before():
    batch = drawn([5, 0, 17, 1, 9])
    engine = TorchCudaEngine(demo_model(SIZES), device="cpu", precision="fp8", kernels=plain_kernels)
    first, again = (next(engine.slate([batch], 4)) for _ in range(2))
    np.testing.assert_array_equal(first.tokens_BK, again.tokens_BK)
    state = engine.prefill(batch, steps=4)
    for k in range(4):
        engine.decode(state, first.tokens_BK[:, k])
    state = engine.select(state, np.arange(len(batch)))
    np.testing.assert_allclose(engine.collect(state).log_prob_BK, first.log_prob_BK, atol=1e-3)


def test_a_device_or_model_without_fp8_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 9))
    monkeypatch.setattr(torch_cuda.importlib.util, "find_spec", lambda _name: True)
    with pytest.raises(EngineError, match="compute capability 9"):
        open_engine(demo_model(SIZES), name="torch", device="cuda:0", precision="fp8")
    narrow = ModelConfig(vocabulary=61, width=24, ffn=64, layers=2, positions=24, heads=4)
    with pytest.raises(EngineError, match="multiples of 16"):
        TorchCudaEngine(demo_model(narrow), device="cpu", precision="fp8", kernels=plain_kernels)
