"""The TensorRT engine without a GPU: the real graphs, addresses, stream order and memory, on `fakes.cuda`.

Also tests `loop`, `memory`, `program`, `store`, `network` and `engines.driver`.
"""

import dataclasses
import gc
import subprocess
import sys
import time

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch, Masks
from genrec_batch.core.errors import ConfigError, EngineError, RetryError
from genrec_batch.engines import driver, numbers
from genrec_batch.engines.decode import Decoding, recommend_all
from genrec_batch.engines.numbers import NotNumbersError
from genrec_batch.engines.plan_cache import EngineCache
from genrec_batch.engines.tensorrt.builder import wrap
from genrec_batch.engines.tensorrt.engine import TensorRtEngine
from genrec_batch.engines.tensorrt.plugin.library import VARIABLE, Toolchain, load, toolchain
from genrec_batch.model.weights import Model, ModelConfig, demo_model, initial_weights, preset
from tests.fakes.cuda import FakeRuntime
from tests.fakes.tensorrt import FakeTensorRt
from tests.twins.network import NumpyNetwork

ENGINE = "genrec_batch.engines.tensorrt.engine"
STEPS = 3
PLUGIN_SIZES = ModelConfig(vocabulary=120, width=512, ffn=64, layers=2, positions=64)


@pytest.fixture
def gpu(monkeypatch):
    runtime = FakeRuntime()
    monkeypatch.setattr(driver, "load_runtime", lambda: runtime)
    monkeypatch.delenv(VARIABLE, raising=False)
    return runtime


@pytest.fixture
def build(gpu, tmp_path):
    library = wrap("tensorrt", FakeTensorRt(gpu))

    def make(model=None, **options):
        options = {"precision": "fp32", "batch_size": 4, "lengths": (8, 16), **options}
        return TensorRtEngine(model or tiny(), cache=EngineCache(tmp_path / "cache"), library=library, **options)

    make.library, make.gpu = library, gpu
    return make


def tiny(config=None) -> Model:
    """A small model whose attention is sharp enough that a wrong mask changes the items."""
    config = config or preset("tiny")
    weights = initial_weights(config, 3)
    for name in weights:
        if name.endswith("in_proj_weight"):
            weights[name] = weights[name] * 3
    return dataclasses.replace(demo_model(config), weights=weights)


def batch_of(config, rows, seed=0, width=8, *, side=False) -> Batch:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, width + 1, rows).astype(np.int32)
    lengths[0] = width
    tokens = np.zeros((rows, width), np.int32)
    for row, length in enumerate(lengths):
        tokens[row, :length] = random.integers(1, config.vocabulary, length)
    extra = {}
    if side:
        extra = {
            "profile_BP": random.standard_normal((rows, config.profile)).astype(np.float32),
            "has_profile_B": np.arange(rows) % 2 == 0,
            "video_BV": random.standard_normal((rows, config.video)).astype(np.float32),
            "has_video_B": np.arange(rows) % 3 == 0,
        }
        extra["profile_BP"][1::2] = 0
        extra["video_BV"][~extra["has_video_B"]] = 0
    return Batch(
        dense_BF=random.standard_normal((rows, config.features)).astype(np.float32),
        tokens_BS=tokens,
        lengths_B=lengths,
        seen_BX=np.pad(tokens, ((0, 0), (0, 2))),
        **extra,
    )


def forward(model, batch, row, items):
    """Log-probabilities and heads of one row after the history and `items`, by a full forward in float64."""
    twin = NumpyNetwork(model)
    arguments = twin.row(batch, row)
    hidden_D = twin.hidden(**arguments | {"tokens": [*arguments["tokens"], *items]})
    return twin.log_probs(hidden_D), twin.heads(hidden_D)


