"""The compiled kernels of the torch engine on a CPU, each against a few lines of NumPy.

Also tests `compiled.attention`, `compiled.dots`, `compiled.row_kernels` and `runtime.simd_bf16`.
"""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="the extra `fast` is not installed")

from genrec_batch.engines.torch import choice, device

if not device.fast_int8():
    pytest.skip("this processor has no AVX-512 VNNI", allow_module_level=True)

from genrec_batch.engines.torch.compiled import attention, dots, row_kernels
from genrec_batch.runtime import simd_bf16, simd_sort

COMPILED = Path(row_kernels.__file__).parent
ROWS, EPSILON = 5, 1e-5
WIDTHS = pytest.mark.parametrize("width", [1, 15, 16, 17, 64, 130])
CACHED = pytest.mark.parametrize("cached", [np.uint16, np.int8], ids=["bf16", "int8"])
LENGTHS = pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 129])
ODD = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8], np.float32)


@pytest.mark.parametrize("name", ["row_kernels", "attention"])
def test_kernels_that_numba_kept_are_compiled_anew_when_what_they_are_made_of_changes(name):
    parts = b"".join(Path(module.__file__).read_bytes() for module in (dots, simd_bf16, simd_sort))
    line = f"# made of vectors {sha256(parts).hexdigest()[:8]}"
    assert line in (COMPILED / f"{name}.py").read_text().splitlines(), f"{name}.py must say: {line}"


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def halves(x):
    """The bits of bf16, to nearest even, as PyTorch rounds."""
    return torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)


