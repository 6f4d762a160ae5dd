"""The hand-fused engine's logic on a CPU: with the kernels' plain twin, compared with a full forward.

Also tests `buffers`, `candidates`, `loop`, `packing`, `passes`, `programs` and `weights`.
"""

import time
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from genrec_batch.core.arrays import HEADS, Batch, Masks
from genrec_batch.core.errors import ConfigError, EngineError
from genrec_batch.engines.cuda import candidates as of_candidates
from genrec_batch.engines.cuda import loop
from genrec_batch.engines.cuda.engine import TorchCudaEngine
from genrec_batch.model.weights import ModelConfig, demo_model
from tests.twins import kernels as plain_kernels

SIZES = ModelConfig(vocabulary=61, width=32, ffn=64, layers=3, positions=24, heads=4, features=24, profile=8, video=16)
STEPS = 4
TOLERANCES = {"fp16": 0.02, "fp16-fast": 0.05, "bf16": 0.15, "fp8": 0.15}  # of log-probabilities and heads


@pytest.fixture(scope="module")
def model():
    return demo_model(SIZES)


@pytest.fixture
def engine(model):
    return TorchCudaEngine(model, device="cpu", precision="fp32", kernels=plain_kernels)


def drawn(lengths, seed=0, seen=6, *, side=False):
    random, users, longest = np.random.default_rng(seed), len(lengths), max(1, *lengths)
    tokens = random.integers(1, SIZES.vocabulary, (users, longest)).astype(np.int32)
    tokens[np.arange(longest) >= np.array(lengths)[:, None]] = 0
    has = random.random((2, users)) < 0.5
    return Batch(
        dense_BF=random.standard_normal((users, SIZES.features), np.float32),
        tokens_BS=tokens,
        lengths_B=np.array(lengths, np.int32),
        seen_BX=random.integers(0, SIZES.vocabulary, (users, seen)).astype(np.int32),
        profile_BP=random.standard_normal((users, SIZES.profile), np.float32) * has[0][:, None] if side else None,
        has_profile_B=has[0] if side else None,
        video_BV=random.standard_normal((users, SIZES.video), np.float32) * has[1][:, None] if side else None,
        has_video_B=has[1] if side else None,
    )


