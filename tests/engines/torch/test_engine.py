"""The torch engine: equal to PyTorch's own encoder, to full forwards without a cache, and to itself in any batch.

Also tests `cache`, `choice`, `device`, `lane` and `network`.
"""

from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from genrec_batch.core.arrays import Batch, Masks, Ranked
from genrec_batch.core.errors import ConfigError, EngineError, RetryError
from genrec_batch.engines.decode import Decoding, recommend
from genrec_batch.engines.torch import choice, linear
from genrec_batch.engines.torch import device as torch_device
from genrec_batch.engines.torch import engine as torch_engine
from genrec_batch.engines.torch.engine import TorchEngine
from genrec_batch.engines.torch.linear import AT_ONCE, Linear, ProductTable
from genrec_batch.engines.torch.network import Network, load_network
from genrec_batch.model.weights import PRESETS, ModelConfig, demo_model, parameter_shapes

CONFIG = ModelConfig(vocabulary=80, width=32, ffn=48, layers=3, positions=40, heads=4)
MODEL = demo_model(CONFIG)
STEPS = 6
NEEDS_VNNI = pytest.mark.skipif(not torch_device.fast_int8(), reason="this processor has no AVX-512 VNNI")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Products this small wait longer for a second thread than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine():
    return TorchEngine(MODEL, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def network():
    return load_network(CONFIG, MODEL.weights, torch.device("cpu"))


def make_batch(lengths=(7, 0, 3, 1, 12, 12, 5), *, seed=0, config=CONFIG, vectors=True, seen=4):
    random = np.random.default_rng(seed)
    lengths_B = np.array(lengths, np.int32)
    rows, width = len(lengths), max(1, int(lengths_B.max()))
    tokens_BS = random.integers(1, config.vocabulary, (rows, width)).astype(np.int32)
    tokens_BS[np.arange(width) >= lengths_B[:, None]] = 0
    has_profile_B, has_video_B = np.arange(rows) % 2 == 0, np.arange(rows) % 3 == 0
    batch = Batch(
        dense_BF=random.standard_normal((rows, config.features)).astype(np.float32),
        tokens_BS=tokens_BS,
        lengths_B=lengths_B,
        seen_BX=random.integers(0, config.vocabulary, (rows, seen)).astype(np.int32),
    )
    if not vectors:
        return batch
    return replace(
        batch,
        profile_BP=(random.standard_normal((rows, config.profile)) * has_profile_B[:, None]).astype(np.float32),
        has_profile_B=has_profile_B,
        video_BV=(random.standard_normal((rows, config.video)) * has_video_B[:, None]).astype(np.float32),
        has_video_B=has_video_B,
    )


def take(batch, rows):
    """Some rows of a batch, cut to their longest."""
    width = max(1, int(batch.lengths_B[rows].max()))
    names = ("dense_BF", "lengths_B", "seen_BX", "profile_BP", "has_profile_B", "video_BV", "has_video_B")
    arrays = {name: getattr(batch, name) for name in names}
    return Batch(
        tokens_BS=batch.tokens_BS[rows, :width], **{n: None if a is None else a[rows] for n, a in arrays.items()}
    )


def slate(engine, batch, steps=STEPS):
    state = engine.prefill(batch, steps=steps)
    for _ in range(steps):
        engine.decode(state)
    return engine.collect(state)


def assert_alike(got, expected, tolerance):
    np.testing.assert_array_equal(got.tokens_BK, expected.tokens_BK)
    np.testing.assert_allclose(got.log_prob_BK, expected.log_prob_BK, atol=tolerance, rtol=0)
    np.testing.assert_allclose(got.heads_BKH, expected.heads_BKH, atol=tolerance, rtol=0)


def torch_prefix(network, batch, row):
    pick = [batch.dense_BF, batch.profile_BP, batch.has_profile_B, batch.video_BV, batch.has_video_B]
    return network.prefix(*(None if a is None else torch.from_numpy(a[row : row + 1]) for a in pick))


@torch.no_grad()
def full_forwards(network, batch, steps, tokens=CONFIG.vocabulary):
    """The slate the slow way: one row at a time, the whole sequence again for every item."""
    items, log_prob, heads = [], [], []
    for row, length in enumerate(batch.lengths_B):
        read = batch.tokens_BS[row, :length].tolist()
        banned = {0, 1, *batch.seen_BX[row].tolist()}
        prefix = torch_prefix(network, batch, row)
        last = network(prefix, torch.tensor([read], dtype=torch.int64))[:, -1]
        for _ in range(steps):
            log_probs = torch.log_softmax(network.logits(last), 1)[0]
            best = max((t for t in range(tokens) if t not in banned), key=lambda t: (log_probs[t], -t))
            read, banned = [*read, best], banned | {best}
            last = network(prefix, torch.tensor([read]))[:, -1]
            items.append(best)
            log_prob.append(float(log_probs[best]))
            heads.append(network.scores(last)[0].numpy())
    shape = len(batch), steps
    return Ranked(
        tokens_BK=np.array(items, np.int32).reshape(shape),
        log_prob_BK=np.array(log_prob, np.float32).reshape(shape),
        heads_BKH=np.array(heads).reshape(*shape, 4),
    )


@pytest.mark.parametrize("training", [False, True])
def test_parameters_are_named_and_shaped_as_the_model_says(training):
    network = Network(CONFIG).train(training)
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    assert shapes == parameter_shapes(CONFIG)


def test_prefill_equals_pytorchs_encoder(engine):
    batch = make_batch()
    layer = torch.nn.TransformerEncoderLayer(
        CONFIG.width, CONFIG.heads, CONFIG.ffn, dropout=0.1, activation="relu", batch_first=True, norm_first=False
    )
    encoder = torch.nn.TransformerEncoder(layer, CONFIG.layers, enable_nested_tensor=False).eval()
    weights = {name: torch.from_numpy(weight) for name, weight in MODEL.weights.items()}
    encoder.load_state_dict({n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")})
    ask = np.tile(np.arange(CONFIG.vocabulary, dtype=np.int32), (len(batch), 1))
    got = engine.log_probs(engine.prefill(batch, steps=1), ask)
    for row, length in enumerate(batch.lengths_B):
        x = torch.from_numpy(batch.dense_BF[row]) @ weights["feature_projection.weight"].T
        x = x + weights["feature_projection.bias"]
        for flag, name, vector in (
            (batch.has_profile_B[row], "user_profile_projection", batch.profile_BP[row]),
            (batch.has_video_B[row], "video_feature_projection", batch.video_BV[row]),
        ):
            if flag:
                x = x + torch.from_numpy(vector) @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        tokens = torch.from_numpy(batch.tokens_BS[row, :length]).long()
        x = torch.cat([x[None], weights["token_embedding.weight"][tokens]])
        x = x + weights["position_embedding.weight"][: length + 1]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(int(length) + 1)
        with torch.no_grad():
            last = encoder(x[None], mask=mask, is_causal=True)[0, -1]
        logits = last @ weights["output_projection.weight"].T + weights["output_projection.bias"]
        expected = torch.log_softmax(logits, 0).numpy()
        np.testing.assert_allclose(got[row, 1:], expected[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("vectors", [True, False])
def test_prefill_and_cached_steps_equal_full_forwards(engine, network, vectors):
    batch = make_batch(vectors=vectors)
    assert_alike(slate(engine, batch), full_forwards(network, batch, STEPS), 1e-4)


def test_the_reference_size_equals_full_forwards():
    reference = demo_model(PRESETS["reference"])
    batch = make_batch([5, 0, 9], config=reference.config)
    network = load_network(reference.config, reference.weights, torch.device("cpu"))
    expected = full_forwards(network, batch, 4, tokens=reference.config.vocabulary)
    assert_alike(slate(TorchEngine(reference), batch, 4), expected, 1e-4)


def test_long_histories_equal_full_forwards(monkeypatch):
    config = replace(CONFIG, positions=200)
    longer = demo_model(config)
    batch = make_batch([150, 3, 140, 0, 145])
    network = load_network(config, longer.weights, torch.device("cpu"))
    monkeypatch.setattr(torch_engine, "GROUP_ROWS", 3)
    monkeypatch.setattr(torch_engine, "CONTEXT_POSITIONS", 160)
    assert_alike(slate(TorchEngine(longer), batch, 3), full_forwards(network, batch, 3), 1e-4)


def test_features_and_vectors_change_what_comes_next(engine):
    batch = make_batch()
    ask = np.tile(np.arange(2, CONFIG.vocabulary, dtype=np.int32), (len(batch), 1))

    def answer(changed):
        return engine.log_probs(engine.prefill(changed, steps=1), ask)

    assert (np.abs(answer(batch) - answer(replace(batch, dense_BF=batch.dense_BF * 0.9))).max(1) > 1e-3).all()
    bare = replace(batch, profile_BP=None, has_profile_B=None, video_BV=None, has_video_B=None)
    changed = np.abs(answer(batch) - answer(bare)).max(1) > 1e-3
    np.testing.assert_array_equal(changed, batch.has_profile_B | batch.has_video_B)


def test_scores_differ_between_items(engine):
    heads_BKH = slate(engine, make_batch()).heads_BKH
    assert ((heads_BKH > 0) & (heads_BKH < 1)).all()
    for row in heads_BKH:
        assert len(np.unique(row, axis=0)) == STEPS


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("int8", marks=NEEDS_VNNI)])
def test_a_row_does_not_depend_on_its_company_or_padding(precision):
    engine = TorchEngine(MODEL, precision=precision)
    batch = make_batch()
    together = slate(engine, batch)
    tolerance = 1e-5 if precision == "fp32" else 1e-2  # products of other sizes may round a 16-bit sum another way
    for row in range(len(batch)):
        alone = slate(engine, take(batch, np.array([row])))
        expected = Ranked(
            tokens_BK=together.tokens_BK[row : row + 1],
            log_prob_BK=together.log_prob_BK[row : row + 1],
            heads_BKH=together.heads_BKH[row : row + 1],
        )
        assert_alike(alone, expected, tolerance)
    wider = replace(
        batch,
        tokens_BS=np.pad(batch.tokens_BS, ((0, 0), (0, 9))),
        seen_BX=np.pad(batch.seen_BX, ((0, 0), (2, 3))),
    )
    assert_alike(slate(engine, wider), together, tolerance)


def library_adds_up_alike():
    """Whether this processor's products give a row the same bits, whatever rows and zeros stand beside it.

    A product of one row of queries may be computed in another way than one of eight or more.
    """
    random = torch.Generator().manual_seed(0)
    x = torch.randn(90, 32, generator=random)
    for outputs in (16, 32, 48, 80, 96):
        product = Linear(torch.randn(outputs, 32, generator=random), torch.zeros(outputs), torch.float32)
        if not all(torch.equal(product(x[:n]), product(x)[:n]) for n in (1, 2, 7, 33, 89)):
            return False
    left, right = torch.randn(40, 4, 19, 8, generator=random), torch.randn(40, 4, 8, 32, generator=random)
    shares = torch.rand(40, 4, 19, 32, generator=random)
    shares[..., 9:] = 0
    values, few = right.transpose(2, 3).contiguous(), 16  # a vector of fp32
    for n in (1, 2, 7, 33):
        for last in (1, 8, 9, 19):
            a, b = left[:, :, :last].contiguous(), shares[:, :, :last].contiguous()
            fewer = left[:, :, : min(last, 8)].contiguous()
            if not (
                torch.equal(torch.matmul(a[:n], right[:n, ..., :few]), torch.matmul(a, right)[:n, ..., :few])
                and torch.equal(torch.matmul(b[:n, ..., :few], values[:n, :, :few]), torch.matmul(b, values)[:n])
                and torch.equal(torch.matmul(fewer, right)[:, :, 0], torch.matmul(a, right)[:, :, 0])
            ):
                return False
    return True


@pytest.mark.parametrize("heads", [2, 4], ids=lambda heads: f"{heads} heads")
@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("int8", marks=NEEDS_VNNI)])
def test_a_row_has_the_same_bits_whoever_is_scored_beside_it(precision, heads):
    if not library_adds_up_alike():
        pytest.skip("the products of this processor depend on how many rows they have")
    engine = TorchEngine(demo_model(replace(CONFIG, heads=heads)), precision=precision)
    batch = make_batch([*np.random.default_rng(2).integers(0, 20, 90), *[2, 3, 4] * 20])
    together = slate(engine, batch)
    drawn = (np.random.default_rng(n).choice(150, n, replace=False) for n in (1, 2, 5, 31, 60, 149))
    short = (np.flatnonzero(batch.lengths_B <= longest) for longest in (2, 3, 4, 7))
    for rows in (*short, *drawn):
        some = slate(engine, take(batch, rows))
        np.testing.assert_array_equal(some.tokens_BK, together.tokens_BK[rows])
        np.testing.assert_array_equal(some.log_prob_BK, together.log_prob_BK[rows])
        np.testing.assert_array_equal(some.heads_BKH, together.heads_BKH[rows])


def test_the_groups_that_rows_fall_into_do_not_matter(engine, monkeypatch):
    batch = make_batch([7, 0, 3, 1, 12, 12, 5, 0, 8, 2])
    together = slate(engine, batch)
    for rows, positions in ((1, 1), (4, 1), (4, 26), (100, 1000)):
        monkeypatch.setattr(torch_engine, "GROUP_ROWS", rows)
        monkeypatch.setattr(torch_engine, "CONTEXT_POSITIONS", positions)
        assert_alike(slate(TorchEngine(MODEL), batch), together, 1e-5)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_does_not_matter(engine, threads):
    batch = make_batch([7, 0, 3, 1, 12, 12, 5, 0, 8, 2])
    rows = np.array([9, 9, 0, 3, 3, 3, 5])
    torch.set_num_threads(threads)
    lanes = TorchEngine(MODEL)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert_alike(slate(lanes, batch), slate(engine, batch), 1e-5)
    assert_alike(slate(lanes, take(batch, np.array([4]))), slate(engine, take(batch, np.array([4]))), 1e-5)
    ask = np.random.default_rng(1).integers(0, CONFIG.vocabulary, (7, 4)).astype(np.int32)
    states = []
    for one in (engine, lanes):
        state = one.prefill(batch, steps=3, choices=2)
        one.decode(state, np.arange(20, 30, dtype=np.int32))
        state = one.select(state, rows)
        one.decode(state, np.arange(40, 47, dtype=np.int32))
        states.append(state)
    assert_alike(lanes.collect(states[1]), engine.collect(states[0]), 1e-5)
    for found, expected in zip(lanes.choose(states[1]), engine.choose(states[0]), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(lanes.log_probs(states[1], ask), engine.log_probs(states[0], ask), atol=1e-5)
    np.testing.assert_allclose(lanes.score(states[1], ask), engine.score(states[0], ask), atol=1e-5)


def test_two_runs_give_the_same_bits(engine):
    first, second = slate(engine, make_batch()), slate(engine, make_batch())
    assert first.log_prob_BK.tobytes() == second.log_prob_BK.tobytes()
    assert first.heads_BKH.tobytes() == second.heads_BKH.tobytes()


def placed(array, offset):
    """A copy whose first number lies `offset` bytes behind a multiple of 64, as NumPy may place it."""
    room = np.zeros(array.nbytes + 128, np.uint8)
    first = -room.ctypes.data % 64 + offset
    copy = room[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


@pytest.mark.parametrize("threads", [2, 3])
def test_every_lane_computes_on_its_own_thread_alone(threads):
    pool, all_there = torch_engine._lane_threads(threads), Barrier(threads)

    def ask(_):
        all_there.wait(60)  # or one thread could answer for all
        return torch.get_num_threads()

    torch.set_num_threads(threads + 1)
    with pool:
        assert list(pool.map(ask, range(threads))) == [1] * threads


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("int8", marks=NEEDS_VNNI)])
def test_engines_opened_anew_give_the_same_bits_wherever_numbers_lie_in_memory(precision):
    config = replace(CONFIG, features=1024, width=64)  # products large enough that two threads would share them
    weights, batch = demo_model(config).weights, make_batch([7, 3, 12, 0, 5] * 8, config=config)
    answers = set()
    for offset in (0, 16, 32, 48):
        torch.set_num_threads(2)
        here = replace(demo_model(config), weights={n: placed(w, offset) for n, w in weights.items()})
        arrays = {n: placed(getattr(batch, n), offset) for n in ("dense_BF", "profile_BP", "video_BV", "tokens_BS")}
        engine, again = TorchEngine(here, precision=precision), replace(batch, **arrays)
        for _ in range(10):  # which thread takes which lane is left to chance
            found = slate(engine, again, 2)
            answers.add(found.tokens_BK.tobytes() + found.log_prob_BK.tobytes() + found.heads_BKH.tobytes())
    torch.set_num_threads(1)
    assert len(answers) == 1


def test_products_of_positions_are_computed_when_histories_reach_them():
    embedding, bias = torch.randn(2 * AT_ONCE + 7, 16), torch.randn(24)
    product = Linear(torch.randn(24, 16), bias, torch.float32)
    table = ProductTable(product, embedding)
    first = table.upto(3).clone()
    whole = table.upto(len(embedding))
    torch.testing.assert_close(whole, product(embedding))
    assert torch.equal(whole[:3], first)
    assert torch.equal(table.upto(5), whole[:5])
    assert torch.equal(ProductTable(product, embedding).upto(len(embedding)), whole), "the order of calls counts"


def test_bf16_needs_no_processor_that_computes_in_it(monkeypatch):
    weight, bias, x = torch.randn(24, 16), torch.randn(24), torch.randn(5, 16)
    monkeypatch.setattr(linear, "BF16_HERE", lambda: False)
    found = Linear(weight, bias, torch.bfloat16)(x, relu=True)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), (x @ weight.T + bias).relu(), atol=0.15, rtol=0.05)


