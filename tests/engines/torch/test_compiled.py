"""The compiled phases of the torch engine on a CPU: close to their plain twin, the same bits for a row alone.

Also tests `phases`, `eight_bits`, `compiled.context` and `compiled.phases`.
"""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="the extra `fast` is not installed")

from genrec_batch.core.arrays import Batch
from genrec_batch.engines import choose, decode
from genrec_batch.engines.torch import choice, device
from genrec_batch.engines.torch import engine as torch_engine
from genrec_batch.engines.torch.compiled import attention, row_kernels
from genrec_batch.engines.torch.compiled.phases import CompiledPhases
from genrec_batch.engines.torch.engine import TorchEngine
from genrec_batch.engines.torch.phases import PlainPhases
from genrec_batch.model.weights import ModelConfig, demo_model
from tests.engines.torch.test_engine import make_batch, one_thread, placed, slate, take  # noqa: F401 (a fixture)

pytestmark = pytest.mark.skipif(not device.fast_int8(), reason="this processor has no AVX-512 VNNI")

CONFIGS = {  # by the size of a head
    16: ModelConfig(vocabulary=83, width=64, ffn=72, layers=3, positions=210, heads=4, features=40),
    32: ModelConfig(vocabulary=101, width=64, ffn=41, layers=2, positions=210, heads=2, features=40),
    48: ModelConfig(vocabulary=67, width=96, ffn=100, layers=3, positions=210, heads=2, features=40),
}


def shaken(config):
    """A model whose biases and norms are not all alike."""
    random, made = np.random.default_rng(1), demo_model(config)
    vectors = {n: w + random.normal(0, 0.1, w.shape).astype(np.float32) for n, w in made.weights.items() if w.ndim == 1}
    return replace(made, weights={**made.weights, **vectors})


MODELS = {size: shaken(config) for size, config in CONFIGS.items()}
SHORT = [0, 1, 1, 2, 15, 15, 16, 17, 18, 30]
LENGTHS = [0, 1, 2, 15, 16, 17, 100, 127, 128, 128, 129, 129, 140, 190]  # from 129 on PyTorch attends
STEPS = 4
NEAR = 0.01  # of hidden states, whose numbers are about 1; one token of a short history moves them by 0.02 and more
ROUGH = 0.05  # the same where they are computed in plain 8-bit numbers
OFF = {"bf16": NEAR, "int8": NEAR, "bf16-fast": ROUGH, "int8-fast": ROUGH}
PRECISIONS = pytest.mark.parametrize("precision", OFF)
SIZES = pytest.mark.parametrize("size", CONFIGS)


@cache
def opened(size, precision):
    engine = TorchEngine(MODELS[size], precision=precision)
    assert isinstance(engine._model.phases, PlainPhases if precision == "fp32" else CompiledPhases)
    return engine


def without_numba(of, precision):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_engine, "find_spec", lambda _: None)
        return TorchEngine(of, precision=precision)


class Listening:
    """Phases that keep the hidden states they return."""

    def __init__(self, phases):
        self.phases, self.reads, self.aside = phases, [], []

    def __getattr__(self, name):
        return getattr(self.phases, name)

    def read(self, x_BD, *given):
        before = x_BD.clone()
        self.reads.append(self.phases.read(x_BD, *given))
        np.testing.assert_array_equal(x_BD, before)
        return self.reads[-1]

    def read_aside(self, *given):
        self.aside.append(self.phases.read_aside(*given))
        return self.aside[-1]


def answer(engine, batch, items_BK):
    """Everything an engine says of a batch, by row; lengths must rise, so that its order is the caller's."""
    heard, model = Listening(engine._model.phases), engine._model
    engine._model = replace(model, phases=heard)
    everything = np.tile(np.arange(engine._model.tokens, dtype=np.int32), (len(batch), 1))
    state = engine.prefill(batch, steps=items_BK.shape[1] + 1, choices=3)
    found = {"log_probs": engine.log_probs(state, everything)[:, 1:], "aside_heads": engine.score(state, items_BK)}
    for items_B in items_BK.T:
        engine.decode(state, items_B)
    ranked = engine.collect(state)
    engine._model = model
    hidden = torch.stack(heard.reads, 1).numpy(), torch.cat(heard.aside).numpy()
    found |= {"hidden": hidden[0], "aside": hidden[1], "log_prob": ranked.log_prob_BK, "heads": ranked.heads_BKH}
    return SimpleNamespace(**found)