class Slow:
    """The twin: PyTorch's own encoder over the whole sequence for every item; no cache, no packing."""

    def __init__(self, model):
        self.weights = {name: torch.from_numpy(array) for name, array in model.weights.items()}
        layer = torch.nn.TransformerEncoderLayer(SIZES.width, SIZES.heads, SIZES.ffn, dropout=0.0, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, SIZES.layers, enable_nested_tensor=False).eval()
        inner = {n.removeprefix("encoder."): w for n, w in self.weights.items() if n.startswith("encoder.")}
        self.encoder.load_state_dict(inner)

    def linear(self, values, name):
        return torch.nn.functional.linear(values, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def forward(self, batch, row, tokens):
        """Log-probabilities [V] and heads [H] after the given tokens of one user."""
        prefix = self.linear(torch.from_numpy(batch.dense_BF[row]), "feature_projection")
        if batch.profile_BP is not None and batch.has_profile_B[row]:
            prefix = prefix + self.linear(torch.from_numpy(batch.profile_BP[row]), "user_profile_projection")
        if batch.video_BV is not None and batch.has_video_B[row]:
            prefix = prefix + self.linear(torch.from_numpy(batch.video_BV[row]), "video_feature_projection")
        x = torch.cat([prefix[None], self.weights["token_embedding.weight"][torch.tensor(tokens, dtype=torch.long)]])
        x = x + self.weights["position_embedding.weight"][: len(x)]
        with torch.no_grad():
            hidden = self.encoder(x[None], mask=torch.ones(len(x), len(x)).triu(1).bool())[0, -1]
        heads = torch.sigmoid(torch.cat([self.linear(hidden, f"{head}_head") for head in HEADS]))
        return self.linear(hidden, "output_projection").log_softmax(-1).numpy(), heads.numpy()

    def slate(self, batch, steps):
        """Tokens, log-probabilities and heads of greedy decoding."""
        users = []
        for row in range(len(batch)):
            tokens = batch.tokens_BS[row, : batch.lengths_B[row]].tolist()
            banned, items = {0, 1, *batch.seen_BX[row].tolist()}, []
            if batch.masks is not None:
                rule_V = batch.masks.unpacked(SIZES.vocabulary)[batch.masks.mask_B[row]]
                banned |= set(np.flatnonzero(rule_V).tolist())
            for _ in range(steps):
                log_prob, _ = self.forward(batch, row, tokens)
                free = [t for t in range(SIZES.vocabulary) if t not in banned]
                item = max(free, key=lambda t, p=log_prob: (p[t], -t)) if free else 0
                tokens.append(item)
                banned.add(item)
                heads = self.forward(batch, row, tokens)[1] if free else np.zeros(len(HEADS), np.float32)
                items.append((item, log_prob[item] if free else -np.inf, heads))
            users.append(items)
        return [np.array([[item[part] for item in items] for items in users]) for part in range(3)]


@pytest.fixture(scope="module")
def slow(model):
    return Slow(model)


def check(ranked, expected, tolerance=1e-4):
    np.testing.assert_array_equal(ranked.tokens_BK, expected[0])
    np.testing.assert_allclose(ranked.log_prob_BK, expected[1], atol=tolerance)
    np.testing.assert_allclose(ranked.heads_BKH, expected[2], atol=tolerance)


def run(engine, batch, steps=STEPS):
    state = engine.prefill(batch, steps=steps)
    for _ in range(steps):
        engine.decode(state)
    return engine.collect(state)


@pytest.mark.parametrize("side", [False, True], ids=["features", "features-profile-video"])
def test_prefill_and_decode_equal_full_forwards(slow, engine, side):
    batch = drawn([5, 0, 17, 1], side=side)
    check(run(engine, batch), slow.slate(batch, STEPS))


def test_the_slate_loop_gives_what_the_protocol_gives(slow, engine):
    batches = [
        drawn([5, 0, 17, 1]),
        drawn([3], seed=1),
        drawn([9, 12, 2, 2, 4, 6], seed=2, seen=40),
        drawn([8], seed=3),
    ]
    slates = list(engine.slate(iter(batches), STEPS))
    assert [len(s) for s in slates] == [4, 1, 6, 1]
    for batch, slate in zip(batches, slates, strict=True):
        check(slate, slow.slate(batch, STEPS))
    mixed = [drawn([2, 3], side=True), drawn([2, 3]), drawn([1, 3], seed=5, side=True)]
    for batch, slate in zip(mixed, engine.slate(mixed, 1), strict=True):
        check(slate, slow.slate(batch, 1))


def masked(batch, rules, *, share=0.8, seed=0):
    """A batch with so many bit maps that each ban that share of the tokens; the first bans everything."""
    random, users = np.random.default_rng(seed), len(batch)
    banned_MV = random.random((rules, SIZES.vocabulary)) < share
    banned_MV[0] |= rules > 1
    return replace(batch, masks=Masks.of(banned_MV, np.arange(users)[::-1] % rules))


def test_batches_with_and_without_masks_share_what_was_captured(slow, engine):
    batch = drawn([5, 0, 17, 1])
    batches = [batch, masked(batch, 4), batch, masked(batch, 1), masked(batch, 2, share=0.3)]
    for one, slate in zip(batches, engine.slate(batches, STEPS), strict=True):
        check(slate, slow.slate(one, STEPS))
    assert len(engine._loop._loops) == 1
    part = masked(batch, 4).rows(1, 3)  # more bit maps than rows
    check(next(engine.slate([part], STEPS)), slow.slate(part, STEPS))


def test_slates_own_their_memory(engine):
    batches = [drawn([4, 2], seed=s) for s in range(4)]
    slates = engine.slate(batches, 1)
    first = next(slates)
    before = first.tokens_BK.copy(), first.heads_BKH.copy()
    list(slates)
    np.testing.assert_array_equal(first.tokens_BK, before[0])
    np.testing.assert_array_equal(first.heads_BKH, before[1])


def test_nothing_left_is_token_0_with_log_prob_minus_infinity_and_heads_0(slow, engine):
    batch = drawn([3, 3])
    every = np.arange(2, SIZES.vocabulary, dtype=np.int32)
    seen = np.stack([every, np.where(every < 5, 0, every)])  # user 0 saw all, user 1 has three items left
    batch = Batch(dense_BF=batch.dense_BF, tokens_BS=batch.tokens_BS, lengths_B=batch.lengths_B, seen_BX=seen)
    expected = slow.slate(batch, STEPS)
    assert set(expected[0][1]) == {0, 2, 3, 4}
    check(run(engine, batch), expected)
    check(next(engine.slate([batch], STEPS)), expected)


def test_given_items_are_read_and_several_choices_come_best_first(slow, engine):
    batch = drawn([5, 2])
    state = engine.prefill(batch, steps=2, choices=SIZES.vocabulary)
    tokens, log_prob = engine.choose(state)
    for row in range(2):
        full, _ = slow.forward(batch, row, batch.tokens_BS[row, : batch.lengths_B[row]].tolist())
        free = sorted(set(range(2, SIZES.vocabulary)) - set(batch.seen_BX[row].tolist()), key=lambda t: -full[t])
        assert tokens[row, : len(free)].tolist() == free
        assert (tokens[row, len(free) :] == 0).all()
        np.testing.assert_allclose(log_prob[row, : len(free)], full[free], atol=1e-4)
        assert (log_prob[row, len(free) :] == -np.inf).all()
    given = tokens[:, 3].copy()
    engine.decode(state, given)
    assert not (engine.choose(state)[0] == given[:, None]).any()
    engine.decode(state, np.zeros(2, np.int32))
    ranked = engine.collect(state)
    assert ranked.tokens_BK[:, 0].tolist() == given.tolist()
    np.testing.assert_allclose(ranked.log_prob_BK[:, 0], log_prob[:, 3], atol=1e-4)
    assert (ranked.log_prob_BK[:, 1] == -np.inf).all()
    assert (ranked.heads_BKH[:, 1] == 0).all()


def test_tokens_beyond_the_catalog_are_never_chosen(model):
    small = TorchCudaEngine(model.with_catalog(4), device="cpu", precision="fp32", kernels=plain_kernels)
    batch = drawn([5, 2], seen=0)
    for ranked in (run(small, batch, 5), next(small.slate([batch], 5))):
        assert np.sort(ranked.tokens_BK, axis=1).tolist() == [[0, 2, 3, 4, 5]] * 2
    tokens, log_prob = small.choose(small.prefill(batch, steps=1, choices=6))
    assert np.sort(tokens, axis=1).tolist() == [[0, 0, 2, 3, 4, 5]] * 2
    assert (log_prob[:, 4:] == -np.inf).all()


def test_nothing_read_is_an_empty_slate(engine):
    ranked = engine.collect(engine.prefill(drawn([3, 1]), steps=1))
    assert ranked.tokens_BK.shape == ranked.log_prob_BK.shape == (2, 0)
    assert ranked.heads_BKH.shape == (2, 0, len(HEADS))


def test_equal_logits_choose_the_lower_token(model):
    tied = dict(model.weights)
    for name in ("output_projection.weight", "output_projection.bias"):
        tied[name] = np.zeros_like(tied[name])
    engine = TorchCudaEngine(replace(model, weights=tied), device="cpu", precision="fp32", kernels=plain_kernels)
    batch = drawn([5], seen=0)
    assert run(engine, batch).tokens_BK.tolist() == [[2, 3, 4, 5]]
    assert engine.choose(engine.prefill(batch, steps=1, choices=3))[0].tolist() == [[2, 3, 4]]


def test_candidates_are_scored_alone_after_the_history(slow, engine, monkeypatch):
    monkeypatch.setattr(of_candidates, "AT_ONCE", 4)  # several runs, the last one shorter
    batch = drawn([5, 0, 9])
    candidates = np.array([[7, 9, 60], [2, 7, 0], [4, 4, 8]], np.int32)
    state = engine.prefill(batch, steps=1)
    engine.decode(state)
    scores, log_probs = engine.score(state, candidates), engine.log_probs(state, candidates)
    for row, tokens in enumerate(candidates):
        history = batch.tokens_BS[row, : batch.lengths_B[row]].tolist()
        full, _ = slow.forward(batch, row, history)
        np.testing.assert_allclose(log_probs[row], np.where(tokens > 0, full[tokens], -np.inf), atol=1e-4)
        for place, token in enumerate(tokens):
            expected = slow.forward(batch, row, [*history, token])[1] if token else np.zeros(len(HEADS))
            np.testing.assert_allclose(scores[row, place], expected, atol=1e-4)


@pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "fp16"])
def test_the_loop_of_candidates_gives_what_the_protocol_gives(engine, model, monkeypatch, narrow):
    monkeypatch.setattr(of_candidates, "AT_ONCE", 40)  # several runs, the last one shorter
    if narrow:
        engine = TorchCudaEngine(model, device="cpu", precision="fp16", kernels=plain_kernels)
    everything = list(range(2, SIZES.vocabulary))
    batches = [drawn([5, 0, 9, 18, 2, 2, 1]), masked(drawn([3, 1], seed=1), 2), drawn([4] * 12, seed=2)]
    batches[0] = replace(batches[0], seen_BX=np.tile(np.array(everything[:-3], np.int32), (7, 1)))
    found = list(engine.candidates(iter(batches), 9))
    assert [len(each.tokens_BK) for each in found] == [7, 2, 12]
    for batch, ranked in zip(batches, found, strict=True):
        state = engine.prefill(batch, steps=1, choices=9)
        tokens, log_prob = engine.choose(state)
        np.testing.assert_array_equal(ranked.tokens_BK, tokens)
        np.testing.assert_array_equal(ranked.log_prob_BK, log_prob)
        np.testing.assert_allclose(ranked.heads_BKH, engine.score(state, tokens), atol=1e-6)
        assert (log_prob[:, 1:] <= log_prob[:, :-1]).all()
    assert (found[0].tokens_BK[:, 3:] == 0).all()  # three videos are left
    assert (found[0].log_prob_BK[:, 3:] == -np.inf).all()
    assert (found[0].heads_BKH[:, 3:] == 0).all()
    for first, again in zip(found, engine.candidates(batches, 9), strict=True):
        np.testing.assert_array_equal(first.heads_BKH, again.heads_BKH)


