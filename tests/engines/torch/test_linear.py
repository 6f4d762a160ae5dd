"""Products in 8-bit integers: close to the exact ones in every row, and exact where that is promised."""

import pytest

torch = pytest.importorskip("torch")

from genrec_batch.engines.torch import device, linear
from genrec_batch.engines.torch.linear import STEP, Int8Linear, Linear, PairLinear, roomy

pytestmark = pytest.mark.skipif(not device.fast_int8(), reason="this processor has no AVX-512 VNNI")
WEIGHT, BIAS = torch.randn(48, 64, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 1, 48)


def rows(count: int) -> torch.Tensor:
    x = torch.randn(count, 64, generator=torch.Generator().manual_seed(2))
    return x * torch.logspace(-3, 3, count)[:, None]  # rows of very different size


def by_hand(x: torch.Tensor) -> torch.Tensor:
    """The slow twin: whole numbers in fp64, a scale per row and per output."""
    scale_x, scale_w = x.abs().amax(1, keepdim=True).double() / 127, WEIGHT.abs().amax(1, keepdim=True).double() / 127
    return (x / scale_x).round() @ (WEIGHT / scale_w).round().T * scale_x * scale_w.T + BIAS


def error(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Largest difference of each row, as a share of the row's largest number."""
    return (found - expected).abs().amax(1) / expected.abs().amax(1)


def test_it_is_what_whole_numbers_give():
    x = rows(20)
    assert error(Int8Linear(WEIGHT, BIAS)(x), by_hand(x)).max() < 0.005  # a half may round either way
    assert error(Int8Linear(WEIGHT, BIAS)(x), x @ WEIGHT.T + BIAS).max() < 0.03


def test_positive_numbers_have_twice_the_levels():
    x = rows(20).abs()
    exact = x @ WEIGHT.T + BIAS
    assert error(Int8Linear(WEIGHT, BIAS, positive=True)(x), exact).max() < 0.02
    relu = Int8Linear(WEIGHT, BIAS, positive=True)(x, relu=True)
    assert relu.min() == 0
    assert error(relu, exact.clamp(min=0)).max() < 0.02


def test_a_row_has_the_same_bits_alone():
    x, product = rows(9), Int8Linear(WEIGHT, BIAS)
    together = product(x)
    for row in range(len(x)):
        assert torch.equal(product(x[row : row + 1])[0], together[row])


def test_the_last_outputs_are_exact_where_asked():
    x = rows(20)
    found, exact = Int8Linear(WEIGHT, BIAS, exact=16)(x), x @ WEIGHT.T + BIAS
    torch.testing.assert_close(found[:, 32:], exact[:, 32:], rtol=1e-5, atol=1e-4)
    assert not torch.allclose(found[:, :32], exact[:, :32], rtol=1e-5, atol=1e-4)


def test_nothing_gives_the_bias_and_what_is_not_a_number_stays_none():
    product = Int8Linear(WEIGHT, BIAS)
    assert torch.equal(product(torch.zeros(3, 64)), BIAS.expand(3, -1))
    assert torch.equal(product(torch.zeros(3, 64), relu=True), BIAS.clamp(min=0).expand(3, -1))
    x = torch.zeros(2, 64)
    x[1, 5] = torch.nan
    assert torch.isnan(product(x)).all(1).tolist() == [False, True]


def test_an_output_without_weights_is_its_bias():
    weight = WEIGHT.clone()
    weight[3] = 0
    assert Int8Linear(weight, BIAS)(rows(4))[:, 3].tolist() == [BIAS[3].item()] * 4
    assert linear.Linear(weight, BIAS, torch.float32)(rows(4))[:, 3].tolist() == [BIAS[3].item()] * 4


def test_pairs_are_nearly_exact_whatever_type_comes_in():
    product = PairLinear(WEIGHT, BIAS)
    for dtype in (torch.float32, torch.bfloat16):
        x = rows(200).to(dtype)
        found, exact = product(x), x.float() @ WEIGHT.T + BIAS
        assert found.dtype == torch.float32
        assert error(found, exact).max() < 0.0005
        assert error(product(x, relu=True), exact.clamp(min=0)).max() < 0.0005
    x[1, 5] = torch.nan
    assert torch.isnan(product(x)).all(1).tolist() == [False, True] + [False] * 198
    assert torch.equal(product(torch.zeros(3, 64)), BIAS.expand(3, -1))


@pytest.mark.parametrize("product", [Int8Linear, PairLinear, Linear])
def test_rows_with_room_behind_them_are_multiplied_in_whole_steps_and_give_the_same(monkeypatch, product):
    args = (WEIGHT, BIAS, torch.bfloat16) if product is Linear else (WEIGHT, BIAS)
    made, met = product(*args), []
    wide = 64 if product is not PairLinear else 128
    numbers = torch.bfloat16 if product is Linear else torch.uint8

    def sums(*given: torch.Tensor) -> torch.Tensor:
        return made(given[0]) if product is Linear else made.sums(*given)

    def filled(count: int, width: int, *, room: bool) -> torch.Tensor:
        drawn = torch.randint(0, 255, (count, width), generator=torch.Generator().manual_seed(count)).to(numbers)
        return roomy(count, width, numbers).copy_(drawn) if room else drawn

    theirs = linear._stepped

    def watched(*rows_of: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = theirs(*rows_of)
        met.append(len(found[0]))
        return found

    monkeypatch.setattr(linear, "_stepped", watched)
    for count in (1, 31, 32, 33, 70):
        widths = (64, wide) if product is PairLinear else (64,)
        with_room, without = ([filled(count, width, room=room) for width in widths] for room in (True, False))
        found, expected = sums(*with_room), sums(*without)
        assert found.shape == (count, 48)
        assert torch.equal(found, expected)
        assert met == [-(-count // STEP) * STEP, count]
        met.clear()
    one_row = roomy(1, 64, numbers)[:, :64]
    assert len(theirs(one_row)[0]) == STEP
    assert len(theirs(torch.empty(64, 64, dtype=numbers)[:40])[0]) == 64
    assert len(theirs(torch.empty(40, 64, dtype=numbers)[:, :32])[0]) == 40