def items_of(size, batch, seed=5):
    return np.random.default_rng(seed).integers(2, CONFIGS[size].vocabulary, (len(batch), STEPS)).astype(np.int32)


def assert_near(found, expected, tolerance=NEAR):
    for name in ("hidden", "aside", "log_probs", "log_prob"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=tolerance, rtol=0, err_msg=name)
    for name in ("heads", "aside_heads"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=tolerance / 4, rtol=0)


def assert_same_bits(found, expected, rows=slice(None)):
    for name, array in vars(found).items():
        np.testing.assert_array_equal(array, getattr(expected, name)[rows], err_msg=name)


@SIZES
@PRECISIONS
@pytest.mark.parametrize("lengths", [SHORT, LENGTHS])
def test_it_is_near_its_plain_twin_and_fp32(size, precision, lengths):
    batch = make_batch(lengths, config=CONFIGS[size])
    items_BK = items_of(size, batch)
    found = answer(opened(size, precision), batch, items_BK)
    assert_near(found, answer(opened(size, "fp32"), batch, items_BK), OFF[precision])
    assert_near(found, answer(without_numba(MODELS[size], precision), batch, items_BK), OFF[precision])


@SIZES
@PRECISIONS
def test_every_token_that_a_row_has_read_counts_and_no_other(size, precision):
    config, engine = CONFIGS[size], opened(size, precision)
    for lengths, places in (
        (SHORT, (0, 1, 13, 14, 15, 16, 17, 28, 29)),
        (LENGTHS, (0, 1, 15, 16, 125, 126, 127, 128, 139, 189)),
    ):
        batch = make_batch(lengths, config=config)
        items_BK = items_of(size, batch)
        before = answer(engine, batch, items_BK)
        for place in places:
            changed_BS = batch.tokens_BS.copy()
            changed_BS[:, place] = 2 + (changed_BS[:, place] + 30) % (config.vocabulary - 2)
            found = answer(engine, replace(batch, tokens_BS=changed_BS), items_BK)
            moved_BK = np.abs(found.hidden - before.hidden).max(2)
            reads = batch.lengths_B > place
            assert (moved_BK[reads] > (2 * NEAR if lengths is SHORT else 0)).all(), place
            assert (np.abs(found.aside - before.aside).max(2)[reads] > 0).all()
            for name, array in vars(found).items():
                np.testing.assert_array_equal(array[~reads], getattr(before, name)[~reads], err_msg=name)
    for step in range(STEPS):
        changed_BK = items_BK.copy()
        changed_BK[:, step] = 2 + (changed_BK[:, step] + 30) % (config.vocabulary - 2)
        found = answer(engine, batch, changed_BK)
        moved_BK = (found.hidden != before.hidden).any(2)
        np.testing.assert_array_equal(moved_BK, np.tile(np.arange(STEPS + 1) > step, (len(batch), 1)))
        moved_BC = (found.aside != before.aside).any(2)
        np.testing.assert_array_equal(moved_BC, np.tile(np.arange(STEPS) == step, (len(batch), 1)))


@SIZES
@PRECISIONS
def test_a_row_has_the_same_bits_in_any_company_and_group(size, precision, monkeypatch):
    batch = make_batch(LENGTHS, config=CONFIGS[size])
    items_BK = items_of(size, batch)
    together = answer(opened(size, precision), batch, items_BK)
    drawn = [np.sort(np.random.default_rng(n).choice(len(batch), n, replace=False)) for n in (2, 3, 5, 9)]
    alone = np.array([0, 1, 3, 5, 7, 9, 11, 12])[:, None]
    for rows in (*alone, *drawn, np.array([1, 13]), np.array([0, 11])):
        assert_same_bits(answer(opened(size, precision), take(batch, rows), items_BK[rows]), together, rows)
    for group, positions in ((1, 1), (3, 130), (5, 300), (100, 10000)):
        monkeypatch.setattr(torch_engine, "GROUP_ROWS", group)
        monkeypatch.setattr(torch_engine, "CONTEXT_POSITIONS", positions)
        monkeypatch.setattr(torch_engine, "ASIDE_POSITIONS", positions)
        assert_same_bits(answer(TorchEngine(MODELS[size], precision=precision), batch, items_BK), together)


