"""The ONNX Runtime engine: equal to a slow NumPy twin and to the torch engine, and it never loads torch.

Also tests `sessions`.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch
from genrec_batch.core.errors import ConfigError, EngineError, ModelError, RetryError
from genrec_batch.engines import decode, driver
from genrec_batch.engines.onnx import export, exported
from genrec_batch.engines.onnx.engine import OnnxRuntimeEngine
from genrec_batch.model import weights
from tests.fakes.cuda import FakeRuntime
from tests.twins.network import NumpyNetwork

TINY = weights.ModelConfig(vocabulary=60, width=32, ffn=48, layers=3, positions=40, heads=4)


@pytest.fixture(scope="module")
def tiny():
    return weights.demo_model(TINY)


@pytest.fixture(scope="module")
def engine(tiny):
    return OnnxRuntimeEngine(tiny, device="cpu", precision="fp32")


def make_batch(config, lengths, *, seed=0, width=None, seen=5, vectors=False, top=None):
    random = np.random.default_rng(seed)
    lengths_B = np.array(lengths, np.int32)
    rows, width = len(lengths), width or max(1, int(lengths_B.max()))
    tokens_BS = random.integers(1, top or config.vocabulary, (rows, width)).astype(np.int32)
    tokens_BS[np.arange(width) >= lengths_B[:, None]] = 0
    given = {}
    if vectors:
        given = {
            "profile_BP": random.standard_normal((rows, config.profile)).astype(np.float32),
            "has_profile_B": random.random(rows) < 0.5,
            "video_BV": random.standard_normal((rows, config.video)).astype(np.float32),
            "has_video_B": random.random(rows) < 0.5,
        }
        given["profile_BP"][~given["has_profile_B"]] = 0
        given["video_BV"][~given["has_video_B"]] = 0
    return Batch(
        dense_BF=random.standard_normal((rows, config.features)).astype(np.float32),
        tokens_BS=tokens_BS,
        lengths_B=lengths_B,
        seen_BX=random.integers(0, top or config.vocabulary, (rows, seen)).astype(np.int32),
        **given,
    )


def slate(engine, batch, steps, choices=1):
    state = engine.prefill(batch, steps=steps, choices=choices)
    for _ in range(steps):
        engine.decode(state)
    return engine.collect(state)


def assert_same(got, expected, tolerance=1e-4):
    np.testing.assert_array_equal(got.tokens_BK, expected.tokens_BK)
    np.testing.assert_allclose(got.log_prob_BK, expected.log_prob_BK, atol=tolerance)
    np.testing.assert_allclose(got.heads_BKH, expected.heads_BKH, atol=tolerance)


@pytest.mark.parametrize("vectors", [False, True])
def test_a_slate_equals_full_forwards_in_numpy(tiny, engine, vectors):
    batch = make_batch(TINY, [0, 1, 7, 4, 12], vectors=vectors)
    ranked = slate(engine, batch, 6)
    twin = NumpyNetwork(tiny)
    for i in range(len(batch)):
        tokens_K, log_prob_K, heads_KH = twin.slate(batch, i, 6, TINY.vocabulary)
        np.testing.assert_array_equal(ranked.tokens_BK[i], tokens_K)
        np.testing.assert_allclose(ranked.log_prob_BK[i], log_prob_K, atol=1e-5)
        np.testing.assert_allclose(ranked.heads_BKH[i], heads_KH, atol=1e-5)


def test_nothing_seen_read_or_special_is_chosen(engine):
    batch = make_batch(TINY, [5] * 8, seen=30)
    ranked = slate(engine, batch, 20)
    for tokens_K, seen_X in zip(ranked.tokens_BK, batch.seen_BX, strict=True):
        chosen = tokens_K[tokens_K > 0].tolist()
        assert len(set(chosen)) == len(chosen)
        assert not set(chosen) & (set(seen_X.tolist()) | {0, 1})


def test_where_nothing_is_left_the_row_ends_in_zeros(engine):
    batch = make_batch(TINY, [3, 3], seen=TINY.vocabulary)
    seen_BX = np.tile(np.arange(TINY.vocabulary, dtype=np.int32), (2, 1))
    seen_BX[:, [10, 20]] = 0  # two items are left
    batch = Batch(dense_BF=batch.dense_BF, tokens_BS=batch.tokens_BS, lengths_B=batch.lengths_B, seen_BX=seen_BX)
    ranked = slate(engine, batch, 4)
    assert [sorted(row) for row in ranked.tokens_BK[:, :2].tolist()] == [[10, 20], [10, 20]]
    assert not ranked.tokens_BK[:, 2:].any()
    assert np.isneginf(ranked.log_prob_BK[:, 2:]).all()
    assert not ranked.heads_BKH[:, 2:].any()
    assert (ranked.heads_BKH[:, :2] > 0).all()


def test_tokens_beyond_the_catalog_are_never_chosen(tiny):
    small = OnnxRuntimeEngine(tiny.with_catalog(9), device="cpu", precision="fp32")
    ranked = slate(small, make_batch(TINY, [4, 2], seen=1, top=11), 10)
    assert ranked.tokens_BK.max() <= 10
    assert not ranked.tokens_BK[:, 9:].any()
    batch = make_batch(TINY, [4, 2], seen=1, top=11)
    tokens_K, log_prob_K, _ = NumpyNetwork(tiny).slate(batch, 0, 5, 11)
    np.testing.assert_array_equal(ranked.tokens_BK[0, :5], tokens_K)
    np.testing.assert_allclose(ranked.log_prob_BK[0, :5], log_prob_K, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours_or_its_padding(engine):
    batch = make_batch(TINY, [9, 0, 3, 14], vectors=True)
    together = slate(engine, batch, 5)
    for i in range(len(batch)):
        length = max(1, int(batch.lengths_B[i]))
        alone = Batch(
            dense_BF=batch.dense_BF[i : i + 1],
            tokens_BS=batch.tokens_BS[i : i + 1, :length],
            lengths_B=batch.lengths_B[i : i + 1],
            seen_BX=np.concatenate([batch.seen_BX[i : i + 1], np.zeros((1, 3), np.int32)], axis=1),
            profile_BP=batch.profile_BP[i : i + 1],
            has_profile_B=batch.has_profile_B[i : i + 1],
            video_BV=batch.video_BV[i : i + 1],
            has_video_B=batch.has_video_B[i : i + 1],
        )
        ranked = slate(engine, alone, 5)
        np.testing.assert_array_equal(ranked.tokens_BK[0], together.tokens_BK[i])
        np.testing.assert_allclose(ranked.heads_BKH[0], together.heads_BKH[i], atol=1e-5)
        np.testing.assert_allclose(ranked.log_prob_BK[0], together.log_prob_BK[i], atol=1e-5)


def test_a_batch_of_many_parts_equals_its_parts(engine):
    batch = make_batch(TINY, list(range(13)) * 6)
    together = slate(engine, batch, 4)
    for rows in (slice(0, 40), slice(40, 78)):
        part = Batch(**{name: None if array is None else array[rows] for name, array in vars(batch).items()})
        ranked = slate(engine, part, 4)
        np.testing.assert_array_equal(ranked.tokens_BK, together.tokens_BK[rows])
        np.testing.assert_allclose(ranked.heads_BKH, together.heads_BKH[rows], atol=1e-5)


def test_a_batch_without_history_or_seen_items(tiny, engine):
    batch = make_batch(TINY, [0, 0], seen=0)
    assert batch.tokens_BS.shape == (2, 1)
    ranked = slate(engine, batch, 3)
    tokens_K, _, heads_KH = NumpyNetwork(tiny).slate(batch, 1, 3, TINY.vocabulary)
    np.testing.assert_array_equal(ranked.tokens_BK[1], tokens_K)
    np.testing.assert_allclose(ranked.heads_BKH[1], heads_KH, atol=1e-5)


def test_two_runs_give_the_same_bytes(engine):
    batch = make_batch(TINY, [6, 11, 2])
    first, second = slate(engine, batch, 5), slate(engine, batch, 5)
    assert first.log_prob_BK.tobytes() == second.log_prob_BK.tobytes()
    assert first.heads_BKH.tobytes() == second.heads_BKH.tobytes()


def test_the_best_choices_come_in_order_with_their_log_probabilities(tiny, engine):
    batch = make_batch(TINY, [6, 1])
    tokens_BK, log_prob_BK = engine.choose(engine.prefill(batch, steps=1, choices=7))
    twin = NumpyNetwork(tiny)
    for i in range(2):
        log_probs = twin.log_probs(twin.hidden(**twin.row(batch, i)))
        log_probs_left = log_probs.copy()
        log_probs_left[[0, 1, *batch.seen_BX[i]]] = -np.inf
        np.testing.assert_array_equal(tokens_BK[i], np.argsort(-log_probs_left, kind="stable")[:7])
        np.testing.assert_allclose(log_prob_BK[i], log_probs[tokens_BK[i]], atol=1e-5)


def test_given_items_are_read_in_place_of_the_best(tiny, engine):
    batch = make_batch(TINY, [6, 3])
    state = engine.prefill(batch, steps=3, choices=2)
    items_KB = np.array([[30, 40], [31, 0], [32, 42]], np.int32)
    for items_B in items_KB:
        engine.decode(state, items_B)
    ranked = engine.collect(state)
    np.testing.assert_array_equal(ranked.tokens_BK, items_KB.T)
    twin = NumpyNetwork(tiny)
    row = twin.row(batch, 0)
    history = row.pop("tokens")
    for step in range(3):
        before = history + items_KB[:step, 0].tolist()
        log_prob = twin.log_probs(twin.hidden(tokens=before, **row))[items_KB[step, 0]]
        heads_H = twin.heads(twin.hidden(tokens=[*before, int(items_KB[step, 0])], **row))
        np.testing.assert_allclose(ranked.log_prob_BK[0, step], log_prob, atol=1e-5)
        np.testing.assert_allclose(ranked.heads_BKH[0, step], heads_H, atol=1e-5)
    assert np.isneginf(ranked.log_prob_BK[1, 1])
    assert not ranked.heads_BKH[1, 1].any()
    tokens_BK, _ = engine.choose(state)
    assert not set(tokens_BK[0].tolist()) & {30, 31, 32}


def test_candidates_are_scored_alone_and_in_parallel(tiny, engine):
    batch = make_batch(TINY, [6, 0, 11])
    tokens_BC = np.array([[5, 6, 7, 8], [9, 10, 0, 0], [11, 12, 13, 0]], np.int32)
    state = engine.prefill(batch, steps=1)
    log_prob_BC, heads_BCH = engine.log_probs(state, tokens_BC), engine.score(state, tokens_BC)
    engine.decode(state)  # reading an item changes neither
    np.testing.assert_array_equal(engine.log_probs(state, tokens_BC), log_prob_BC)
    np.testing.assert_array_equal(engine.score(state, tokens_BC), heads_BCH)
    twin = NumpyNetwork(tiny)
    for i, tokens_C in enumerate(tokens_BC.tolist()):
        row = twin.row(batch, i)
        log_probs, history = twin.log_probs(twin.hidden(**row)), row.pop("tokens")
        for c, token in enumerate(tokens_C):
            if token == 0:
                assert np.isneginf(log_prob_BC[i, c])
                assert not heads_BCH[i, c].any()
                continue
            np.testing.assert_allclose(log_prob_BC[i, c], log_probs[token], atol=1e-5)
            expected_H = twin.heads(twin.hidden(tokens=[*history, token], **row))
            np.testing.assert_allclose(heads_BCH[i, c], expected_H, atol=1e-5)


def test_selected_rows_go_on_as_those_they_copy(engine):
    batch = make_batch(TINY, [6, 3, 9])
    state = engine.prefill(batch, steps=4, choices=2)
    engine.decode(state)
    engine.decode(state)
    copy = engine.select(state, np.array([2, 0, 0, 1, 2]))
    swapped = engine.select(copy, np.array([4, 2, 1, 3, 0]))  # the same prefixes in the same places
    for each in (state, copy, swapped):
        engine.decode(each)
        engine.decode(each)
    expected = engine.collect(state)
    for each in (copy, swapped):
        got = engine.collect(each)
        np.testing.assert_array_equal(got.tokens_BK, expected.tokens_BK[[2, 0, 0, 1, 2]])
        np.testing.assert_allclose(got.log_prob_BK, expected.log_prob_BK[[2, 0, 0, 1, 2]], atol=1e-5)
        np.testing.assert_allclose(got.heads_BKH, expected.heads_BKH[[2, 0, 0, 1, 2]], atol=1e-5)


def test_a_copy_and_its_original_do_not_share_what_they_read(engine):
    batch = make_batch(TINY, [6, 3])
    plain = slate(engine, batch, 3)
    state = engine.prefill(batch, steps=3)
    engine.decode(state)
    copy = engine.select(state, np.array([0, 1]))
    engine.decode(copy, np.array([50, 51], np.int32))
    engine.decode(state)
    engine.decode(copy, np.array([52, 53], np.int32))
    engine.decode(state)
    assert_same(engine.collect(state), plain)


def test_a_suffix_kept_by_a_graph_equals_one_written_in_place(engine):
    """What CUDA does: nothing is written in place there."""
    batch = make_batch(TINY, [6, 3, 0])
    state = engine.prefill(batch, steps=4)
    engine._make_suffix(state)
    state.suffix_arrays.clear()
    engine.decode(state)
    state = engine.select(state, np.array([0, 1, 2]))
    for _ in range(3):
        engine.decode(state)
    assert_same(engine.collect(state), slate(engine, batch, 4), tolerance=1e-6)


@pytest.mark.parametrize(
    "decoding",
    [
        decode.Decoding(mode="slate", top_k=5),
        decode.Decoding(mode="slate", top_k=4, beam_width=3),
        decode.Decoding(mode="candidates", num_candidates=12),
    ],
)
def test_every_way_of_decoding_equals_the_torch_engine(tiny, engine, decoding):
    torch_engine = pytest.importorskip("genrec_batch.engines.torch.engine")
    reference = torch_engine.TorchEngine(tiny, device="cpu", precision="fp32")
    batch = make_batch(TINY, [6, 0, 13, 2], vectors=True)
    assert_same(decode.recommend(engine, batch, decoding), decode.recommend(reference, batch, decoding))


def test_given_candidates_equal_the_torch_engine(tiny, engine):
    torch_engine = pytest.importorskip("genrec_batch.engines.torch.engine")
    reference = torch_engine.TorchEngine(tiny, device="cpu", precision="fp32")
    batch = make_batch(TINY, [6, 0, 13])
    candidates_BC = np.random.default_rng(3).integers(2, TINY.vocabulary, (3, 6)).astype(np.int32)
    candidates_BC[1, 3:] = 0
    batch = Batch(**{**vars(batch), "candidates_BC": candidates_BC})
    decoding = decode.Decoding()
    assert_same(decode.recommend(engine, batch, decoding), decode.recommend(reference, batch, decoding))


def test_the_reference_size_equals_the_torch_engine():
    torch_engine = pytest.importorskip("genrec_batch.engines.torch.engine")
    full = weights.demo_model(weights.PRESETS["reference"])
    batch = make_batch(full.config, [50, 5, 0, 23, 37, 50, 12, 1], seen=60)
    reference = slate(torch_engine.TorchEngine(full, device="cpu", precision="fp32"), batch, 10)
    assert_same(slate(OnnxRuntimeEngine(full, device="cpu", precision="fp32"), batch, 10), reference)


def test_it_runs_without_torch_and_without_polars():
    program = """
        import sys
        import numpy as np
        from genrec_batch.core.arrays import Batch
        from genrec_batch.model import weights
        from genrec_batch.engines.onnx.engine import OnnxRuntimeEngine

        tiny = weights.demo_model(weights.PRESETS["tiny"])
        engine = OnnxRuntimeEngine(tiny, device="cpu", precision="fp32")
        one = np.ones((1, 1), np.int32)
        batch = Batch(dense_BF=np.ones((1, 1024), np.float32), tokens_BS=one, lengths_B=one[0], seen_BX=one)
        state = engine.prefill(batch, steps=1)
        engine.decode(state)
        assert engine.collect(state).tokens_BK[0, 0] > 1
        print([name for name in ("torch", "polars") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_history_that_does_not_fit_the_position_table(engine):
    with pytest.raises(ConfigError, match="--max-events 36 with --top-k 5 needs 42 positions, the model has 40"):
        engine.prefill(make_batch(TINY, [36]), steps=5)


def test_cuda_without_its_provider_says_what_to_install(tiny, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"pip install 'genrec-batch\[gpu\]'"):
        OnnxRuntimeEngine(tiny, device="cuda", precision="fp16")


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
def test_a_missing_package_says_what_to_install(tiny, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=rf"needs {package} .*pip install 'genrec-batch\[cpu\]'"):
        OnnxRuntimeEngine(tiny, device="cpu", precision="fp32")


def test_running_out_of_memory_may_be_tried_again(engine, monkeypatch):
    def full(*_):
        raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 8")

    session = type("Session", (), {"io_binding": engine._sessions.load("prefill").io_binding})
    session.get_outputs = engine._sessions.load("prefill").get_outputs
    session.run_with_iobinding = full
    monkeypatch.setitem(engine._sessions._loaded, "prefill", session())
    with pytest.raises(RetryError, match="memory ran out; use a smaller --batch-size"):
        engine.prefill(make_batch(TINY, [3]), steps=1)


def test_a_fitting_export_is_what_runs(tiny, tmp_path, engine, monkeypatch):
    on_disk = weights.Model(**{**vars(tiny), "directory": tmp_path})
    export.export(on_disk, tmp_path, precision="fp32")
    monkeypatch.setitem(sys.modules, "onnx", None)  # the export does without it
    batch = make_batch(TINY, [6, 3])
    assert_same(slate(OnnxRuntimeEngine(on_disk, device="cpu", precision="fp32"), batch, 3), slate(engine, batch, 3), 0)


def test_an_export_of_other_weights_is_not_used(tiny, tmp_path, engine):
    other = weights.demo_model(TINY, seed=5)
    export.export(other, tmp_path, precision="fp32")
    on_disk = weights.Model(**{**vars(tiny), "directory": tmp_path})
    batch = make_batch(TINY, [6, 3])
    assert_same(slate(OnnxRuntimeEngine(on_disk, device="cpu", precision="fp32"), batch, 3), slate(engine, batch, 3), 0)


def test_a_damaged_export_is_an_error(tiny, tmp_path):
    on_disk = weights.Model(**{**vars(tiny), "directory": tmp_path})
    export.export(on_disk, tmp_path, precision="fp32")
    path = tmp_path / exported.FOLDER / "decode.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"decode\.onnx: missing or not the file that was exported"):
        OnnxRuntimeEngine(on_disk, device="cpu", precision="fp32")


def test_it_takes_the_cores_this_process_may_use(tiny, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 4, 5}, raising=False)
    engine = OnnxRuntimeEngine(tiny, device="cpu", precision="fp32")
    assert engine._sessions.load("prefill").get_session_options().intra_op_num_threads == 3


def test_the_free_memory_is_that_of_its_gpu(tiny, monkeypatch):
    monkeypatch.setattr(driver, "load_runtime", lambda: FakeRuntime(memory=8 << 30))
    engine = OnnxRuntimeEngine(tiny, device="cpu", precision="fp32")
    assert engine.free_bytes() is None
    engine.device = "cuda:0"
    assert engine.free_bytes() == 8 << 30
