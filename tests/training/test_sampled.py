"""The sampled softmax: without bias, and only where the catalog is large."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from genrec_batch.training import inputs, sampled
from genrec_batch.training.device import Place
from genrec_batch.training.loop import Schedule, Trainer
from genrec_batch.training.network import Noise, initial
from genrec_batch.training.sampled import Sampler
from tests.training.test_leaks import CONFIG, VIDEOS, events

KNOWN = np.repeat(np.arange(50), np.arange(50) + 1).astype(np.int32)


def test_a_small_catalog_has_the_full_softmax():
    assert Sampler.of(KNOWN, 100_000) is None
    assert Sampler.of(KNOWN, 100_001) is not None


def test_targets_are_always_in_the_sample_and_popular_videos_are_corrected_most():
    sampler = Sampler.of(KNOWN, 50, sampled_from=10, draws=20)
    found = sampler.sample(np.array([3, 3, 7]), np.random.default_rng(1))
    assert {3, 7} <= set(found.rows_U.tolist())
    assert (np.diff(found.rows_U) > 0).all()
    assert (found.log_q_U <= 0).all()
    assert np.corrcoef(found.rows_U, found.log_q_U)[0, 1] > 0.9  # here, a higher row is a more popular video


def test_a_sample_of_the_whole_catalog_is_the_full_softmax(monkeypatch):
    learned = events(inputs.Events, 40, seed=3)
    rows, order = learned.epoch(1, 0, 8)

    def losses(sampler):
        object.__setattr__(learned, "sampler", sampler)
        trainer = Trainer(
            CONFIG,
            initial(CONFIG, 3),
            items=VIDEOS,
            standard=learned.standard(1, 100),
            schedule=Schedule(peak=1e-3, steps=10),
            place=Place(device=torch.device("cpu"), precision="fp32"),
            dropout=0.0,
            seed=1,
        )
        made = learned.batches(rows, order, seed=1, epoch=0, start=0, unknown=0.0)
        with torch.no_grad():
            return [float(trainer.losses(trainer.placed(batch), Noise(0)).items) for batch in made]

    monkeypatch.setattr(sampled, "DRAWS", 100_000)
    sampler = Sampler.of(learned.whole.tokens_E - 2, VIDEOS, sampled_from=1, draws=100_000)
    for include_seen in (True, False):
        object.__setattr__(learned, "include_seen", include_seen)
        np.testing.assert_allclose(losses(sampler), losses(None), rtol=1e-4)


def test_a_sampled_softmax_learns_the_popularity_of_a_large_catalog():
    random = np.random.default_rng(2)
    popularity = 1 / np.arange(1, 401) ** 1.2
    popularity /= popularity.sum()
    table = torch.zeros(400, requires_grad=True)
    target = torch.from_numpy(random.choice(400, 20_000, p=popularity))
    sampler = Sampler.of(target.numpy().astype(np.int32), 400, sampled_from=1, draws=60)
    optimizer = torch.optim.Adam([table], lr=0.05)
    for _ in range(600):
        some = target[torch.from_numpy(random.integers(0, len(target), 64))]
        sample = sampler.sample(some.numpy(), random)
        column = torch.full((400,), -1, dtype=torch.int64)
        column[torch.from_numpy(sample.rows_U)] = torch.arange(len(sample.rows_U))
        logits = table[torch.from_numpy(sample.rows_U)] - torch.from_numpy(sample.log_q_U)
        loss = torch.nn.functional.cross_entropy(logits.expand(64, -1), column[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = torch.softmax(table.detach(), 0).numpy()
    assert np.abs(np.log(learned[:20] / popularity[:20])).mean() < 0.2