def allowed(log_probs, batch, row, items, tokens=None):
    left = log_probs.copy()
    left[slice(tokens, None) if tokens else slice(0, 0)] = -np.inf
    left[[0, 1, *batch.seen_BX[row], *items]] = -np.inf
    if batch.masks is not None:
        left[batch.masks.unpacked(len(left))[batch.masks.mask_B[row]]] = -np.inf
    return left


def masked(config, batch, rules, seed=0):
    """The batch with so many bit maps, each of which bans three tokens of four."""
    banned_MV = np.random.default_rng(seed).random((rules, config.vocabulary)) < 0.75
    return dataclasses.replace(batch, masks=Masks.of(banned_MV, np.arange(len(batch))[::-1] % rules))


def check(model, batch, ranked, tolerance=1e-5):
    """Every item is (one of) the best allowed by the reference, with its log-probability and its own heads."""
    for row in range(len(batch)):
        items: list[int] = []
        for step, token in enumerate(ranked.tokens_BK[row]):
            log_probs, _ = forward(model, batch, row, items)
            left = allowed(log_probs, batch, row, items, model.tokens)
            assert left[token] >= left.max() - tolerance
            assert ranked.log_prob_BK[row, step] == pytest.approx(log_probs[token], abs=tolerance)
            items.append(int(token))
            np.testing.assert_allclose(
                ranked.heads_BKH[row, step], forward(model, batch, row, items)[1], atol=tolerance
            )


def greedy(engine, batch, steps=STEPS):
    state = engine.prefill(batch, steps=steps)
    for _ in range(steps):
        engine.decode(state)
    return engine.collect(state)


def test_masks_take_engines_of_their_own_and_leave_the_others_as_they_were(build, monkeypatch):
    engine, model, get, shapes = build(), tiny(), EngineCache.get, []
    monkeypatch.setattr(EngineCache, "get", lambda cache, key, made: shapes.append(key.shape) or get(cache, key, made))
    batch = batch_of(model.config, 5)
    batches = [batch, masked(model.config, batch, 1), masked(model.config, batch, 5), batch]
    for one, ranked in zip(batches, engine.slate(batches, STEPS), strict=True):
        check(model, one, ranked)
    assert build.library.api.builds == ["prefill", "decode"] * 2
    list(build().slate(batches, STEPS))  # all are in the cache
    assert len(build.library.api.builds) == 4
    assert [shape.get("masked") for shape in shapes] == [None, None, True, True] * 2  # so those built before are found