def test_bf16_stays_close_to_fp32():
    config = replace(CONFIG, vocabulary=500, width=64, ffn=128)
    small = demo_model(config)
    batch = make_batch(range(30), config=config, vectors=False)
    exact, fast = slate(TorchEngine(small), batch), slate(TorchEngine(small, precision="bf16"), batch)
    same = exact.tokens_BK == fast.tokens_BK
    assert same.mean() > 0.9
    assert not np.array_equal(exact.log_prob_BK, fast.log_prob_BK)
    np.testing.assert_allclose(fast.log_prob_BK[same], exact.log_prob_BK[same], atol=0.05)


@NEEDS_VNNI
def test_int8_stays_close_to_fp32():
    config = replace(CONFIG, vocabulary=500, width=64, ffn=128)
    small = demo_model(config)
    batch = make_batch(range(30), config=config, vectors=False)
    exact, fast = slate(TorchEngine(small), batch), slate(TorchEngine(small, precision="int8"), batch)
    same = exact.tokens_BK == fast.tokens_BK
    assert same.mean() > 0.9
    assert not np.array_equal(exact.log_prob_BK, fast.log_prob_BK)
    np.testing.assert_allclose(fast.log_prob_BK[same], exact.log_prob_BK[same], atol=0.05)


def test_int8_without_its_instructions_is_refused(monkeypatch):
    monkeypatch.setattr(torch_device, "fast_int8", lambda: False)
    with pytest.raises(EngineError, match=r"--precision int8.*VNNI.*fp32"):
        TorchEngine(MODEL, precision="int8")