def test_selected_rows_go_on_from_where_their_origin_was(slow, engine):
    batch = drawn([5, 2])
    state = engine.prefill(batch, steps=3)
    engine.decode(state)
    chosen = engine.select(state, np.array([1, 1, 0]))
    branch = np.array([5, 6, 7], np.int32)
    engine.decode(chosen, branch)
    ranked, earlier = engine.collect(chosen), engine.collect(state)
    for row, origin in enumerate([1, 1, 0]):
        history = [*batch.tokens_BS[origin, : batch.lengths_B[origin]].tolist(), earlier.tokens_BK[origin, 0]]
        assert ranked.tokens_BK[row].tolist() == [earlier.tokens_BK[origin, 0], branch[row]]
        np.testing.assert_allclose(
            ranked.log_prob_BK[row, 1], slow.forward(batch, origin, history)[0][branch[row]], atol=1e-4
        )
        expected = slow.forward(batch, origin, [*history, branch[row]])[1]
        np.testing.assert_allclose(ranked.heads_BKH[row, 1], expected, atol=1e-4)
    engine.decode(state)  # the origin is as it was
    check(engine.collect(state), [part[:, :2] for part in slow.slate(batch, 2)])


def test_a_row_does_not_depend_on_its_neighbours_or_on_padding(engine):
    together = run(engine, drawn([5, 0, 17, 1]))
    batch = drawn([5, 0, 17, 1])
    wide = np.pad(batch.tokens_BS[:1, :5], ((0, 0), (0, 9)))
    alone = Batch(
        dense_BF=batch.dense_BF[:1],
        tokens_BS=wide,
        lengths_B=batch.lengths_B[:1],
        seen_BX=np.pad(batch.seen_BX[:1], ((0, 0), (3, 0))),
    )
    for ranked in (run(engine, alone), next(engine.slate([alone], STEPS))):
        np.testing.assert_array_equal(ranked.tokens_BK[0], together.tokens_BK[0])
        np.testing.assert_allclose(ranked.heads_BKH[0], together.heads_BKH[0], atol=1e-5)