@PRECISIONS
def test_threads_do_not_matter(precision):
    batch, one = make_batch([*LENGTHS, *SHORT], config=CONFIGS[16]), opened(16, precision)
    torch.set_num_threads(2)
    two = TorchEngine(MODELS[16], precision=precision)
    torch.set_num_threads(1)
    for rows in (np.arange(len(batch)), np.array([3]), np.array([2, 13])):
        assert_same_bits(*(slate(engine, take(batch, rows), STEPS) for engine in (two, one)))


@PRECISIONS
def test_what_lay_in_memory_before_and_where_it_lies_change_nothing(precision, monkeypatch):
    batch = make_batch(LENGTHS, config=CONFIGS[48])
    items_BK = items_of(48, batch)
    expected = answer(opened(48, precision), batch, items_BK)
    empty = torch.empty, np.empty
    for offset in (0, 16, 32, 48):

        def torn(*shape, dtype=None, offset=offset, **_):
            dtype = dtype or torch.float32
            shape = shape[0] if shape and not isinstance(shape[0], int) else shape
            length = int(np.prod(shape)) * dtype.itemsize
            room = empty[0](length + 128, dtype=torch.uint8).fill_(255)  # bits of NaN in any float
            first = -room.data_ptr() % 64 + offset
            return room[first : first + length].view(dtype).view(tuple(shape))

        monkeypatch.setattr(torch, "empty", torn)
        monkeypatch.setattr(np, "empty", lambda *a, torn=empty[1], **k: fill(torn(*a, **k)))
        here = replace(MODELS[48], weights={n: placed(w, offset) for n, w in MODELS[48].weights.items()})
        assert_same_bits(answer(TorchEngine(here, precision=precision), batch, items_BK), expected)
        monkeypatch.undo()


def fill(array):
    if array.dtype.kind in "fiu":
        array.view(np.uint8)[...] = 255
    return array


@PRECISIONS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_in_a_row_is_seen_there_and_nowhere_else(precision, bad):
    batch = make_batch([0, 0, 5, 16, 17, 17, 128, 129, 129], config=CONFIGS[16])
    dense_BF, items_BK = batch.dense_BF.copy(), items_of(16, batch)
    dense_BF[[0, 3, 5, 8], 7] = bad
    found = answer(opened(16, precision), replace(batch, dense_BF=dense_BF), items_BK)
    expected = answer(opened(16, precision), batch, items_BK)
    for name, array in vars(found).items():
        assert np.isnan(array[[0, 3, 5, 8]]).all(), name
        np.testing.assert_array_equal(array[[1, 2, 4, 6, 7]], getattr(expected, name)[[1, 2, 4, 6, 7]])


@PRECISIONS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name",
    ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear1.bias", "linear2.weight",
     "norm1.weight"],
)  # fmt: skip
def test_what_is_no_number_in_a_weight_is_seen(precision, bad, name):
    for layer in range(CONFIGS[16].layers):
        weights = {n: w.copy() for n, w in MODELS[16].weights.items()}
        weights[f"encoder.layers.{layer}.{name}"].flat[7] = bad
        engine = TorchEngine(replace(MODELS[16], weights=weights), precision=precision)
        ranked = slate(engine, make_batch([5, 0, 17], config=CONFIGS[16]), 3)
        assert np.isnan(ranked.log_prob_BK).all()
        assert np.isnan(ranked.heads_BKH).all()
        for tokens_K in ranked.tokens_BK.tolist():
            assert len({*tokens_K} - {0, 1}) == 3, "banned, or read twice"


@PRECISIONS
def test_one_logit_that_is_no_number_makes_its_token_the_choice_as_in_the_twin(precision):
    weights = {n: w.copy() for n, w in MODELS[16].weights.items()}
    for bad in (np.nan, np.copysign(np.nan, -1)):
        weights["output_projection.bias"][30] = bad
        broken = replace(MODELS[16], weights=weights)
        batch = make_batch([5, 0, 17], config=CONFIGS[16], seen=2)
        batch.seen_BX[:] = [[30, 2], [2, 2], [2, 3]]  # where it is banned another is chosen
        found, twin = (slate(e, batch, 1) for e in (TorchEngine(broken, precision=precision), TorchEngine(broken)))
        assert found.tokens_BK[1:, 0].tolist() == [30, 30]
        np.testing.assert_array_equal(found.tokens_BK, twin.tokens_BK)
        assert np.isnan(found.log_prob_BK).all()