def floats(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def whole_of(x):
    """Numbers as 8-bit ones with a scale per line, and what they stand for."""
    scale = np.abs(x).max(-1) / np.float32(127)
    whole = np.round(x / np.where(scale == 0, 1, scale)[..., None]).astype(np.int8)
    return whole, scale, whole * scale[..., None]


def cache_of(keys, values, dtype):
    """What a kernel gets of cached keys and values [R, G, T, Z]: both with their scales."""
    found = []
    for x in (keys, values):
        whole, scale, _ = whole_of(x)
        found += [whole, scale] if dtype == np.int8 else [halves(x), np.empty((*x.shape[:2], 0), np.float32)]
    return found


def stand_for(numbers, scales):
    return numbers * scales[..., None] if numbers.dtype == np.int8 else floats(numbers)


def filled(*shape, dtype=np.float32):
    """Memory that holds what a kernel must not leave there: NaN in any float."""
    return np.full(shape, np.nan, dtype) if dtype == np.float32 else np.full(shape, np.iinfo(dtype).max, dtype)


def pairs(rows, width):
    return filled(rows), filled(rows, width, dtype=np.uint8), filled(rows, 2 * width, dtype=np.uint8)


def assert_pairs(scale_N, high_NM, both_N2M, x_NM):
    """Pairs stand for x as near as some 15 bits can."""
    width = x_NM.shape[1]
    np.testing.assert_allclose(scale_N, np.abs(x_NM).max(1) / 127, rtol=2e-6)
    np.testing.assert_array_equal(both_N2M[:, width:], high_NM)
    low_NM = both_N2M[:, :width]
    assert high_NM.min() >= 1
    assert low_NM.min() >= 1
    made_NM = (high_NM.astype(float) - 128 + (low_NM.astype(float) - 128) / 254) * scale_N[:, None]
    np.testing.assert_allclose(made_NM, x_NM, atol=np.abs(x_NM).max() / 127 * 0.51 / 254, rtol=0)


def assert_whole(scale_N, whole_NM, x_NM, most, zero):
    np.testing.assert_allclose(scale_N, np.abs(x_NM).max(1) / most, rtol=2e-6)
    made_NM = (whole_NM.astype(float) - zero) * scale_N[:, None]
    assert (np.abs(made_NM - x_NM) <= 0.501 * scale_N[:, None] + 1e-6).all()


def layer_norm(x_NM, gain_M, shift_M):
    x = x_NM.astype(float)
    spread = x.var(1, keepdims=True) + EPSILON
    return ((x - x.mean(1, keepdims=True)) / np.sqrt(spread) * gain_M + shift_M).astype(np.float32)


def product(width, rows=ROWS):
    """Sums, a scale per row, and bias as a product leaves them, and what they stand for."""
    sums, scale, bias = numbers(rows, width, seed=1) * 50, np.abs(numbers(rows, seed=2)), numbers(width, seed=3)
    return sums, scale, bias, sums * scale[:, None] + bias


@WIDTHS
def test_split(width):
    x = numbers(ROWS, width) * np.logspace(-30, 30, ROWS, dtype=np.float32)[:, None]
    into = pairs(ROWS, width)
    row_kernels.split(x, *into)
    for n in range(ROWS):
        assert_pairs(*(part[n : n + 1] for part in into), x[n : n + 1])
    whole = filled(ROWS), filled(ROWS, width, dtype=np.uint8)
    row_kernels.round_rows(x, *whole)
    for n in range(ROWS):
        assert_whole(whole[0][n : n + 1], whole[1][n : n + 1], x[n : n + 1], 127, 128)
    x[1], x[2, -1], x[3, -1] = 0, np.nan, -np.inf
    row_kernels.round_rows(x, *whole)
    assert (whole[0][1], whole[1][1].tolist(), whole[0][3]) == (0, [128] * width, np.inf)
    assert np.isnan(whole[0][2])
    again = pairs(ROWS, width)
    row_kernels.split(x, *again)
    assert again[0][1] == 0
    assert (again[1][1] == 128).all()
    assert (again[2][1] == 128).all()
    assert np.isnan(again[0][2])
    assert np.isinf(again[0][3])
    for mine, before in zip(again, into, strict=True):
        np.testing.assert_array_equal(mine[[0, 4]], before[[0, 4]])


@WIDTHS
def test_sums_in_bf16_are_taken_for_what_they_stand_for(width):
    sums, scale, bias, _ = product(width)
    y = floats(halves(sums)) * scale[:, None] + bias
    x, gain, shift = numbers(ROWS, width), numbers(width, seed=4), numbers(width, seed=5)
    whole, half = (filled(ROWS), filled(ROWS, width, dtype=np.uint8)), filled(ROWS, width, dtype=np.uint16)
    row_kernels.relu_round(halves(sums), scale, bias, *whole)
    assert_whole(*whole, np.maximum(y, 0), 255, 0)
    row_kernels.scaled_half(halves(sums), scale, bias, half)
    np.testing.assert_allclose(floats(half), y, rtol=2**-8, atol=1e-5)
    new = x.copy()
    row_kernels.add_norm_round(new, halves(sums), scale, bias, gain, shift, EPSILON, *whole)
    if width > 1:
        np.testing.assert_allclose(new, layer_norm(x + y, gain, shift), atol=1e-4, rtol=1e-4)
    assert_whole(*whole, new, 127, 128)


@WIDTHS
def test_relu(width):
    sums, scale, bias, y = product(width)
    into, whole = pairs(ROWS, width), (filled(ROWS), filled(ROWS, width, dtype=np.uint8))
    row_kernels.relu_split(sums, scale, bias, *into)
    row_kernels.relu_round(sums, scale, bias, *whole)
    assert_pairs(*into, np.maximum(y, 0))
    assert_whole(*whole, np.maximum(y, 0), 255, 0)
    sums[1, -1], scale[2], scale[3] = np.nan, np.nan, 0
    row_kernels.relu_split(sums, scale, bias, *into)
    row_kernels.relu_round(sums, scale, bias, *whole)
    for scales in (into[0], whole[0]):
        assert np.isnan(scales).tolist() == [False, True, True, False, False]
        np.testing.assert_allclose(scales[3] * (127 if scales is into[0] else 255), max(bias.max(), 0), rtol=1e-5)


@pytest.mark.parametrize("width", [15, 16, 17, 64, 130])
def test_sum_and_norm(width):
    sums, scale, bias, y = product(width)
    x, gain, shift = numbers(ROWS, width), numbers(width, seed=4), numbers(width, seed=5)
    scale[4], x[4], y[4] = 0, x[4] * 1e-2 - bias, bias  # so alike that EPSILON counts
    expected = layer_norm(x + y, gain, shift)
    one, other, third = x.copy(), x.copy(), x.copy()
    into, whole = pairs(ROWS, width), (filled(ROWS), filled(ROWS, width, dtype=np.uint8))
    half = filled(ROWS, width, dtype=np.uint16)
    row_kernels.add_norm_split(one, sums, scale, bias, gain, shift, EPSILON, *into)
    row_kernels.add_norm_round(other, sums, scale, bias, gain, shift, EPSILON, *whole)
    for found in (one, other):
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert_pairs(*into, one)
    assert_whole(*whole, other, 127, 128)
    row_kernels.add_norm_half(third, halves(y), gain, shift, EPSILON, half)
    np.testing.assert_allclose(third, layer_norm(x + floats(halves(y)), gain, shift), atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(half, halves(third))
    sums[2, 3] = np.nan
    lost = x.copy()
    row_kernels.add_norm_split(lost, sums, scale, bias, gain, shift, EPSILON, *into)
    assert np.isnan(lost).all(1).tolist() == [False, False, True, False, False]
    np.testing.assert_array_equal(lost[[0, 1, 3, 4]], one[[0, 1, 3, 4]])
    assert np.isnan(into[0]).tolist() == [False, False, True, False, False]


@WIDTHS
def test_bf16_is_rounded_to_nearest_even(width):
    sums, scale, bias, y = product(width)
    half = filled(ROWS, width, dtype=np.uint16)
    row_kernels.scaled_half(sums, scale, bias, half)
    np.testing.assert_allclose(floats(half), y, rtol=2**-8, atol=1e-5)
    odd = np.tile(ODD, (ROWS, width))
    half = filled(*odd.shape, dtype=np.uint16)
    row_kernels.scaled_half(odd, np.ones(ROWS, np.float32), np.full(odd.shape[1], -0.0, np.float32), half)
    np.testing.assert_array_equal(floats(half), floats(halves(odd)))
    assert np.isnan(floats(half)[:, 0]).all()


@pytest.mark.parametrize("items", [0, 1, 7])
def test_embed(items):
    rows, width, vocabulary, positions = 3, 48, 11, 9
    prefix, token, position = (
        numbers(rows, width),
        numbers(vocabulary, width, seed=1),
        numbers(positions, width, seed=2),
    )
    tables = [numbers(n, 3 * width, seed=n) for n in (rows, vocabulary, positions)]
    tokens = np.random.default_rng(1).integers(0, vocabulary, (rows, items))
    x, qkv = filled(rows * (items + 1), width), filled(rows * (items + 1), 3 * width, dtype=np.uint16)
    row_kernels.embed(prefix, halves(tables[0]), tokens, token, position, *tables[1:], x, qkv)
    for found, (first, by_token, by_position) in ((x, (prefix, token, position)), (floats(qkv), tables)):
        behind = by_token[tokens] + by_position[1 : items + 1]
        expected = np.concatenate([first[:, None], behind], 1).reshape(found.shape)
        np.testing.assert_array_equal(found, expected if found is x else floats(halves(expected)))


NONE = np.empty((0, 0), np.float32)


def choose(logits, banned, tokens, *, scale=None, bias=None, masks=None, mask=None, exact=(NONE, NONE, 0.0, 0.0)):
    found = np.empty(len(logits), np.float32), np.empty(len(logits), np.int64), np.empty(len(logits), np.float32)
    scale = np.ones(len(logits), np.float32) if scale is None else scale
    bias = np.zeros(logits.shape[1], np.float32) if bias is None else bias
    masks = np.empty((0, 0), np.uint8) if masks is None else masks.view(np.uint8)
    mask = np.zeros(len(logits), np.int64) if mask is None else mask
    room = np.empty(masks.shape[1], np.float32)
    row_kernels.choose(logits, scale, bias, np.array(banned, np.int64), masks, mask, room, tokens, *exact, *found)
    return found


@pytest.mark.parametrize("vocabulary", [3, 16, 17, 1001])
def test_choices_that_masks_leave_are_those_of_the_plain_choice(vocabulary):
    random = np.random.default_rng(vocabulary)
    logits = random.standard_normal((ROWS, vocabulary)).astype(np.float32)
    banned = random.integers(0, vocabulary, (ROWS, 4))
    masks, mask = random.random((3, vocabulary)) < [[0.5], [0.99], [1.0]], np.arange(ROWS) % 3
    before, packed = logits.copy(), torch.from_numpy(np.packbits(masks, axis=1, bitorder="little"))
    for tokens in (vocabulary, vocabulary // 2 + 1):
        log_sum, best, value = choose(logits, banned, tokens, masks=masks, mask=mask)
        np.testing.assert_array_equal(logits, before)
        found = choice.choose(
            torch.from_numpy(logits), torch.from_numpy(banned), tokens=tokens, choices=1,
            masks=choice.RowMasks.of(packed, torch.from_numpy(mask), vocabulary),
        )  # fmt: skip
        np.testing.assert_array_equal(logits, before)
        np.testing.assert_array_equal(np.where(value == -np.inf, 0, best), found.tokens_BW[:, 0])
        np.testing.assert_allclose(value - log_sum, found.log_prob_BW[:, 0], rtol=1e-6, atol=1e-5)
        assert (value[2::3] == -np.inf).all()


@pytest.mark.parametrize("vocabulary", [3, 15, 16, 17, 100, 1001])
def test_choose(vocabulary):
    sums, scale, bias, y = product(vocabulary)
    y[0], bias = y[0] - bias, bias.copy()
    sums[0], scale[0] = np.linspace(-300, 5, vocabulary), 1
    y[0] = sums[0] + bias
    banned = np.random.default_rng(0).integers(0, vocabulary, (ROWS, 9))
    banned[1:, 0] = y[1:].argmax(1)  # the best; and some twice
    banned[:, -1] = banned[:, 0]
    for tokens in (vocabulary, vocabulary // 2 + 1):
        logits = sums.copy()
        log_sum, best, value = choose(logits, banned, tokens, scale=scale, bias=bias)
        np.testing.assert_allclose(logits, y, rtol=1e-5, atol=1e-4)
        expected = choice.choose(torch.from_numpy(logits.copy()), torch.from_numpy(banned), tokens=tokens, choices=1)
        np.testing.assert_allclose(log_sum, torch.from_numpy(logits).double().logsumexp(1), rtol=1e-6)
        np.testing.assert_array_equal(np.where(value == -np.inf, 0, best), expected.tokens_BW[:, 0])
        np.testing.assert_allclose(value - log_sum, expected.log_prob_BW[:, 0], rtol=1e-6, atol=1e-5)


def test_choices_among_equals_among_zeros_and_among_none():
    logits = np.full((6, 40), -9, np.float32)
    logits[0, [7, 21, 39]] = 5  # equals
    logits[1, [9, 30]], logits[1, :2] = [-0.0, 0.0], 1  # zeros of both signs behind banned ones
    logits[2, [9, 30]] = [0.0, -0.0]
    logits[3] = -np.inf
    logits[3, 4] = -1e30
    logits[4] = 3  # all banned
    logits[5, [35, 36]] = 8, np.nan
    banned = np.tile(np.array([0, 1, 1, 0]), (6, 10))
    banned[4] = np.arange(40)
    before = logits.copy()
    log_sum, best, value = choose(logits, banned, 36)
    assert best[[0, 1, 2, 3, 5]].tolist() == [7, 9, 9, 4, 35]
    assert value[[0, 1, 2, 3, 5]].tolist() == [5, 0, 0, np.float32(-1e30), 8]
    assert (best[4], value[4]) == (0, -np.inf)
    assert np.isnan(log_sum).tolist() == [False] * 5 + [True]
    np.testing.assert_array_equal(logits, before)
    assert choose(before.copy(), banned, 37)[1][5] == 36
    assert choose(before.copy(), banned, 1)[2].tolist() == [-np.inf] * 6


def test_a_row_of_no_numbers_chooses_the_first_that_is_not_banned():
    for bad in (np.nan, np.copysign(np.float32(np.nan), -1)):
        log_sum, best, value = choose(np.full((2, 20), bad, np.float32), [[0, 1, 2], [0, 1, 1]], 20)
        assert best.tolist() == [3, 2]
        assert np.isnan(value).all()
        assert np.isnan(log_sum).all()


def softmax(looks):
    shares = np.exp(looks - looks.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


@pytest.mark.parametrize("size", [16, 32, 48])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@LENGTHS
def test_attention_in_context(size, dtype, length):
    heads, lengths = 2, np.array([length, 0, 1, max(1, length - 1), length // 2])
    width, rows = heads * size, len(lengths)
    qkv = halves(numbers(rows * length, 3 * width) * 2)
    qkv.reshape(rows, length, -1)[0, -1, :width] = halves(np.full(width, 40, np.float32))  # far looks
    mixed = filled(rows * length, width, dtype=dtype)
    room = filled(attention.context_room(length, size) + 1)
    attention.attend_context(qkv, qkv, width, qkv, 2 * width, lengths, heads, mixed, room[:-1])
    assert np.isnan(room[-1])
    query, key, value = floats(qkv).reshape(rows, length, 3, heads, size).transpose(2, 0, 3, 1, 4).astype(float)
    found = floats(mixed) if dtype == np.uint16 else mixed
    for r, n in enumerate(lengths):
        looks = query[r, :, :n] @ key[r, :, :n].transpose(0, 2, 1)
        looks[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        expected = np.zeros((length, width))
        expected[:n] = (softmax(looks) @ value[r, :, :n]).transpose(1, 0, 2).reshape(n, width) if n else 0
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == np.float32 else {"rtol": 2**-8, "atol": 1e-5}
        np.testing.assert_allclose(found.reshape(rows, length, width)[r], expected, **tolerance)


@pytest.mark.parametrize("size", [16, 32, 48])
@CACHED
@LENGTHS
def test_keys_and_values_are_kept_up_to_a_rows_length(size, cached, length):
    heads, lengths = 2, np.array([length, 0, 1, max(1, length - 1), length // 2])
    width, rows, slots = heads * size, len(lengths), length + 5
    exact = numbers(rows * length, 3 * width) * np.logspace(-9, 9, rows * length, dtype=np.float32)[:, None]
    exact[0, width:] = 0
    keys, values = (filled(rows, heads, slots, size, dtype=cached) for _ in range(2))
    key_scales, value_scales = (filled(rows, heads, slots if cached == np.int8 else 0) for _ in range(2))
    attention.keep(halves(exact), width, halves(exact), 2 * width, lengths, keys, key_scales, values, value_scales)
    parts = floats(halves(exact)).reshape(rows, length, 3, heads, size).transpose(2, 0, 3, 1, 4)
    for kept, scales, made in ((keys, key_scales, parts[1]), (values, value_scales, parts[2])):
        for r, n in enumerate(lengths):
            off = np.abs(stand_for(kept, scales)[r, :, :n] - made[r, :, :n])
            most = np.abs(made[r, :, :n]).max(-1, keepdims=True)
            assert (off <= most * (0.501 / 127 if cached == np.int8 else 0)).all()
            assert not kept[r, :, n:].any()
            assert not scales[r, :, n:].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_scale_says_that_a_number_is_none(bad):
    x = numbers(3, 32)
    x[1, 5] = bad
    into = [filled(1, 1, 3, 32, dtype=np.int8), filled(1, 1, 3)] * 2
    attention.keep(halves(x), 0, halves(x), 0, np.array([3]), *into)
    assert np.isfinite(into[1]).tolist() == [[[True, False, True]]]


@pytest.mark.parametrize("size", [16, 32, 48])
@CACHED
@LENGTHS
def test_attention_of_what_is_read_next(size, cached, length):
    heads, step, first, lengths = 2, 1, 3, np.array([length - 1, 0, max(0, length - 2), length // 2])
    rows, width, slots = len(lengths), 2 * size, -(-(length + 2) // 16) * 16
    sums, scale, bias, qkv = product(3 * width, first + rows + 1)
    qkv = qkv.reshape(-1, 3, heads, size)
    keys, values = (numbers(rows, heads, slots, size, seed=s) for s in (7, 8))
    there = np.arange(slots) < (lengths + step)[:, None]
    keys, values = (np.where(there[:, None, :, None], x, 0).astype(np.float32) for x in (keys, values))
    before, cache = cache_of(keys, values, cached), cache_of(keys, values, cached)
    mixed = filled(first + rows + 1, width)
    sums /= 50
    qkv = (sums * scale[:, None] + bias).reshape(-1, 3, heads, size)
    attention.attend_next(sums, scale, bias.copy(), first, step, lengths, *cache, mixed)
    new_keys, new_values = stand_for(*cache[:2]), stand_for(*cache[2:])
    for r, n in enumerate(lengths + step):
        query, key, value = qkv[first + r].astype(float)
        for found, new in ((new_keys, key), (new_values, value)):
            off = 0.501 / 127 * np.abs(new).max() if cached == np.int8 else 1e-5
            np.testing.assert_allclose(found[r, :, n], new, rtol=0 if cached == np.int8 else 2**-8, atol=off)
        for found, there in zip(cache, before, strict=True):
            others = np.arange(found.shape[2]) != n
            np.testing.assert_array_equal(found[r][:, others], there[r][:, others])
        looks = np.einsum("gz,gtz->gt", query, new_keys[r, :, : n + 1])
        expected = np.einsum("gt,gtz->gz", softmax(looks), new_values[r, :, : n + 1]).ravel()
        np.testing.assert_allclose(mixed[first + r], expected, rtol=1e-4, atol=1e-5)
    assert np.isnan(mixed[:first]).all()
    assert np.isnan(mixed[first + rows :]).all()


@pytest.mark.parametrize("size", [16, 32, 48])
@CACHED
@LENGTHS
def test_attention_of_what_is_read_aside(size, cached, length):
    heads, each, lengths = 2, 19, np.array([length - 1, 0, length // 2])
    rows, width, slots = len(lengths), 2 * size, -(-(length + 2) // 16) * 16
    sums, scale, bias, _ = product(3 * width, rows * each)
    sums /= 50
    qkv = (sums * scale[:, None] + bias).reshape(rows, each, 3, heads, size)
    cache = cache_of(*(numbers(rows, heads, slots, size, seed=s) for s in (7, 8)), cached)
    keys, values = stand_for(*cache[:2]), stand_for(*cache[2:])
    for r, n in enumerate(lengths):
        for part in cache[::2] if cached == np.uint16 else cache[1::2]:
            part[r, :, n + 1 :] = np.nan if part.dtype == np.float32 else 0x7FC0  # NaN: nobody reads on
    mixed = filled(rows * each, width)
    attention.attend_aside(sums, scale, bias.copy(), lengths, *cache, mixed)
    for r, n in enumerate(lengths):
        query, key, value = qkv[r].transpose(1, 2, 0, 3).astype(float)
        looks = query @ keys[r, :, : n + 1].transpose(0, 2, 1)
        shares = softmax(np.concatenate([looks, (query * key).sum(2, keepdims=True)], 2))
        expected = shares[:, :, :-1] @ values[r, :, : n + 1] + shares[:, :, -1:] * value
        found = mixed.reshape(rows, each, heads, size)[r].transpose(1, 0, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_logits_that_rounding_might_take_for_the_best_are_computed_again():
    random = np.random.default_rng(3)
    hidden, weight = numbers(ROWS, 64), numbers(1001, 64, seed=1)
    exact, bias = hidden @ weight.T, numbers(1001, seed=2) * 0.01
    step, norm = float(np.abs(weight).max() / 127), float(np.linalg.norm(weight, axis=1).max())
    scale = np.abs(hidden).max(1) / 127
    near = exact / scale[:, None] + random.standard_normal(exact.shape).astype(np.float32)  # rounding moves the best
    order = np.argsort(-(exact + bias), 1)
    near[np.arange(ROWS), order[:, 1]] = near[np.arange(ROWS), order[:, 0]] + 1
    masks = np.zeros((1, 1001), bool)
    masks[0, order[:, 0]] = True
    for mask in (None, masks):
        logits = near.astype(np.float32)
        _, best, value = choose(
            logits, [[0]] * ROWS, 1001, scale=scale, bias=bias, masks=mask, exact=(hidden, weight, step, norm)
        )
        open_BV = exact + bias if mask is None else np.where(mask, -np.inf, exact + bias)
        np.testing.assert_array_equal(best, open_BV.argmax(1))
        np.testing.assert_allclose(value, open_BV.max(1), rtol=1e-5)
        np.testing.assert_allclose(logits[np.arange(ROWS), best], value, rtol=1e-6)  # as `log_probs` would read it
