"""Each Triton kernel against its plain twin: on the GPU where there is one, else in Triton's interpreter.

Also tests `device_code` and `device_attention`.
"""

import os
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":  # Triton looks at this variable when it is imported, and again when a kernel is first called
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton was imported before it could be told to interpret", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from genrec_batch.engines.cuda import kernels
from genrec_batch.engines.cuda.fp8 import E4M3, Product
from genrec_batch.engines.cuda.weights import FusedTables
from tests.twins import kernels as plain_kernels

HEADS = 4
SIZES = [pytest.param(head, id=f"head{head}") for head in (4, 32, 48)]
TYPE = torch.float16
TYPES = [pytest.param(TYPE, 1.0, id="fp16"), pytest.param(E4M3, 0.25, id="e4m3")]  # of the cache, and its unit


@pytest.fixture(autouse=True)
def rounding(monkeypatch):
    """Let Triton's interpreter round to e4m3 as the device does: where a mantissa carries over, it loses the carry."""
    if DEVICE == "cuda":
        return
    from triton.language import float8e4nv, float32
    from triton.runtime import interpreter

    theirs = interpreter._convert_float

    def convert(values, source, target, mode):
        if (source, target) != (float32, float8e4nv):
            return theirs(values, source, target, mode)
        rounded = torch.from_numpy(values.view(np.float32).copy()).to(E4M3)
        return rounded.view(torch.uint8).numpy().reshape(values.shape)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def drawn(*shape, seed=0, scale=1.0, kind=TYPE):
    numbers = np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)
    return torch.from_numpy(numbers * np.float32(scale)).to(DEVICE, kind)


def assert_rounded_alike(mine, theirs):
    """Numbers that were rounded to e4m3 from sums in another order: all within a step, nearly all the same."""
    torch.testing.assert_close(mine.float(), theirs.float(), atol=2**-8, rtol=0.13)
    assert (mine.float() == theirs.float()).float().mean() > 0.98


def packed_rows(lengths):
    lengths = torch.tensor(lengths, dtype=torch.int32)
    first = (lengths + 1).cumsum(0).int() - lengths - 1 + 3  # three rows that are nobody's come before
    return lengths.to(DEVICE), first.to(DEVICE), int((lengths + 1).sum()) + 5


def tables(width, vocabulary=70, positions=300):
    return FusedTables(
        token_VD=drawn(vocabulary, width, seed=1),
        position_PD=drawn(positions, width, seed=2),
        token_qkv_V3=drawn(vocabulary, 3 * width, seed=3),
        position_qkv_P3=drawn(positions, 3 * width, seed=4),
    )


def both(call, *outputs):
    """Run a kernel and its twin on copies of the same outputs; return the pairs, on the CPU."""
    mine, theirs = [t.clone() for t in outputs], [t.clone().cpu() for t in outputs]
    call(kernels, DEVICE, *mine)
    call(plain_kernels, "cpu", *theirs)
    return [(m.cpu(), t) for m, t in zip(mine, theirs, strict=True)]


def on(device, *values):
    return [v.to(device) if isinstance(v, torch.Tensor) else v for v in values]


def moved(found, device):
    return FusedTables(**{name: getattr(found, name).to(device) for name in FusedTables.__dataclass_fields__})


def test_embed_saturates_what_e4m3_cannot_hold():
    width, found = HEADS * 4, tables(HEADS * 4)
    lengths, first, rows = packed_rows([3, 0, 7])
    tokens = torch.randint(0, 70, (3, 9), dtype=torch.int32, device=DEVICE)

    def call(module, device, x, qkv):
        prefix = drawn(3, width), drawn(3, 3 * width, scale=500.0)
        module.embed(*on(device, tokens, lengths, first, *prefix), moved(found, device), x, qkv)

    x, (mine, theirs) = both(call, drawn(rows, width, seed=8), drawn(rows, 3 * width, seed=9, kind=E4M3))
    assert_rounded_alike(mine, theirs)
    assert mine.float().abs().max() == 448
    torch.testing.assert_close(*x, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("head", SIZES)
def test_embed_writes_each_users_rows_and_no_others(head):
    width = HEADS * head
    lengths, first, rows = packed_rows([3, 0, 7])
    tokens = torch.randint(0, 70, (3, 9), dtype=torch.int32, device=DEVICE)
    found = tables(width)

    def call(module, device, x, qkv):
        module.embed(
            *on(device, tokens, lengths, first, drawn(3, width), drawn(3, 3 * width)), moved(found, device), x, qkv
        )

    for mine, theirs in both(call, drawn(rows, width, seed=8), drawn(rows, 3 * width, seed=9)):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-3)