def test_choices_are_those_of_the_plain_choice():
    phases = opened(16, "bf16")._model.phases
    with torch.inference_mode():
        hidden_BD = torch.randn(9, 64, generator=torch.Generator().manual_seed(3))
        banned_BX = torch.randint(0, 83, (9, 30), generator=torch.Generator().manual_seed(4))
        exact_BV = hidden_BD @ phases.network.output_projection.weight.T + phases.network.output_projection.bias
        for tokens, choices in ((83, 1), (50, 1), (83, 4), (7, 9)):
            found = phases.choose(hidden_BD, banned_BX, tokens=tokens, choices=choices)
            torch.testing.assert_close(found.logits_BV, exact_BV, atol=2e-3, rtol=0)
            torch.testing.assert_close(found.log_sum_B, found.logits_BV.logsumexp(1), atol=1e-5, rtol=0)
            again = choice.choose(found.logits_BV.clone(), banned_BX, tokens=tokens, choices=choices)
            assert torch.equal(found.tokens_BW, again.tokens_BW)
            torch.testing.assert_close(found.log_prob_BW, again.log_prob_BW, atol=1e-5, rtol=0)


def test_auto_takes_plain_8_bit_numbers_for_clear_choices_and_pairs_for_near_ties(monkeypatch):
    config = ModelConfig(vocabulary=2000, width=64, ffn=128, layers=3, positions=64, heads=4, features=40)
    random, ties = np.random.default_rng(1), demo_model(config)
    inputs = ("feature_projection.weight", "token_embedding.weight")
    ties = replace(ties, weights={**ties.weights, **{name: 5 * ties.weights[name] for name in inputs}})  # unlike users
    batch = Batch(
        dense_BF=random.standard_normal((64, 40)).astype(np.float32),
        tokens_BS=random.integers(2, 2000, (64, 20)).astype(np.int32),
        lengths_B=np.full(64, 20, np.int32),
        seen_BX=np.zeros((64, 1), np.int32),
    )
    monkeypatch.setattr(choose, "fast_precisions", lambda *_: ("int8-fast", "bf16-fast", "bf16"))

    def taken(of):
        asked = {"name": "torch", "device": "cpu", "precision": "auto"}
        return choose.select(of, batch, decode.Decoding(top_k=10), **asked)

    bias = 3 * random.standard_normal(2000).astype(np.float32)
    pairs, plain = taken(ties), taken(replace(ties, weights={**ties.weights, "output_projection.bias": bias}))
    assert (plain.engine.precision, plain.check.refused) == ("int8-fast", {})
    assert (pairs.engine.precision, list(pairs.check.refused)) == ("bf16", ["int8-fast", "bf16-fast"])
    assert max(pairs.check.refused.values()) < choose.LEAST_OVERLAP <= pairs.check.overlap


def test_plain_8_bit_logits_choose_what_fp32_would():
    phases = opened(32, "int8-fast")._model.phases
    with torch.inference_mode():
        hidden_BD = torch.randn(400, 64, generator=torch.Generator().manual_seed(3))
        banned_BX = torch.randint(0, 101, (400, 30), generator=torch.Generator().manual_seed(4))
        rounded_BV = phases.output(hidden_BD)
        exact_BV = hidden_BD @ phases.network.output_projection.weight.T + phases.network.output_projection.bias
        banned_MC = torch.from_numpy(np.packbits(np.arange(101) % 5 == 2, bitorder="little"))[None]
        masks = choice.RowMasks.of(banned_MC, torch.zeros(400, dtype=torch.int64), 101)
        for mask in (None, masks):
            expected, rough = (
                choice.choose(x.clone(), banned_BX, tokens=90, choices=1, masks=mask) for x in (exact_BV, rounded_BV)
            )
            assert (rough.tokens_BW != expected.tokens_BW).sum() > 2, "8-bit logits alone would do"
            for choices in (1, 2):
                found = phases.choose(hidden_BD, banned_BX, tokens=90, choices=choices, masks=mask)
                assert torch.equal(found.tokens_BW[:, 0], expected.tokens_BW[:, 0])
                torch.testing.assert_close(found.log_prob_BW[:, 0], expected.log_prob_BW[:, 0], atol=0.01, rtol=0)


