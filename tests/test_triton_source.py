"""The plugin's Triton kernels, interpreted on the CPU, against the NumPy twins that stand in for them elsewhere."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="Triton's interpreter works on torch tensors")
pytest.importorskip("triton", reason="the kernels' source is Triton")

from fake_tensorrt import GenrecKernel  # noqa: E402 (after the skips)

from genrec_batch.engines import kernels  # noqa: E402
from genrec_batch.engines.kernels import triton_source as source  # noqa: E402

pytestmark = pytest.mark.skipif(os.environ["TRITON_INTERPRET"] != "1", reason="needs TRITON_INTERPRET=1")

B, S, D, H, V, LD = 3, 9, 512, 16, 100, 112
LENGTHS = np.array([8, 3, 0], np.int32)
SIZES = {"H": H, "HD": D // H, "BLOCK": 16}


def halves(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def run(kernel, grid, *arguments, out, **constants):
    """Launch one kernel on copies of NumPy arrays; return `out`'s arrays as it left them."""
    tensors = [torch.from_numpy(np.array(a)) if isinstance(a, np.ndarray) else a for a in arguments]
    kernel[grid](*tensors, **constants)
    return [tensors[i].numpy() for i in out]


def twin(kind, *inputs, **options):
    return GenrecKernel._run(object.__new__(GenrecKernel), *inputs, kind=kind, **options)


def close(found, expected, tolerance=4e-3):
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=tolerance, rtol=tolerance)


def test_embed_history():
    tokens = np.random.default_rng(1).integers(0, V, (B, S - 1)).astype(np.int32)
    prefix, table, places = halves(B, D), halves(V, D, seed=1), halves(S, D, seed=2)
    arguments = (tokens, prefix, table, places)
    (found,) = run(source.embed_history, (S, B), *arguments, halves(B, S, D), S, out=[4], D=D)
    close(found, twin("embed_history", *arguments)[0])


def test_embed_item():
    arguments = (
        np.array([5, 0, 7], np.int32), LENGTHS, np.array([2], np.int32), halves(V, D), halves(20, D, seed=1)
    )  # fmt: skip
    (found,) = run(source.embed_item, (B,), *arguments, halves(B, D), out=[5], D=D)
    close(found, twin("embed_item", *arguments)[0])


def test_add_norm_with_rows_that_do_not_fill_a_block():
    arguments = (halves(5, D), halves(5, D, seed=1), halves(D, seed=2), halves(D, seed=3))
    (found,) = run(source.add_norm, (2,), *arguments, halves(5, D), 5, out=[4], D=D, R=4)
    close(found, twin("add_norm", *arguments)[0])


@pytest.mark.parametrize("kind", ["causal_attention", "last_attention"])
def test_attention_over_a_history(kind):
    qkv = halves(B, S, 3 * D)
    qkv[..., :D] *= 0.2
    shape = (B, S, D) if kind == "causal_attention" else (B, D)
    (found,) = run(getattr(source, kind), (B * H,), qkv, LENGTHS, halves(*shape, seed=1), S, out=[2], **SIZES)
    close(found, twin(kind, qkv, LENGTHS)[0])


@pytest.mark.parametrize("step", [0, 2])
def test_decode_attention_reads_only_earlier_steps_and_real_positions(step):
    steps = 3
    fresh, prefix, recent = halves(B, 3 * D), halves(B, S, 3 * D, seed=1), halves(steps, B, 3 * D, seed=2)
    fresh[:, :D] *= 0.2
    recent[step:] = np.nan  # a step not yet written may hold anything
    arguments = (fresh, prefix, recent, LENGTHS, np.array([step], np.int32))
    (found,) = run(
        source.decode_attention, (B * H,), *arguments, halves(B, D, seed=3), S, B, out=[5], STEPS=16, **SIZES
    )
    close(found, twin("decode_attention", *arguments)[0])


@pytest.mark.parametrize("step", [-1, 1])
def test_rank_items(step):
    logits = halves(B, LD)
    logits[1, :V] = 1.0  # all equal: the lowest that is left
    seen = np.zeros((B, 70), np.int32)
    seen[:, 0] = 1
    seen[0, 69] = int(np.argmax(logits[0, :90]))
    seen[1, 3], seen[2, :70] = 2, np.arange(70)
    read = np.array([[3, 3, 80], [4, 4, 81], [0, 5, 82]], np.int32)
    arguments = (logits, seen, read, np.array([step], np.int32))
    outputs = (np.zeros(B, np.int32), np.zeros(B, np.float32), np.zeros((B, 4), np.float32))
    sizes = (B, seen.shape[1], V, 90, LD)
    found = run(source.rank_items, (B,), *arguments, *outputs, *sizes, out=[4, 5, 6], READ=16, BLOCK=128)
    expected = twin("rank_items", *arguments, items=V, limit=90)
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[0][1] == (5 if step == 1 else 3)
    close(found[1], expected[1], 1e-5)
    close(found[2], expected[2], 1e-5)


def test_nothing_left_is_token_0():
    seen = np.tile(np.arange(V, dtype=np.int32), (B, 1))
    arguments = (halves(B, LD), seen, np.zeros((1, B), np.int32), np.array([-1], np.int32))
    outputs = (np.full(B, 9, np.int32), np.zeros(B, np.float32), np.zeros((B, 4), np.float32))
    found = run(source.rank_items, (B,), *arguments, *outputs, B, V, V, V, LD, out=[4, 5], READ=16, BLOCK=128)
    assert found[0].tolist() == [0, 0, 0]
    assert np.isneginf(found[1]).all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, under the interpreter
def test_what_is_not_a_number_is_not_passed_off_as_nothing_left():
    arguments = (np.full((B, LD), np.nan, np.float16), np.zeros((B, 1), np.int32), np.zeros((1, B), np.int32))
    outputs = (np.zeros(B, np.int32), np.zeros(B, np.float32), np.zeros((B, 4), np.float32))
    sizes = (B, 1, V, V, LD)
    found = run(
        source.rank_items, (B,), *arguments, np.array([-1], np.int32), *outputs, *sizes, out=[5], READ=16, BLOCK=128
    )
    assert np.isnan(found[0]).all()


def test_every_architecture_ships_every_kernel():
    names = {cubin.name for cubin in kernels.read("sm_90")}
    for architecture in kernels.architectures():
        cubins = kernels.read(architecture)
        assert {cubin.name for cubin in cubins} == names
        assert all(cubin.code.startswith(b"\x7fELF") and cubin.warps for cubin in cubins)
    assert {f"causal_attention_{kernels.LONGEST}", "rank_items"} <= names