def test_only_a_batchs_own_bit_maps_are_copied(build):
    engine, model = build(batch_size=64), tiny()
    batch = masked(model.config, batch_of(model.config, 6), 2)
    many = dataclasses.replace(batch, masks=masked(model.config, batch_of(model.config, 64), 64).masks.rows(0, 6))
    bytes_in = []
    for one in (dataclasses.replace(batch, masks=None), batch, many):
        told = []
        list(engine.slate([one], 1, lambda stage, *_, told=told, **rest: told.append((stage, rest.get("bytes")))))
        bytes_in.append(dict(told)["copy in"])
    words = 4 * -(-model.config.vocabulary // 32)
    assert bytes_in[1] - bytes_in[0] == 2 * words + 64 * 4  # and the mask of each row
    assert bytes_in[2] - bytes_in[0] == 6 * words + 64 * 4


@pytest.mark.parametrize("side", [False, True])
def test_greedy_decode_is_the_network_without_a_cache(build, side):
    engine, model = build(), tiny()
    batch = batch_of(model.config, 5, side=side)
    check(model, batch, greedy(engine, batch))


def test_a_network_in_segments_is_the_same_network(build, monkeypatch):
    """One layer an engine: each takes what the one before left, and rows are still copied whole."""
    monkeypatch.setattr("genrec_batch.engines.tensorrt.builder.PLAIN_LAYERS", 1)
    engine, model = build(), tiny()
    batch = batch_of(model.config, 5, side=True)
    check(model, batch, greedy(engine, batch))
    check(model, batch, next(engine.slate([batch], STEPS)))
    assert {name.removeprefix("prefill_") for name in engine._program(engine.shapes.of(batch, STEPS))._executables} == {
        "0", "1", "decode_0", "decode_1"
    }  # fmt: skip
    state = engine.prefill(batch, steps=STEPS)
    engine.decode(state)
    again = engine.select(state, np.array([3, 3, 1]))
    engine.decode(again)
    assert engine.collect(again).tokens_BK.tolist() == greedy(engine, batch, 2).tokens_BK[[3, 3, 1]].tolist()


def test_items_outside_the_catalog_count_and_are_never_chosen(build):
    model = tiny().with_catalog(98)
    batch = batch_of(model.config, 5)
    ranked = greedy(build(model), batch)
    assert ranked.tokens_BK.max() < 100
    check(model, batch, ranked)


def test_fp16_stays_close_to_the_reference(build):
    model = tiny()
    batch = batch_of(model.config, 4)
    check(model, batch, greedy(build(precision="fp16"), batch), tolerance=1e-2)


def test_the_plugin_variant_agrees_too(build, monkeypatch):
    loaded = []
    monkeypatch.setattr(f"{ENGINE}.toolchain", lambda: Toolchain(compiler="g++", include=()))
    monkeypatch.setattr(f"{ENGINE}.load", lambda _cache, _tools, **given: loaded.append(given))
    model = tiny(PLUGIN_SIZES).with_catalog(80)
    engine = build(model, precision="fp16")
    batch = batch_of(model.config, 3)
    check(model, batch, greedy(engine, batch), tolerance=2e-2)
    assert "with the plugin" in engine.variant
    assert loaded == [{"library": "libnvinfer.so.8", "version": "8.6.0", "architecture": "sm_90"}]


def test_the_engine_says_why_it_runs_without_the_plugin(build):
    assert VARIABLE in build(tiny(PLUGIN_SIZES), precision="fp16").variant
    assert "width 512" in build(precision="fp16").variant


def test_slate_gives_what_step_by_step_gives_and_overlaps_batches(build, gpu):
    engine, config = build(), preset("tiny")
    batches = [batch_of(config, rows, seed) for seed, rows in enumerate((5, 64, 1, 30, 7))]
    expected = [greedy(engine, batch) for batch in batches]
    gpu.copies.clear()
    found = list(engine.slate(iter(batches), STEPS))
    assert [len(ranked) for ranked in found] == [5, 64, 1, 30, 7]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.tokens_BK, theirs.tokens_BK)
        np.testing.assert_array_equal(mine.log_prob_BK, theirs.log_prob_BK)
        np.testing.assert_array_equal(mine.heads_BKH, theirs.heads_BKH)
    assert gpu.graph_launches == 2 * len(batches)  # prefill, then all steps
    ways = [way for way, _ in gpu.copies if way != "steps"]
    assert ways.count("host") == len(batches)


@pytest.mark.parametrize("drift", [1.0, 1.00004], ids=["clocks-agree", "device-slow"])
def test_slate_tells_when_the_device_did_what(build, gpu, drift):
    gpu.tick = drift
    engine, config, told = build(), preset("tiny"), []
    batches = [batch_of(config, rows, seed) for seed, rows in enumerate((5, 64, 1, 30, 7))]
    began = time.perf_counter()
    found = list(engine.slate(iter(batches), STEPS, lambda *args, **rest: told.append((*args, rest))))
    ended = time.perf_counter()
    for mine, batch in zip(found, batches, strict=True):
        np.testing.assert_array_equal(mine.tokens_BK, greedy(engine, batch).tokens_BK)
    prepared = [piece for piece in told if piece[0] == "graphs"]
    assert len(prepared) == 2  # one for each of the two batches in flight
    told = [piece for piece in told if piece[0] != "graphs"]
    assert [piece[0] for piece in told] == ["copy in", "prefill", "decode", "copy out"] * len(batches)
    rows = [len(b) for b in batches]
    assert [p[3]["rows"] for p in told if p[0] == "prefill"] == rows
    assert [p[3]["rows"] for p in told if p[0] == "decode"] == [n * STEPS for n in rows]
    assert all(p[3]["bytes"] > 0 for p in told)
    assert all(began <= start <= stop <= ended for _, start, stop, _ in told)
    for lane in ("device in", "device", "device out"):
        moments = [moment for p in told if p[3]["lane"] == lane for moment in p[1:3]]
        assert moments == sorted(moments)
    assert 0 < engine.peak_bytes() <= gpu._in_use()


