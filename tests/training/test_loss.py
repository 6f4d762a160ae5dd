"""The losses, compared with PyTorch's own over whole logits; dropout; the network compared with the one that scores."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
from torch.nn import functional

from genrec_batch.engines.torch.network import load_network
from genrec_batch.model.weights import ModelConfig
from genrec_batch.training import finish, loss, network
from genrec_batch.training.heads import Calibration
from genrec_batch.training.inputs import Standard
from genrec_batch.training.loss import Wanted, cross_entropy, head_loss

CPU = torch.device("cpu")


def wanted(random, positions, items, masked):
    """Targets with what is masked at each position, some of it twice, some of it the target."""
    count_P = random.integers(0, masked + 1, positions)
    return Wanted(
        target_P=torch.from_numpy(random.integers(0, items, positions)),
        weight_P=torch.from_numpy((random.random(positions) < 0.8).astype(np.float32)),
        seen_M=torch.from_numpy(random.integers(0, items, 500)),
        seen_start_P=torch.from_numpy(random.integers(0, 400, positions)),
        seen_count_P=torch.from_numpy(count_P),
        masked_P1=np.concatenate([[0], np.cumsum(count_P)]),
    )


def plainly(hidden, table, bias, asked):
    """The same by PyTorch over all logits at once."""
    logits = hidden @ table.T + bias
    mask = torch.zeros(logits.shape, dtype=torch.bool)
    for p in range(len(hidden)):
        start, count = int(asked.seen_start_P[p]), int(asked.seen_count_P[p])
        mask[p, asked.seen_M[start : start + count]] = True
        mask[p, asked.target_P[p]] = False
    each = functional.cross_entropy(logits.masked_fill(mask, -torch.inf), asked.target_P, reduction="none")
    return (each * asked.weight_P).sum()


@pytest.mark.parametrize("masked", [0, 12])
def test_cross_entropy_and_its_gradients_are_those_of_pytorch(monkeypatch, masked):
    monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", 70)  # a few positions at a time
    random = np.random.default_rng(3)
    asked = wanted(random, 17, 30, masked)
    values = []
    for way in (lambda *given: cross_entropy(*given, torch.float32), plainly):
        torch.manual_seed(1)
        given = [torch.randn(17, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)]
        given.append(torch.randn(30, requires_grad=True))
        found = way(*given, asked)
        (2 * found).backward()
        values.append([found.detach(), *(tensor.grad for tensor in given)])
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_heads_are_averaged_over_the_labels_that_are_known():
    nan = float("nan")
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 1.0]])
    labels = torch.tensor([[1.0, 0.0, nan], [nan, 1.0, nan]])
    first = functional.binary_cross_entropy_with_logits(logits[:1, 0], labels[:1, 0])
    second = functional.binary_cross_entropy_with_logits(logits[:, 1], labels[:, 1])
    torch.testing.assert_close(head_loss(logits, labels), (first + second) / 2)
    assert head_loss(logits, torch.full((2, 3), nan)) == 0


def test_dropout_is_the_same_for_the_same_step_and_keeps_the_mean():
    x = torch.ones(400, 50)
    a, b, other = (network.Noise(0.2, 1, *stream)(x) for stream in ((0, 3), (0, 3), (0, 4)))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    assert abs(float(a.mean()) - 1) < 0.02
    assert abs(float((a == 0).float().mean()) - 0.2) < 0.02
    assert network.Noise(0.0)(x) is x


def test_the_exported_weights_score_what_the_training_network_does():
    config = ModelConfig(vocabulary=40, width=32, ffn=48, layers=2, positions=30, heads=4)
    random = np.random.default_rng(5)
    parameters = network.initial(config, 7)
    parameters = {
        n: t + 0.1 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for n, t in parameters.items()
    }
    dense = random.normal(3, 2, (6, config.features)).astype(np.float32)
    dense[:, 5] = 1.0
    standard = Standard.of(dense)
    tokens = random.integers(2, 20, (6, 9))
    last = np.full(6, 9)
    read = network.Read(
        tokens_BS=torch.from_numpy(tokens),
        rows_K=torch.arange(6),
        dense_KF=torch.from_numpy(standard.apply(dense)),
        profile=None,
        video=None,
        wanted_W=torch.from_numpy(np.arange(6) * 10 + last),
    )
    hidden = network.hidden(parameters, config, read, torch.float32, network.Noise(0))
    calibrations = [Calibration(scale=0.5, shift=0.25), Calibration(), Calibration(), Calibration(scale=2.0, shift=-1)]
    added = random.normal(0, 1, 18).astype(np.float32)
    saved = finish.exported(parameters, config, standard, calibrations, items=18, bias_added=added, without=["profile"])
    scoring = load_network(config, saved, CPU)
    with torch.no_grad():
        theirs = scoring(scoring.prefix(torch.from_numpy(dense)), torch.from_numpy(tokens))[:, -1]
        torch.testing.assert_close(theirs, hidden, rtol=1e-4, atol=1e-4)
        logits = hidden @ parameters[network.TOKENS].T + parameters[network.OUTPUT_BIAS]
        torch.testing.assert_close(
            scoring.logits(theirs)[:, 2:20], logits[:, 2:20] + torch.from_numpy(added), rtol=1e-4, atol=1e-4
        )
        assert (scoring.logits(theirs)[:, [0, 1, 20, 39]] < -9000).all()
        heads = network.head_logits(parameters, hidden)
        torch.testing.assert_close(
            scoring.scores(theirs)[:, 0], torch.sigmoid(0.5 * heads[:, 0] + 0.25), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(scoring.scores(theirs)[:, 1], torch.sigmoid(heads[:, 1]), rtol=1e-4, atol=1e-5)
    assert not saved["user_profile_projection.weight"].any()
    assert not saved["feature_projection.weight"][:, 5].any(), "what never varied says nothing"


def test_weights_carried_over_begin_where_the_other_model_ended():
    config = ModelConfig(vocabulary=12, width=16, ffn=16, layers=1, positions=30, heads=2)
    parameters = network.initial(config, 7)
    dense = np.random.default_rng(1).normal(2, 3, (20, config.features)).astype(np.float32)
    standard = Standard.of(dense)
    saved = finish.exported(parameters, config, standard, [Calibration()] * 4, items=10, bias_added=None, without=[])
    old_token = np.array([5, 2, 0, 11], np.int32)  # our first video is their token 5; our third is new
    fresh = network.initial(config, 8)
    begun = finish.carried_over(fresh, saved, standard, old_token, 4)
    torch.testing.assert_close(begun["feature_projection.weight"], parameters["feature_projection.weight"])
    torch.testing.assert_close(
        begun["feature_projection.bias"], parameters["feature_projection.bias"], atol=1e-5, rtol=1e-4
    )
    for ours, theirs in ((2, 5), (3, 2), (5, 11), (0, 0), (1, 1)):
        torch.testing.assert_close(begun[network.TOKENS][ours], parameters[network.TOKENS][theirs])
    assert torch.equal(begun[network.TOKENS][4], fresh[network.TOKENS][4])