def test_nothing_special_seen_or_read_is_chosen(engine):
    batch = make_batch(seen=30)
    ranked = slate(engine, batch, 20)
    for tokens_K, seen_X in zip(ranked.tokens_BK.tolist(), batch.seen_BX.tolist(), strict=True):
        assert len(set(tokens_K)) == 20
        assert not set(tokens_K) & {0, 1, *seen_X}


def test_where_nothing_is_left_the_row_ends_in_zeros(engine):
    batch = make_batch()
    seen_BX = np.tile(np.arange(CONFIG.vocabulary, dtype=np.int32), (len(batch), 1))
    seen_BX[:, [20, 40]] = 0
    seen_BX[0, 60] = 0
    ranked = slate(engine, replace(batch, seen_BX=seen_BX), 5)
    left = np.array([3] + [2] * (len(batch) - 1))
    assert set(ranked.tokens_BK[0, :3].tolist()) == {20, 40, 60}
    empty = np.arange(5) >= left[:, None]
    np.testing.assert_array_equal(ranked.tokens_BK == 0, empty)
    np.testing.assert_array_equal(np.isneginf(ranked.log_prob_BK), empty)
    assert not ranked.heads_BKH[empty].any()
    assert ranked.heads_BKH[~empty].all()


def of_catalog(batch, videos):
    """Return a batch with the histories of a log whose catalog has so many videos: others are unknown."""
    return replace(batch, tokens_BS=np.where(batch.tokens_BS < 2 + videos, batch.tokens_BS, 1))