def test_what_is_built_is_told_with_its_place(build):
    told = []
    engine = build(progress=lambda what, done: told.append((what, done)))
    list(engine.slate([batch_of(preset("tiny"), 4)], STEPS))
    assert told[0] == ("engine 1 of 2, prefill", 0.0)
    assert told[-1] == ("engine 2 of 2, decode", 1.0)
    assert ("engine 2 of 2, decode: built", 1.0) in told


def test_slate_starts_a_batch_before_the_one_before_is_fetched(build):
    engine, config, started = build(), preset("tiny"), []

    def batches():
        for seed in range(4):
            started.append(seed)
            yield batch_of(config, 3, seed)

    results = engine.slate(batches(), STEPS)
    next(results)
    assert started == [0, 1]
    results.close()
    check(tiny(), batch_of(config, 3, 9), greedy(engine, batch_of(config, 3, 9)))


def test_memory_is_used_again_and_does_not_grow(build, gpu):
    engine, config = build(), preset("tiny")
    list(engine.slate([batch_of(config, 4, seed) for seed in range(3)], STEPS))
    before = gpu.cudaMemGetInfo()[1]
    list(engine.slate([batch_of(config, 4, seed) for seed in range(6)], STEPS))
    assert gpu.cudaMemGetInfo()[1] == before


def test_idle_memory_makes_room_for_another_shape(build, gpu):
    engine, config = build(), preset("tiny")
    list(engine.slate([batch_of(config, 4, seed) for seed in range(3)], STEPS))
    gpu.memory = gpu._in_use() + 1000
    batch = batch_of(config, 4, width=16)
    check(tiny(), batch, greedy(engine, batch))


def test_out_of_memory_can_be_retried(build, gpu):
    engine = build()
    gpu.memory = gpu._in_use() + 1000
    with pytest.raises(RetryError, match="batch-size") as caught:
        greedy(engine, batch_of(preset("tiny"), 4))
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("way", ["slate", "steps"])
def test_out_of_memory_halves_the_rows_of_the_engines(build, gpu, way):
    engine, config = build(batch_size=256), preset("tiny")

    def run(batch):
        return next(engine.slate([batch], STEPS)) if way == "slate" else greedy(engine, batch)

    small = gpu._in_use()
    run(batch_of(config, 60))
    large = gpu._in_use() - small
    engine._pool._idle.clear()
    gc.collect()
    gpu.memory = small + large * 3 // 4
    batch = batch_of(config, 120)
    with pytest.raises(RetryError):
        run(batch)
    assert engine.rows == 128
    check(tiny(), batch, run(batch))


def test_a_row_does_not_depend_on_its_batch_or_padding(build):
    engine, config = build(), preset("tiny")
    wide = batch_of(config, 6, width=16)
    one = Batch(
        dense_BF=wide.dense_BF[3:4],
        tokens_BS=wide.tokens_BS[3:4, : max(1, wide.lengths_B[3])],
        lengths_B=wide.lengths_B[3:4],
        seen_BX=wide.seen_BX[3:4],
    )
    np.testing.assert_array_equal(greedy(engine, one).tokens_BK[0], greedy(engine, wide).tokens_BK[3])