@PRECISIONS
def test_selected_rows_go_on_as_copies(precision):
    engine, batch = opened(32, precision), make_batch([4, 17, 0, 128, 129, 1, 16], config=CONFIGS[32])
    rows, expected = np.array([4, 4, 0, 6, 1, 4, 2, 2]), slate(engine, batch, STEPS)
    state = engine.prefill(batch, steps=STEPS)
    engine.decode(state)
    copy = engine.select(engine.select(state, rows), np.arange(8)[::-1].copy())
    apart = engine.select(state, np.array([4, 4]))
    engine.decode(apart, np.array([70, 71], np.int32))
    for _ in range(STEPS - 1):
        engine.decode(copy)
        engine.decode(state)
    assert_same_bits(engine.collect(copy), expected, rows[::-1])
    assert_same_bits(engine.collect(state), expected)
    assert engine.collect(apart).tokens_BK[:, 1].tolist() == [70, 71]


@PRECISIONS
def test_a_row_that_goes_on_from_its_prefix_gets_what_a_whole_read_gives(precision):
    engine, lengths = opened(32, precision), np.array([0, 1, 4, 16, 17, 128, 129, 131])
    batch = make_batch(lengths, config=CONFIGS[32])
    whole = slate(engine, batch, STEPS)
    for behind, tolerance in ((0, 0), (3, OFF[precision])):
        earlier = replace(batch, lengths_B=np.maximum(lengths - behind, 0).astype(batch.lengths_B.dtype))
        kept = engine.kept(engine.prefill(earlier, steps=1), range(len(batch)))
        before = [[part.clone() for part in prefix.cache] for prefix in kept]
        state = engine.resume(batch, [None, *kept[1:]], steps=STEPS)
        for items_B in whole.tokens_BK.T:
            engine.decode(state, items_B)
        found = engine.collect(state)
        np.testing.assert_allclose(found.log_prob_BK, whole.log_prob_BK, atol=tolerance, rtol=0)
        np.testing.assert_allclose(found.heads_BKH, whole.heads_BKH, atol=tolerance, rtol=0)
        for prefix, parts in zip(kept, before, strict=True):
            assert prefix.nbytes == sum(part.nbytes for part in parts)
            assert all(torch.equal(one, other) for one, other in zip(prefix.cache, parts, strict=True))


def test_only_int8_fast_keeps_8_bit_numbers_and_they_take_little_more_than_half():
    batch = make_batch([20], config=CONFIGS[32])
    taken = {}
    for precision in OFF:
        engine = opened(32, precision)
        (prefix,) = engine.kept(engine.prefill(batch, steps=1), [0])
        taken[precision] = prefix.nbytes
    assert taken["bf16"] == taken["int8"] == taken["bf16-fast"]
    assert taken["int8-fast"] == taken["bf16"] * (32 + 4) / 64


@PRECISIONS
def test_candidates_and_beams_are_what_reading_each_alone_gives(precision):
    engine, batch = opened(32, precision), make_batch([4, 17, 0, 128, 129, 1, 16], config=CONFIGS[32])
    exact, rows = opened(32, "fp32"), np.arange(len(batch))[:, None]
    ranked = decode.recommend(engine, batch, decode.Decoding(mode="candidates", num_candidates=5))
    everything = np.tile(np.arange(101, dtype=np.int32), (len(batch), 1))
    log_probs_BV = exact.log_probs(exact.prefill(batch, steps=1), everything)
    np.testing.assert_allclose(ranked.log_prob_BK, log_probs_BV[rows, ranked.tokens_BK], atol=OFF[precision])
    for column, items_B in enumerate(ranked.tokens_BK.T):
        alone = engine.prefill(batch, steps=1)
        engine.decode(alone, items_B)
        np.testing.assert_allclose(
            ranked.heads_BKH[:, column], engine.collect(alone).heads_BKH[:, 0], atol=OFF[precision] / 4
        )
    given = replace(batch, candidates_BC=ranked.tokens_BK[:, ::-1].copy())
    listed = decode.recommend(engine, given, decode.Decoding())
    np.testing.assert_array_equal(listed.log_prob_BK, ranked.log_prob_BK[:, ::-1])
    np.testing.assert_allclose(listed.heads_BKH, ranked.heads_BKH[:, ::-1], atol=1e-6)
    found = decode.recommend(engine, batch, decode.Decoding(top_k=STEPS, beam_width=3))
    state = engine.prefill(batch, steps=STEPS)
    for items_B in found.tokens_BK.T:
        engine.decode(state, items_B)
    assert_same_bits(found, engine.collect(state))
    assert (found.log_prob_BK.sum(1) >= slate(engine, batch, STEPS).log_prob_BK.sum(1)).all()