def test_tokens_beyond_the_catalog_are_never_chosen(network):
    engine = TorchEngine(MODEL.with_catalog(9))
    batch = of_catalog(replace(make_batch(), seen_BX=np.zeros((7, 1), np.int32)), 9)
    ranked = slate(engine, batch, 10)
    assert ranked.tokens_BK.max() == 10
    assert not ranked.tokens_BK[:, 9].any()
    expected = full_forwards(network, batch, 9, tokens=11)
    np.testing.assert_array_equal(ranked.tokens_BK[:, :9], expected.tokens_BK)
    np.testing.assert_allclose(ranked.log_prob_BK[:, :9], expected.log_prob_BK, atol=1e-4)


def test_more_choices_than_items_are_filled_with_zeros():
    engine = TorchEngine(MODEL.with_catalog(3))
    batch = of_catalog(replace(make_batch(), seen_BX=np.full((7, 1), 3, np.int32)), 3)
    tokens_BW, log_prob_BW = engine.choose(engine.prefill(batch, steps=1, choices=8))
    assert [sorted(row) for row in tokens_BW[:, :2].tolist()] == [[2, 4]] * 7
    assert not tokens_BW[:, 2:].any()
    assert np.isneginf(log_prob_BW[:, 2:]).all()


def test_equal_logits_give_the_lower_token_first():
    logits_BV = torch.tensor([[9.0, 9.0, -1.0, 3.0, 3.0, -0.0, 0.0, 3.0]])
    banned_BX = torch.tensor([[0, 1, 3]])
    found = choice.choose(logits_BV, banned_BX, tokens=8, choices=6)
    assert found.tokens_BW.tolist() == [[4, 7, 5, 6, 2, 0]]
    assert torch.isneginf(found.log_prob_BW[0, 5])
    assert logits_BV.tolist() == [[9.0, 9.0, -1.0, 3.0, 3.0, 0.0, 0.0, 3.0]]
    assert choice.choose(logits_BV, banned_BX, tokens=8, choices=1).tokens_BW.tolist() == [[4]]
    assert choice.choose(logits_BV, banned_BX, tokens=4, choices=1).tokens_BW.tolist() == [[2]]