def test_nothing_left_gives_token_0_and_no_scores(build):
    model = tiny(ModelConfig(vocabulary=8, width=64, ffn=32, layers=2, positions=32))
    batch = batch_of(model.config, 2, width=2)
    seen = np.tile(np.array([2, 3, 4, 5, 6], np.int32), (2, 1))
    batch = Batch(dense_BF=batch.dense_BF, tokens_BS=batch.tokens_BS, lengths_B=batch.lengths_B, seen_BX=seen)
    ranked = greedy(build(model), batch)
    assert ranked.tokens_BK.tolist() == [[7, 0, 0], [7, 0, 0]]
    assert np.isneginf(ranked.log_prob_BK[:, 1:]).all()
    assert not ranked.heads_BKH[:, 1:].any()


def test_choices_are_sorted_and_exclude_what_was_seen_or_read(build):
    engine, model = build(), tiny()
    batch = batch_of(model.config, 3)
    state = engine.prefill(batch, steps=STEPS, choices=5)
    items: list[list[int]] = [[], [], []]
    for _ in range(2):
        tokens, log_probs = engine.choose(state)
        for row in range(3):
            reference = forward(model, batch, row, items[row])[0]
            left = allowed(reference, batch, row, items[row])
            assert tokens[row].tolist() == np.argsort(-left, kind="stable")[:5].tolist()
            np.testing.assert_allclose(log_probs[row], reference[tokens[row]], atol=1e-5)
            items[row].append(int(tokens[row, 1]))  # read the second best
        engine.decode(state, tokens[:, 1].copy())
    ranked = engine.collect(state)
    assert ranked.tokens_BK.tolist() == items
    for row in range(3):
        assert ranked.log_prob_BK[row, 1] == pytest.approx(
            forward(model, batch, row, items[row][:1])[0][items[row][1]], abs=1e-5
        )


def test_one_choice_is_what_decode_reads(build):
    engine, config = build(), preset("tiny")
    state = engine.prefill(batch_of(config, 3), steps=STEPS)
    tokens, log_probs = engine.choose(state)
    engine.decode(state)
    ranked = engine.collect(state)
    np.testing.assert_array_equal(tokens, ranked.tokens_BK)
    np.testing.assert_array_equal(log_probs, ranked.log_prob_BK)


def test_given_items_are_looked_up_and_scored_after_the_history(build):
    engine, model = build(), tiny()
    batch = batch_of(model.config, 3)
    state = engine.prefill(batch, steps=STEPS)
    engine.decode(state)  # what was read since must not matter
    given = np.array([[5, 9, 0], [2, 5, 7], [900, 3, 4]], np.int32)
    log_probs, heads = engine.log_probs(state, given), engine.score(state, given)
    for row in range(3):
        reference = forward(model, batch, row, [])[0]
        looked_up = np.where(given[row] > 0, reference[given[row]], -np.inf)
        np.testing.assert_allclose(log_probs[row], looked_up, atol=1e-5)
        for column, token in enumerate(given[row]):
            expected = forward(model, batch, row, [token])[1] if token else np.zeros(4)
            np.testing.assert_allclose(heads[row, column], expected, atol=1e-5)