@PRECISIONS
def test_without_numba_or_for_other_heads_pytorch_computes_alone(precision, monkeypatch, caplog):
    single, narrow = replace(CONFIGS[16], layers=1), replace(CONFIGS[16], heads=16)
    for config in (single, narrow):
        assert isinstance(TorchEngine(demo_model(config), precision=precision)._model.phases, PlainPhases)
    batch = make_batch(SHORT, config=narrow)
    items_BK = items_of(16, batch)
    engines = (TorchEngine(demo_model(narrow), precision=p) for p in (precision, "fp32"))
    assert_near(*(answer(engine, batch, items_BK) for engine in engines), OFF[precision])
    assert isinstance(without_numba(MODELS[16], precision)._model.phases, PlainPhases)
    monkeypatch.setitem(sys.modules, "genrec_batch.engines.torch.compiled.phases", None)
    with caplog.at_level("WARNING"):
        assert isinstance(TorchEngine(MODELS[16], precision=precision)._model.phases, PlainPhases)
    assert "numba is installed but does not load" in caplog.text


def test_a_token_that_is_not_there_is_looked_up_nowhere():
    engine, batch = opened(16, "bf16"), make_batch([5, 4], config=CONFIGS[16])
    for bad in (83, -1):
        for name in ("tokens_BS", "seen_BX"):
            array = getattr(batch, name).copy()
            array[1, 1] = bad
            with pytest.raises(AssertionError, match="no such token"):
                engine.prefill(replace(batch, **{name: array}), steps=1)


def test_no_kernel_is_compiled_twice_for_one_precision():
    for precision in OFF:
        for lengths in ([1], [1, 1], [5], [5, 7, 0], [2, 2], [129, 3]):
            slate(opened(16, precision), make_batch(lengths, config=CONFIGS[16]), 2)
    kernels = {**vars(row_kernels), **vars(attention)}
    types = {
        name: len(kernel.signatures)
        for name, kernel in kernels.items()
        if hasattr(kernel, "signatures") and name[0] != "_"
    }
    assert types.pop("attend_context") == 2  # one writes bf16, one fp32
    assert {types.pop(name) for name in ("keep", "attend_next", "attend_aside")} <= {1, 2}  # a cache in bf16, in int8
    assert {types.pop(name) for name in ("relu_round", "add_norm_round", "scaled_half")} == {2}  # of sums in fp32, bf16
    assert max(types.values()) == 1, types


# What a process recommends in precisions, in the order given: a slate and candidates, which use all kernels.
RECOMMEND = """
import sys
from hashlib import sha256
import torch
from tests.engines.torch.test_compiled import CONFIGS, SHORT, decode, make_batch, opened
torch.set_num_threads(1)
batch = make_batch(SHORT, config=CONFIGS[48])
for precision in sys.argv[1:]:
    for mode in ("slate", "candidates"):
        found = decode.recommend(opened(48, precision), batch, decode.Decoding(mode=mode, top_k=4, num_candidates=9))
        print(precision, mode, sha256(found.log_prob_BK.tobytes() + found.heads_BKH.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_bits_are_the_same_whether_kernels_are_compiled_or_loaded(tmp_path):
    def recommended(precisions):
        command = [sys.executable, "-c", RECOMMEND, *precisions]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        root = Path(__file__).parents[3]
        return sorted(subprocess.check_output(command, cwd=root, env=environment, text=True).splitlines())

    compiled = recommended(OFF)
    assert recommended(OFF) == compiled
    for index in sorted(tmp_path.rglob("*.nbi"))[::2]:
        index.unlink()
    assert recommended(reversed(OFF)) == compiled