def test_choices_are_the_best_first_and_over_the_whole_vocabulary(engine):
    batch = make_batch()
    state = engine.prefill(batch, steps=1, choices=20)
    tokens_BW, log_prob_BW = engine.choose(state)
    assert (np.diff(log_prob_BW, axis=1) <= 0).all()
    np.testing.assert_array_equal(tokens_BW[:, 0], slate(engine, batch, 1).tokens_BK[:, 0])
    np.testing.assert_allclose(engine.log_probs(state, tokens_BW), log_prob_BW, atol=1e-6)
    everything = np.tile(np.arange(CONFIG.vocabulary, dtype=np.int32), (len(batch), 1))
    log_probs = engine.log_probs(state, everything)
    assert np.isneginf(log_probs[:, 0]).all()
    assert (np.exp(log_probs[:, 1:]).sum(1) < 1).all()


def test_scores_of_items_aside_equal_reading_each_alone(monkeypatch):
    batch = make_batch()
    monkeypatch.setattr(torch_engine, "ASIDE_POSITIONS", 10)
    engine = TorchEngine(MODEL)
    state = engine.prefill(batch, steps=2)
    tokens_BC = np.random.default_rng(3).integers(2, CONFIG.vocabulary, (len(batch), 5)).astype(np.int32)
    tokens_BC[0, 3:] = 0
    heads_BCH = engine.score(state, tokens_BC)
    for column in range(5):
        alone = engine.prefill(batch, steps=1)
        engine.decode(alone, tokens_BC[:, column])
        np.testing.assert_allclose(heads_BCH[:, column], engine.collect(alone).heads_BKH[:, 0], atol=1e-5)
    engine.decode(state)
    np.testing.assert_allclose(engine.score(state, tokens_BC), heads_BCH, atol=1e-6)