def test_select_copies_rows_and_leaves_the_old_state(build):
    engine, model = build(), tiny()
    batch = batch_of(model.config, 3)
    state = engine.prefill(batch, steps=STEPS, choices=2)
    engine.decode(state)
    before = engine.collect(state)
    chosen = engine.select(state, np.array([2, 0, 2, 1]))
    del state
    gc.collect()
    greedy(engine, batch_of(model.config, 3, 5))  # may take the old state's memory
    engine.decode(chosen)
    ranked = engine.collect(chosen)
    rows = [2, 0, 2, 1]
    np.testing.assert_array_equal(ranked.tokens_BK[:, 0], before.tokens_BK[rows, 0])
    taken = Batch(
        dense_BF=batch.dense_BF[rows],
        tokens_BS=batch.tokens_BS[rows],
        lengths_B=batch.lengths_B[rows],
        seen_BX=batch.seen_BX[rows],
    )
    check(model, taken, ranked)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(top_k=3),
        Decoding(mode="candidates", num_candidates=9),
        Decoding(top_k=3, beam_width=3),
    ],
    ids=["slate", "candidates", "beam"],
)
def test_generate_can_drive_it(build, decoding):
    model = tiny()
    batches = [batch_of(model.config, rows, rows) for rows in (3, 5)]
    engine = build()
    assert engine.has_slate_loop
    for batch, ranked in zip(batches, recommend_all(engine, batches, decoding), strict=True):
        for row in range(len(batch)):
            tokens = ranked.tokens_BK[row].tolist()
            assert len(set(tokens)) == len(tokens)
            assert not set(tokens) & {0, 1, *batch.seen_BX[row].tolist()}
            alone = decoding.mode == "candidates"
            for k, token in enumerate(tokens):
                before = [] if alone else tokens[:k]
                assert ranked.log_prob_BK[row, k] == pytest.approx(
                    forward(model, batch, row, before)[0][token], abs=1e-5
                )
                expected = forward(model, batch, row, [*before, token])[1]
                np.testing.assert_allclose(ranked.heads_BKH[row, k], expected, atol=1e-5)


def test_engines_are_built_once_and_loaded_from_the_cache_afterwards(build):
    batch = batch_of(preset("tiny"), 2)
    greedy(build(), batch)
    assert build.library.api.builds == ["prefill", "decode"]
    greedy(build(), batch)
    assert build.library.api.builds == ["prefill", "decode"]
    greedy(build(demo_model(preset("tiny"))), batch)  # other weights
    assert build.library.api.builds == ["prefill", "decode"] * 2


def test_a_history_beyond_the_position_table_is_refused(build):
    model = tiny(ModelConfig(vocabulary=50, width=64, ffn=32, layers=2, positions=10))
    with pytest.raises(ConfigError, match="max-events"):
        build(model).prefill(batch_of(model.config, 2, width=8), steps=2)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # on the fake device, in the cast
def test_a_feature_beyond_fp16_is_an_error_and_not_a_ranking(build):
    batch = batch_of(preset("tiny"), 2)
    batch.dense_BF[1] = 3e38  # beyond 65504 suffices on a real device; the fake may skip the cast
    ranked = greedy(build(precision="fp16"), batch)
    with pytest.raises(NotNumbersError, match="the largest input is feature 0") as caught:
        numbers.check(batch, ranked, tokens=tiny().tokens)
    assert caught.value.rows_R.tolist() == [1]


def test_more_choices_than_items(build):
    model = tiny(ModelConfig(vocabulary=8, width=64, ffn=32, layers=2, positions=32))
    engine = build(model)
    tokens, log_probs = engine.choose(engine.prefill(batch_of(model.config, 2, width=2), steps=1, choices=8))
    assert tokens.shape == log_probs.shape == (2, 8)
    assert (tokens[:, 6:] == 0).all()
    assert np.isneginf(log_probs[:, 6:]).all()


def test_no_gpu_is_an_engine_error_with_the_install_line(build, gpu):
    gpu.devices = 0
    with pytest.raises(EngineError, match=r"pip install 'genrec-batch\[gpu\]'") as caught:
        build()
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("device", ["cpu", "cuda:3", "gpu"])
def test_a_device_that_is_not_there_is_named(build, device):
    with pytest.raises(EngineError, match=device):
        build(device=device)


@pytest.mark.parametrize(("precision", "word"), [("int8", "fp16"), ("bf16", "TensorRT 9")])
def test_a_precision_that_is_not_there_is_refused(build, precision, word):
    with pytest.raises(EngineError, match=word):
        build(precision=precision)