def test_the_slate_loop_tells_when_it_copied_and_computed_each_batch(slow, engine):
    batches = [drawn([5, 0, 17, 1]), drawn([3, 2], seed=1), drawn([9, 12, 2], seed=2)]
    told, began = [], time.perf_counter()
    slates = list(engine.slate(batches, STEPS, lambda *args, **rest: told.append((*args, rest))))
    ended = time.perf_counter()
    for batch, slate in zip(batches, slates, strict=True):
        check(slate, slow.slate(batch, STEPS))
    assert [piece[0] for piece in told] == ["copy in", "prefill", "decode", "copy out"] * 3
    for number, batch in enumerate(batches):
        copy_in, first, following, copy_out = told[4 * number : 4 * number + 4]
        assert [piece[3]["rows"] for piece in (copy_in, first, following, copy_out)] == [
            len(batch), len(batch), len(batch) * STEPS, len(batch),
        ]  # fmt: skip
        assert copy_in[3]["bytes"] >= batch.dense_BF.nbytes
        assert copy_out[3]["bytes"] >= slates[number].heads_BKH.nbytes
        moments = [moment for piece in (copy_in, first, following, copy_out) for moment in piece[1:3]]
        assert moments == sorted(moments)
        assert began <= moments[0] < moments[-1] <= ended
    lanes = {piece[0]: piece[3]["lane"] for piece in told}
    assert lanes == {"copy in": "device in", "prefill": "device", "decode": "device", "copy out": "device out"}