def test_a_given_item_is_read_like_a_chosen_one(engine):
    batch = make_batch()
    chosen = slate(engine, batch, 3)
    state = engine.prefill(batch, steps=3)
    for step in range(3):
        engine.decode(state, chosen.tokens_BK[:, step])
    assert_alike(engine.collect(state), chosen, 1e-6)


def test_selected_rows_go_on_as_copies(engine):
    batch = make_batch()
    rows = np.array([4, 4, 0, 6, 1, 4, 2, 2])
    expected = slate(engine, batch, 4)
    state = engine.prefill(batch, steps=4)
    engine.decode(state)
    copy = engine.select(engine.select(state, rows), np.arange(8)[::-1].copy())
    for _ in range(3):
        engine.decode(copy)
    picked = rows[::-1]
    got = engine.collect(copy)
    np.testing.assert_array_equal(got.tokens_BK, expected.tokens_BK[picked])
    np.testing.assert_allclose(got.heads_BKH, expected.heads_BKH[picked], atol=1e-5)
    apart = engine.select(state, np.array([4, 4]))
    engine.decode(apart, np.array([70, 71], np.int32))
    assert engine.collect(apart).tokens_BK[:, 1].tolist() == [70, 71]
    for _ in range(3):
        engine.decode(state)
    assert_alike(engine.collect(state), expected, 1e-5)