def test_torch_and_polars_are_never_imported():
    code = (
        "import sys, genrec_batch.engines.tensorrt.engine as t; "
        "assert not {'torch', 'polars', 'triton', 'tensorrt', 'cuda'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def real(tmp_path):
    """Engines of a real library on a real GPU."""
    for module in ("tensorrt", "cuda.bindings.runtime"):
        pytest.importorskip(module, reason="needs TensorRT and cuda-python")
    try:
        driver.Device("cuda")
    except EngineError as error:
        pytest.skip(str(error))

    def make(model, **options):
        options = {"precision": "fp16", "batch_size": 64, "lengths": (16, 50), **options}
        return TensorRtEngine(model, cache=EngineCache(tmp_path / "cache"), **options)

    return make


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu_everything_agrees_with_the_network(real, precision):
    model = tiny().with_catalog(900)
    engine, tolerance = real(model, precision=precision), 1e-3 if precision == "fp32" else 3e-2
    batch = batch_of(model.config, 5, width=16, side=True)
    check(model, batch, greedy(engine, batch), tolerance)
    check(model, batch, next(engine.slate([batch], STEPS)), tolerance)
    state = engine.prefill(batch, steps=STEPS, choices=4)
    tokens, log_probs = engine.choose(state)
    engine.decode(state, tokens[:, 1].copy())
    state = engine.select(state, np.array([4, 0, 1, 2, 3, 3]))
    engine.decode(state, engine.choose(state)[0][:, 0].copy())
    ranked = engine.collect(state)
    given = engine.log_probs(state, tokens[[4, 0, 1, 2, 3, 3]])
    heads = engine.score(state, tokens[[4, 0, 1, 2, 3, 3]])
    for row, source in enumerate((4, 0, 1, 2, 3, 3)):
        reference = forward(model, batch, source, [])[0]
        assert ranked.tokens_BK[row, 0] == tokens[source, 1]
        np.testing.assert_allclose(log_probs[source], reference[tokens[source]], atol=tolerance)
        np.testing.assert_allclose(given[row], reference[tokens[source]], atol=tolerance)
        left = allowed(reference, batch, source, [], model.tokens)
        assert (left[tokens[source]] >= np.sort(left)[-4] - tolerance).all()
        for column, token in enumerate(tokens[source]):
            expected = forward(model, batch, source, [token])[1]
            np.testing.assert_allclose(heads[row, column], expected, atol=tolerance)


@pytest.mark.gpu
def test_on_a_gpu_replays_give_the_same_items(real):
    model = tiny()
    engine = real(model)
    batches = [batch_of(model.config, 64, seed, width=16) for seed in range(3)]
    first = [ranked.tokens_BK for ranked in engine.slate(batches, STEPS)]
    for _ in range(10):
        again = [ranked.tokens_BK for ranked in engine.slate(batches, STEPS)]
        np.testing.assert_array_equal(again, first)


@pytest.mark.gpu
def test_on_a_gpu_the_plugin_agrees_with_the_network(real):
    if isinstance(toolchain(), str):
        pytest.skip(toolchain())
    model = tiny(PLUGIN_SIZES).with_catalog(80)
    engine = real(model)
    assert engine.plugin, engine.variant
    batch = batch_of(model.config, 5, width=16)
    check(model, batch, greedy(engine, batch), tolerance=3e-2)
    engine.expect(longest=16, mean=9.0, steps=STEPS)
    batches = [batch_of(model.config, rows, rows, width=16, side=True) for rows in (5, 64, 1)]
    for batch, ranked in zip(batches, engine.slate(batches, STEPS), strict=True):
        check(model, batch, ranked, tolerance=3e-2)


@pytest.mark.gpu
def test_engines_of_one_process_share_the_registered_plugin(tmp_path):
    version, tools = pytest.importorskip("tensorrt").__version__, toolchain()
    if isinstance(tools, str):
        pytest.skip(tools)
    for folder in ("first", "first", "another"):  # as the arms of an experiment do, and engines of another cache
        cache = EngineCache(tmp_path / folder)
        load(cache, tools, library=f"libnvinfer.so.{version.split('.')[0]}", version=version, architecture="sm_90")