def test_read_bans_what_it_reads_from_there_on():
    width, found = 4 * HEADS, tables(4 * HEADS)
    tokens = torch.tensor([0, 31, 32, 69], dtype=torch.int32)
    lengths = torch.tensor([0, 5, 2, 9], dtype=torch.int32)
    banned = torch.zeros(4, 3, dtype=torch.int32)
    banned[:, 0] = 0b11

    def call(module, device, x, qkv, bits):
        module.read(*on(device, tokens, lengths, 2), moved(found, device), bits, x, qkv)

    (x, x2), (qkv, qkv2), (bits, bits2) = both(call, drawn(4, width), drawn(4, 3 * width), banned.to(DEVICE))
    torch.testing.assert_close(x, x2, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(qkv, qkv2, atol=2e-3, rtol=1e-3)
    assert bits.tolist() == bits2.tolist() == [[3, 0, 0], [3 - 2**31, 0, 0], [3, 1, 0], [3, 0, 32]]


@pytest.mark.parametrize("head", SIZES)
@pytest.mark.parametrize(("kind", "unit"), TYPES)
@pytest.mark.parametrize("lengths", [[0, 15, 16, 31, 50, 63], [64, 3, 150]], ids=["one-tile", "more-tiles"])
def test_attention_over_packed_rows_is_causal_and_stays_within_the_user(head, kind, unit, lengths):
    longest = max(lengths)
    lengths, first, rows = packed_rows(lengths)
    qkv = drawn(rows, 3 * HEADS * head, scale=0.7 / unit**0.5, kind=kind)

    def call(module, device, out):
        module.attend_history(*on(device, qkv, lengths, first), out, HEADS, longest, unit)

    ((mine, theirs),) = both(call, drawn(rows, HEADS * head, seed=5, kind=kind))
    if kind == E4M3:
        assert_rounded_alike(mine, theirs)
    else:
        torch.testing.assert_close(mine, theirs, atol=3e-3, rtol=1e-2)


@pytest.mark.parametrize("head", SIZES)
@pytest.mark.parametrize("lengths", [[0, 15, 16, 31, 50, 63], [64, 3, 150]], ids=["one-tile", "more-tiles"])
def test_attention_over_packed_rows_keeps_their_keys_and_values_in_e4m3(head, lengths):
    longest, width = max(lengths), HEADS * head
    lengths, first, rows = packed_rows(lengths)
    qkv = drawn(rows, 3 * width, scale=7.0)
    qkv[int(first[-1]), width] = 1000  # more than e4m3 can hold

    def call(module, device, out, kept):
        module.attend_history(*on(device, qkv, lengths, first), out, HEADS, longest, 0.01, kept)

    (mine, theirs), (kept, expected) = both(call, drawn(rows, width, seed=5), drawn(rows, 2 * width, seed=6, kind=E4M3))
    torch.testing.assert_close(mine, theirs, atol=3e-3, rtol=1e-2)
    assert torch.equal(kept.float(), expected.float())
    assert kept.float().max() == 448


def test_numbers_are_narrowed_and_saturate():
    wide = drawn(37, 300, scale=200.0)
    ((mine, theirs),) = both(lambda module, device, out: module.narrow(wide.to(device), out), drawn(37, 300, kind=E4M3))
    assert torch.equal(mine.float(), theirs.float())
    assert mine.float().abs().max() == 448


@pytest.mark.parametrize("head", SIZES)
@pytest.mark.parametrize(("kind", "unit"), TYPES)
@pytest.mark.parametrize(("steps", "count"), [(10, 0), (10, 9), (20, 18), (70, 66)])
@pytest.mark.parametrize("lengths", [[0, 15, 63], [64, 3, 150]], ids=["one-tile", "more-tiles"])
def test_a_new_item_reads_the_history_the_items_before_it_and_itself(head, kind, unit, steps, count, lengths):
    longest, width = max(lengths), HEADS * head
    lengths, first, rows = packed_rows(lengths)
    query, cache = drawn(3, 3 * width, seed=6), drawn(rows, 3 * width, scale=0.7, kind=kind)

    def call(module, device, out, suffix):
        q, c, n, f = on(device, query, cache, lengths, first)
        module.attend_one(q, c[:, width:], n, f, suffix, count, out, HEADS, longest, unit)

    (out, out2), (suffix, suffix2) = both(call, drawn(3, width, seed=5), drawn(3, steps, 2 * width, seed=7, kind=kind))
    torch.testing.assert_close(out, out2, atol=3e-3, rtol=1e-2)
    assert torch.equal(suffix.float(), suffix2.float())


def test_the_query_of_the_last_row_reads_only_the_history():
    width = HEADS * 32
    lengths, first, rows = packed_rows([4, 0, 40])
    query, cache = drawn(3, width, seed=6), drawn(rows, 2 * width, scale=0.7)

    def call(module, device, out):
        module.attend_one(*on(device, query, cache, lengths, first), None, 0, out, HEADS, 40, 1.0)

    ((mine, theirs),) = both(call, drawn(3, width, seed=5))
    torch.testing.assert_close(mine, theirs, atol=3e-3, rtol=1e-2)


@pytest.mark.parametrize("head", SIZES)
@pytest.mark.parametrize(("kind", "unit"), TYPES)
@pytest.mark.parametrize("each", [1, 70])
@pytest.mark.parametrize("lengths", [[0, 15, 63], [64, 3, 150]], ids=["one-tile", "more-tiles"])
def test_many_items_of_a_user_read_the_history_and_themselves_and_not_each_other(head, kind, unit, each, lengths):
    longest, width = max(lengths), HEADS * head
    lengths, first, rows = packed_rows(lengths)
    query, cache = drawn(3 * each, 3 * width, seed=6), drawn(rows, 3 * width, scale=0.7, kind=kind)

    def call(module, device, out):
        q, c, n, f = on(device, query, cache, lengths, first)
        module.attend_aside(q, c[:, width:], n, f, out, HEADS, longest, unit)

    ((mine, theirs),) = both(call, drawn(3 * each, width, seed=5))
    torch.testing.assert_close(mine, theirs, atol=4e-3, rtol=1e-2)


@pytest.mark.parametrize("width", [64, 512, 768])
def test_norm_is_layer_norm_of_the_row_plus_the_bias(width):
    weights = [drawn(width, seed=s) for s in (1, 2, 3)]
    ((mine, theirs),) = both(lambda module, device, x: module.add_norm(x, *on(device, *weights)), drawn(7, width) + 3)
    torch.testing.assert_close(mine, theirs, atol=4e-3, rtol=2e-3)


def test_norm_writes_its_e4m3_copy_in_its_unit():
    weights = [drawn(64, seed=s) for s in (1, 2, 3)]

    def call(module, device, x, small):
        module.add_norm(x, *on(device, *weights, drawn(7, 64, seed=4)), small, 32.0)

    x, small = both(call, drawn(7, 64) + 3, drawn(7, 64, kind=E4M3))
    torch.testing.assert_close(*x, atol=4e-3, rtol=2e-3)
    assert_rounded_alike(*small)
    torch.testing.assert_close(small[0].float() / 32, x[0].float(), atol=1e-3, rtol=0.07)


def e4m3_product(columns, inner, *, bias=True):
    return Product(
        weight=drawn(columns, inner, seed=1, scale=100.0, kind=E4M3),
        of_rows=torch.tensor(1 / 16, device=DEVICE),
        of_weight=torch.tensor(0.1 / inner**0.5, device=DEVICE),
        bias_N=drawn(columns, seed=2, scale=5.0) if bias else None,
    )


def product_on(device, product):
    values = {name: getattr(product, name) for name in Product.__dataclass_fields__}
    return Product(**{name: None if value is None else value.to(device) for name, value in values.items()})


@pytest.mark.parametrize(("rows", "columns", "inner"), [(5, 48, 32), (130, 192, 64), (300, 144, 272)])
def test_the_positive_part_of_a_product_of_e4m3_numbers(rows, columns, inner):
    x, product = drawn(rows, inner, scale=10.0, kind=E4M3), e4m3_product(columns, inner)

    def call(module, device, out):
        module.positive_product(x.to(device), product_on(device, product), out)

    ((mine, theirs),) = both(call, drawn(rows, columns, seed=3, kind=E4M3))
    assert_rounded_alike(mine, theirs)
    assert (mine.float() >= 0).all()
    assert 0.2 < (mine.float() > 0).float().mean() < 0.8


@pytest.mark.skipif(DEVICE == "cpu", reason="cuBLASLt needs a GPU")
@pytest.mark.parametrize("rows", [1, 5, 300])
@pytest.mark.parametrize("kind", [E4M3, TYPE])
def test_a_product_of_e4m3_numbers_in_both_types(rows, kind):
    x = drawn(rows, 64, scale=10.0, kind=E4M3)
    product = e4m3_product(48, 64, bias=kind == E4M3)

    def call(module, device, out):
        module.multiply(x.to(device), product_on(device, product), out)

    ((mine, theirs),) = both(call, drawn(rows, 48, seed=3, kind=kind))
    if kind == E4M3:
        assert_rounded_alike(mine, theirs)
    else:
        torch.testing.assert_close(mine, theirs, atol=2e-2, rtol=1e-2)


def test_the_lowest_of_equal_free_tokens_wins_and_log_prob_is_over_all():
    vocabulary, columns = 1000, 1016
    logits = drawn(5, columns, scale=2.0)
    logits[:, vocabulary:] = 50.0  # heads and padding are no tokens
    logits[0, [40, 300, 999]] = 20.0  # a tie
    logits[1, [40, 300, 999]] = 20.0  # a tie whose first two are banned
    banned = torch.zeros(5, 32, dtype=torch.int32, device=DEVICE)
    banned[:, 0] = 3
    plain_kernels.ban(torch.tensor([[0], [40], [2], [2], [2]]), banned)
    plain_kernels.ban(torch.tensor([[0], [300], [2], [2], [2]]), banned)
    banned[4] = -1  # nothing left

    def call(module, device, tokens, log_probs, log_sums):
        module.choose(*on(device, logits, vocabulary, banned), tokens, log_probs, log_sums)

    empty = torch.zeros(5, device=DEVICE)
    (tokens, tokens2), (log_probs, log_probs2), (log_sums, log_sums2) = both(call, empty.int(), empty, empty)
    assert tokens.tolist() == tokens2.tolist()
    assert tokens[[0, 1, 4]].tolist() == [40, 999, 0]
    assert log_probs[4].item() == -np.inf
    torch.testing.assert_close(log_probs, log_probs2, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(log_sums, log_sums2, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_whole_numbers_order_as_the_logits_and_then_by_token(kind):
    vocabulary, columns = 1000, 1016
    logits = drawn(5, columns, scale=3.0, kind=kind)
    logits[0, :4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    logits[1] = -1.5
    banned = torch.zeros(5, 32, dtype=torch.int32, device=DEVICE)
    plain_kernels.ban(torch.tensor([[7], [0], [999], [31], [32]]), banned)

    def call(module, device, keys):
        module.order(*on(device, logits, vocabulary, banned), keys)

    ((mine, theirs),) = both(call, torch.zeros(5, vocabulary, dtype=torch.int32, device=DEVICE))
    assert torch.equal(mine, theirs)
    wide = logits[:, :vocabulary].float().cpu().numpy()
    for row, token in ((0, 7), (2, 999), (3, 31), (4, 32)):
        wide[row, token] = -np.inf
    order = np.argsort(-wide, axis=1, kind="stable")
    last = np.argsort(-mine.numpy().astype(np.int64), axis=1, kind="stable")
    np.testing.assert_array_equal(last[1:4, :900], order[1:4, :900])
    assert last[0, 0] == 2
    assert last[0, -2:].tolist() == [3, 7]  # what is banned comes after the lowest logit


def test_seen_lists_of_any_width_become_bits():
    seen = torch.randint(0, 1000, (3, 300), dtype=torch.int32)
    seen[:, 280:] = 0
    seen[0, :3] = torch.tensor([31, 31, 63])
    start = torch.zeros(3, 32, dtype=torch.int32, device=DEVICE)
    ((mine, theirs),) = both(lambda module, device, bits: module.ban(seen.to(device), bits), start)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("count", [1, 4, 5, 7])
def test_heads_are_sigmoids_and_zero_for_padding(count):
    raw = drawn(130, 20)[:, 3:]
    tokens = torch.randint(0, 2, (130,), dtype=torch.int32)
    empty = torch.zeros(130, count, device=DEVICE)
    ((mine, theirs),) = both(lambda module, device, out: module.heads(*on(device, raw, tokens), out), empty)
    torch.testing.assert_close(mine, theirs)
    assert mine[tokens == 0].abs().sum() == 0