def test_nothing_read_is_an_empty_list(engine):
    ranked = engine.collect(engine.prefill(make_batch(), steps=2))
    assert ranked.tokens_BK.shape == (7, 0)
    assert ranked.heads_BKH.shape == (7, 0, 4)


def test_a_history_beyond_the_position_table_is_refused(engine):
    engine.prefill(make_batch([30]), steps=9)
    with pytest.raises(
        ConfigError,
        match="has 40: at most --max-events 29 or --top-k 9",
    ):
        engine.prefill(make_batch([30]), steps=10)


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(EngineError, match="--device cuda:99: "):
        TorchEngine(MODEL, device="cuda:99")


def test_a_missing_gpu_says_what_to_install(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=r"no CUDA GPU.*pip install .*genrec-batch\[torch\]"):
        TorchEngine(MODEL, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2), ("bf16", 2e-1)])
def test_a_gpu_gives_what_a_cpu_gives(engine, precision, tolerance):
    batch = make_batch()
    on_gpu = TorchEngine(MODEL, device="cuda", precision=precision)
    assert on_gpu.device.startswith("cuda:")
    expected = slate(engine, batch)
    state = on_gpu.prefill(batch, steps=STEPS)
    for step in range(STEPS):
        on_gpu.decode(state, expected.tokens_BK[:, step])
    assert_alike(on_gpu.collect(state), expected, tolerance)
    np.testing.assert_allclose(
        on_gpu.score(state, expected.tokens_BK),
        engine.score(engine.prefill(batch, steps=1), expected.tokens_BK),
        atol=tolerance,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("rules", [1, 3, 7])
def test_masks_ban_on_a_gpu_what_they_ban_on_a_cpu(engine, rules):
    batch = make_batch()
    banned_MV = np.random.default_rng(rules).random((rules, CONFIG.vocabulary)) < 0.7
    banned_MV[0] |= rules > 1  # everything
    batch = replace(batch, masks=Masks.of(banned_MV, np.arange(len(batch)) % rules))
    on_gpu = TorchEngine(MODEL, device="cuda", precision="fp32")
    for decoding in (
        Decoding(top_k=STEPS),
        Decoding(top_k=STEPS, beam_width=3),
        Decoding(mode="candidates", num_candidates=9),
    ):
        found, expected = recommend(on_gpu, batch, decoding), recommend(engine, batch, decoding)
        np.testing.assert_array_equal(found.tokens_BK, expected.tokens_BK)
        np.testing.assert_allclose(found.log_prob_BK, expected.log_prob_BK, atol=1e-4)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_asks_to_try_again(error):
    with (
        pytest.raises(RetryError, match="out of memory: lower --batch-size"),
        torch_device.retry_when_out_of_memory("cpu"),
    ):
        raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), torch_device.retry_when_out_of_memory(torch.device("cpu")):
        raise RuntimeError("shapes do not fit")
