"""The plugin's Triton kernels, interpreted on the CPU, against the NumPy twins that replace them in other tests.

Also tests `plugin.triton_source` and `engines.tensorrt.plugin`.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="Triton's interpreter works on torch tensors")
pytest.importorskip("triton", reason="the kernels' source is Triton")

from triton.runtime import interpreter

from genrec_batch.core.arrays import HEADS, Masks
from genrec_batch.engines.tensorrt import plugin
from genrec_batch.engines.tensorrt.plugin import triton_source as source
from tests.fakes.tensorrt import GenrecKernel

PATCH = interpreter._patch_lang_tensor


def patched(tensor, scope):
    PATCH(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())  # int() of it fails from NumPy 2.4 on


interpreter._patch_lang_tensor = patched

pytestmark = pytest.mark.skipif(os.environ["TRITON_INTERPRET"] != "1", reason="needs TRITON_INTERPRET=1")

B, S, D, H, V, LD = 3, 9, 512, 16, 100, 112
LENGTHS = np.array([8, 3, 0], np.int32)
PADDED, PACKED = np.array([0, S, 2 * S], np.int32), np.array([0, 9, 13], np.int32)  # where rows begin
STARTS = pytest.mark.parametrize("starts", [PADDED, PACKED], ids=["padded", "packed"])
FILLED = pytest.mark.parametrize(  # packed rows are never filled: they would overlap
    ("starts", "fill"), [(PADDED, 0), (PADDED, 1), (PACKED, 0)], ids=["padded", "padded-filled", "packed"]
)
N = B * S
RANKING = {"HEADS": len(HEADS), "PADDED_HEADS": 4, "READ": 16, "CHUNK": 32}
SIZES = {"H": H, "HD": D // H, "BLOCK": 32}


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


@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(5, 24, 64), (70, 130, 192), (64, 128, 64)])
def test_linear_where_tiles_do_not_fit(rows, columns, depth, relu):
    arguments = (halves(rows, depth), halves(columns, depth, seed=1) / np.float16(8), halves(columns, seed=2))
    grid = (-(-rows // 16) * -(-columns // 32),)
    sizes = {"RELU": bool(relu), "ROWS": 16, "COLUMNS": 32, "DEPTH": 64, "GROUP": 2}
    out = halves(rows, columns, seed=3)
    (found,) = run(source.linear, grid, *arguments, out, rows, columns, depth, out=[3], **sizes)
    close(found, twin("linear", *arguments, relu=relu)[0])


@pytest.mark.parametrize("programs", [1, 3, 7])
def test_a_linear_layer_whose_programs_make_many_tiles(programs):
    rows, columns, depth = 70, 144, 128
    arguments = (halves(rows, depth), halves(columns, depth, seed=1) / np.float16(8), halves(columns, seed=2))
    sizes = {"RELU": True, "ROWS": 16, "COLUMNS": 64, "DEPTH": 64, "GROUP": 2}
    out = halves(rows, columns, seed=3)
    (found,) = run(source.linear_persistent, (programs,), *arguments, out, rows, columns, depth, out=[3], **sizes)
    close(found, twin("linear", *arguments, relu=1)[0])


def alone(found, expected):
    """Where the twin says that nothing is written, what stood there is left."""
    there = ~np.isnan(expected.astype(np.float32)).any(-1)
    close(found[there], expected[there])
    return found[~there]


@FILLED
def test_embed_history(starts, fill):
    tokens = np.random.default_rng(1).integers(0, V, (B, S - 1)).astype(np.int32)
    prefix, table, places = halves(B, D), halves(V, D, seed=1), halves(S, D, seed=2)
    arguments, before = (tokens, prefix, starts, LENGTHS, table, places), halves(N, D, seed=3)
    (found,) = run(source.embed_history, (S, B), *arguments, before, S, fill, out=[6], D=D)
    expected = twin("embed_history", *arguments, places=N, fill=fill)[0]
    np.testing.assert_array_equal(alone(found, expected), before[np.isnan(expected).any(-1)])


def test_a_row_of_length_minus_1_is_nothing():
    lengths, starts = np.array([2, -1, 1], np.int32), np.array([0, 1, 3], np.int32)
    tokens, tables = np.ones((B, S - 1), np.int32), (halves(V, D, seed=1), halves(S, D, seed=2))
    before = halves(N, D, seed=3)
    arguments = (tokens, halves(B, D), starts, lengths, *tables)
    (x,) = run(source.embed_history, (S, B), *arguments, before, S, 0, out=[6], D=D)
    alone(x, twin("embed_history", *arguments, places=N, fill=0)[0])
    qkv = halves(N, 3 * D)
    (means,) = run(source.causal_attention, (B * H,), qkv, lengths, starts, before, S, 0, out=[3], **SIZES)
    alone(means, twin("causal_attention", qkv, lengths, starts, positions=S, fill=0)[0])
    (last,) = run(source.last_attention, (B * H,), qkv, lengths, starts, halves(B, D), out=[3], **SIZES)
    assert np.isfinite(last).all()


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


@FILLED
@pytest.mark.parametrize("block", [32, 128])
def test_causal_attention(starts, fill, block):
    qkv, before = halves(N, 3 * D), halves(N, D, seed=1)
    qkv[..., :D] *= 0.2
    sizes = SIZES | {"BLOCK": block}
    (found,) = run(source.causal_attention, (B * H,), qkv, LENGTHS, starts, before, S, fill, out=[3], **sizes)
    expected = twin("causal_attention", qkv, LENGTHS, starts, positions=S, fill=fill)[0]
    np.testing.assert_array_equal(alone(found, expected), before[np.isnan(expected).any(-1)])


@pytest.mark.parametrize("length", [14, 15, 31, 32, 63, 64, 100])
def test_attention_over_histories_of_every_block(length):
    lengths, starts = np.array([length, 2], np.int32), np.array([0, length + 1], np.int32)
    qkv = halves(length + 4, 3 * D)
    qkv[..., :D] *= 0.2
    sizes, out = SIZES | {"BLOCK": 128}, halves(length + 4, D, seed=1)
    (found,) = run(source.causal_attention, (2 * H,), qkv, lengths, starts, out, 101, 0, out=[3], **sizes)
    close(found, twin("causal_attention", qkv, lengths, starts, positions=101, fill=0)[0])
    (last,) = run(source.last_attention, (2 * H,), qkv, lengths, starts, halves(2, D, seed=1), out=[3], **sizes)
    close(last, twin("last_attention", qkv, lengths, starts, positions=101)[0])
    arguments = (halves(2, 3 * D), qkv, halves(3, 2, 3 * D, seed=2), lengths, starts, np.array([2], np.int32))
    sizes |= {"STEPS": 16}
    (found,) = run(source.decode_attention, (2 * H,), *arguments, halves(2, D, seed=3), 2, out=[6], **sizes)
    close(found, twin("decode_attention", *arguments, positions=101)[0])


@STARTS
def test_last_attention(starts):
    qkv = halves(N, 3 * D)
    qkv[..., :D] *= 0.2
    (found,) = run(source.last_attention, (B * H,), qkv, LENGTHS, starts, halves(B, D, seed=1), out=[3], **SIZES)
    close(found, twin("last_attention", qkv, LENGTHS, starts, positions=S)[0])


@STARTS
@pytest.mark.parametrize("step", [0, 2])
def test_decode_attention_reads_only_earlier_steps_and_real_positions(step, starts):
    fresh, prefix, recent = halves(B, 3 * D), halves(N, 3 * D, seed=1), halves(3, B, 3 * D, seed=2)
    fresh[:, :D] *= 0.2
    recent[step:] = np.nan  # a step not yet written may hold anything
    arguments = (fresh, prefix, recent, LENGTHS, starts, np.array([step], np.int32))
    (found,) = run(source.decode_attention, (B * H,), *arguments, halves(B, D, seed=3), B, out=[6], STEPS=16, **SIZES)
    close(found, twin("decode_attention", *arguments, positions=S)[0])


def ranked(arguments, *, limit=V, heads=4, masks=None, **constants):
    """Tokens, log-probabilities and heads; `masks` are the bit map that each row obeys, and the bit maps."""
    arguments = (*arguments, *(masks or (0, 0)))
    outputs = (np.full(B, 9, np.int32), np.zeros(B, np.float32), np.zeros((B, heads), np.float32))
    sizes = (B, V, limit, LD, masks[1].shape[1] if masks else 0)
    options = RANKING | {"MASKED": int(masks is not None)} | constants
    return run(source.rank_items, (B,), *arguments, *outputs, *sizes, out=[7, 8, 9], **options)


@pytest.mark.parametrize("step", [-1, 1])
def test_rank_items(step):
    logits = halves(B, LD)
    logits[1, :V] = 1.0  # all equal: the lowest that is left
    seen = np.zeros((B, 70), np.int32)
    seen[:, 0] = 1
    seen[0, 69] = int(np.argmax(logits[0, :90]))
    seen[1, 3], seen[2, :70] = 2, np.arange(70)
    read = np.array([[3, 3, 80], [4, 4, 81], [0, 5, 82]], np.int32)
    arguments = (logits, seen, np.array([70], np.int32), read, np.array([step], np.int32))
    found, expected = ranked(arguments, limit=90), twin("rank_items", *arguments, items=V, limit=90)
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[0][1] == (5 if step == 1 else 3)
    close(found[1], expected[1], 1e-5)
    close(found[2], expected[2], 1e-5)


def bit_maps(banned_MV):
    """Bit maps as the engine copies them to the device, as int32."""
    return Masks.of(banned_MV, []).banned_MW.view(np.int32)


@pytest.mark.parametrize("step", [-1, 1])
def test_rank_items_that_a_mask_leaves(step):
    logits = halves(B, LD)
    banned_MV = np.random.default_rng(1).random((4, V)) < 0.6
    banned_MV[1, :89] = True  # one item below the limit is left
    banned_MV[1, 89] = False
    masks = np.array([3, 1, 3], np.int32), bit_maps(banned_MV)
    seen, read = np.tile([0, 1, 40], (B, 1)).astype(np.int32), np.array([[3, 3, 80], [4, 89, 81]], np.int32)
    arguments = (logits, seen, np.array([3], np.int32), read, np.array([step], np.int32))
    found = ranked(arguments, limit=90, masks=masks)
    expected = twin("rank_masked_items", *arguments, *masks, items=V, limit=90)
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[0][1] == (0 if step == 1 else 89)
    assert np.isneginf(found[1][1]) == (step == 1)
    close(found[1], expected[1], 1e-5)
    close(found[2], expected[2], 1e-5)
    plain = ranked(arguments, limit=90)
    assert (found[0] != plain[0]).any()
    nobody = masks[0] * 0, bit_maps(np.zeros((1, V), np.bool_))
    for one, other in zip(ranked(arguments, limit=90, masks=nobody), plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_any_number_of_heads_is_read_and_no_other_logit():
    logits, width, nothing = halves(B, LD), np.zeros(1, np.int32), np.array([-1], np.int32)
    arguments = (logits, np.zeros((B, 1), np.int32), width, np.zeros((1, B), np.int32), nothing)
    *_, heads = ranked(arguments, heads=5, HEADS=5, PADDED_HEADS=8)
    close(heads, 1 / (1 + np.exp(-logits[:, V : V + 5].astype(np.float32))), 1e-5)


def test_nothing_left_is_token_0():
    seen = np.tile(np.arange(V, dtype=np.int32), (B, 1))
    width, nothing = np.array([V], np.int32), np.array([-1], np.int32)
    tokens, log_prob, _ = ranked((halves(B, LD), seen, width, np.zeros((1, B), np.int32), nothing))
    assert tokens.tolist() == [0, 0, 0]
    assert np.isneginf(log_prob).all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, under the interpreter
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_what_is_not_a_number_is_not_passed_off_as_nothing_left():
    logits, width = np.full((B, LD), np.nan, np.float16), np.ones(1, np.int32)
    arguments = (logits, np.zeros((B, 1), np.int32), width, np.zeros((1, B), np.int32), np.array([-1], np.int32))
    every = np.zeros(B, np.int32), bit_maps(np.ones((1, V), np.bool_))
    for masks in (None, every):
        assert np.isnan(ranked(arguments, masks=masks)[1]).all()


def test_every_architecture_ships_every_kernel():
    names = {cubin.name for cubin in plugin.read("sm_90")}
    for architecture in plugin.architectures():
        cubins = plugin.read(architecture)
        assert {cubin.name for cubin in cubins} == names
        assert all(cubin.code.startswith(b"\x7fELF") and cubin.warps for cubin in cubins)
    assert {f"causal_attention_{plugin.LONGEST}", "rank_items", "rank_masked_items"} <= names