def test_packing_adds_little_and_few_shapes():
    for rows in (1, 63, 64, 65, 127, 128, 129, 1000, 117_882, 208_896):
        assert rows <= loop.grid(rows) <= rows * (1 + 1 / 64)
    assert len({loop.grid(rows) for rows in range(65_536, 131_072)}) == 65


def test_too_long_a_history_names_the_way_out(engine):
    with pytest.raises(ConfigError, match="needs 26 positions, the model has 24: at most"):
        engine.prefill(drawn([21]), steps=4)


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [("cpu", "fp16", "runs on --device cuda"), ("cuda:0", "fp32", "--precision fp16, fp16-fast, bf16 or fp8")],
)
def test_what_it_cannot_serve_is_declined(model, device, precision, message):
    with pytest.raises(EngineError, match=message):
        TorchCudaEngine(model, device=device, precision=precision)


def test_no_gpu_is_declined_with_the_way_out(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="no CUDA device"):
        TorchCudaEngine(model)


def test_one_layer_is_declined():
    small = ModelConfig(vocabulary=61, width=32, ffn=64, layers=1, positions=24, heads=4)
    with pytest.raises(EngineError, match="at least 2 layers"):
        TorchCudaEngine(demo_model(small), device="cpu", precision="fp32", kernels=plain_kernels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp16", "fp16-fast", "bf16", "fp8"])
def test_on_a_gpu_every_call_agrees_with_the_twin_within_the_precision(model, engine, precision):
    real, tolerance = TorchCudaEngine(model, precision=precision), TOLERANCES[precision]
    if precision in ("fp8", "fp16-fast"):  # compared with its own numbers, which are further from fp32
        engine = TorchCudaEngine(model, device="cpu", precision=precision, kernels=plain_kernels)
    lengths = np.random.default_rng(4).integers(0, 19, 300).tolist()
    batches = [drawn(lengths, side=True), drawn(lengths[:70], seed=1), drawn(lengths, seed=2, side=True)]
    for batch, slate in zip(batches, real.slate(batches, STEPS), strict=True):
        expected, again = run(engine, batch), run(real, batch)
        same = np.cumprod(slate.tokens_BK == expected.tokens_BK, axis=1).astype(bool)
        assert same[:, 0].mean() > (0.97 if precision == "fp16" else 0.8)
        np.testing.assert_allclose(slate.log_prob_BK[same], expected.log_prob_BK[same], atol=tolerance)
        np.testing.assert_allclose(slate.heads_BKH[same], expected.heads_BKH[same], atol=tolerance)
        np.testing.assert_array_equal(slate.tokens_BK, again.tokens_BK)
    candidates = np.random.default_rng(5).integers(2, SIZES.vocabulary, (300, 7)).astype(np.int32)
    rows = np.random.default_rng(6).integers(0, 300, 300)
    results = []
    for one in (engine, real):
        state = one.prefill(batches[0], steps=2, choices=5)
        one.decode(state, candidates[:, 0])
        chosen = one.select(state, rows)
        one.decode(chosen, candidates[:, 1])
        ranked = one.collect(chosen)
        results.append(
            (one.score(state, candidates), one.log_probs(state, candidates), ranked.log_prob_BK, ranked.heads_BKH)
        )
        tokens, log_prob = one.choose(chosen)
        assert (np.diff(log_prob, axis=1) <= 0).all()
        assert not (tokens == candidates[:, 1:2]).any()
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp16", "fp16-fast", "bf16", "fp8"])
def test_on_a_gpu_masks_ban_what_they_ban_for_the_twin(model, engine, precision):
    real, tolerance = TorchCudaEngine(model, precision=precision), TOLERANCES[precision]
    if precision in ("fp8", "fp16-fast"):  # compared with its own numbers, which are further from fp32
        engine = TorchCudaEngine(model, device="cpu", precision=precision, kernels=plain_kernels)
    lengths = np.random.default_rng(4).integers(0, 19, 300).tolist()
    plain = drawn(lengths)
    batches = [plain, masked(plain, 1), masked(plain, 300), plain, masked(plain, 7, share=0.95), masked(plain, 300)]
    slates = list(real.slate(batches, STEPS))
    for batch, slate in zip(batches, slates, strict=True):
        expected = run(engine, batch)
        np.testing.assert_array_equal(slate.tokens_BK, run(real, batch).tokens_BK)
        np.testing.assert_array_equal((slate.tokens_BK > 0).sum(1), (expected.tokens_BK > 0).sum(1))
        if batch.masks is not None:
            assert not batch.masks.banned_BC(slate.tokens_BK)[slate.tokens_BK > 0].any()
        same = np.cumprod(slate.tokens_BK == expected.tokens_BK, axis=1).astype(bool)
        assert same[:, 0].mean() > (0.97 if precision == "fp16" else 0.8)
        np.testing.assert_allclose(slate.log_prob_BK[same], expected.log_prob_BK[same], atol=tolerance)
    for first, again in ((0, 3), (2, 5)):
        np.testing.assert_array_equal(slates[first].tokens_BK, slates[again].tokens_BK)
    state = real.prefill(batches[2], steps=2, choices=9)
    rows = np.random.default_rng(6).integers(0, 300, 500)
    banned_BV = batches[2].masks.unpacked(SIZES.vocabulary)[batches[2].masks.mask_B]
    for chosen, banned in ((state, banned_BV), (real.select(state, rows), banned_BV[rows])):
        real.decode(chosen)
        tokens, _ = real.choose(chosen)
        assert not (np.take_along_axis(banned, tokens, axis=1) & (tokens > 0)).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_devices_own_clock_tells_the_stages(model):
    real, told = TorchCudaEngine(model), []
    batches = [drawn(np.random.default_rng(n).integers(0, 19, 3000).tolist(), seed=n) for n in range(8)]
    expected = [slate.tokens_BK for slate in real.slate(batches, STEPS)]  # captures
    began = time.perf_counter()
    slates = list(real.slate(batches, STEPS, lambda *args, **rest: told.append((*args, rest))))
    ended = time.perf_counter()
    for slate, tokens in zip(slates, expected, strict=True):
        np.testing.assert_array_equal(slate.tokens_BK, tokens)
    assert [piece[0] for piece in told] == ["copy in", "prefill", "decode", "copy out"] * len(batches)
    assert all(began - 1e-3 <= start < stop <= ended for _, start, stop, _ in told)
    for lane in ("device in", "device", "device out"):
        moments = [moment for piece in told if piece[3]["lane"] == lane for moment in piece[1:3]]
        assert moments == sorted(moments)
    for number in range(len(batches)):
        copy_in, first, following, copy_out = told[4 * number : 4 * number + 4]
        assert copy_in[2] <= first[1] + 1e-4
        assert first[2] <= following[1] + 1e-4
        assert following[2] <= copy_out[1] + 1e-4
    assert real.peak_bytes() > 0
