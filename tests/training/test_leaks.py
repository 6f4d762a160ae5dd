"""No row tells its own targets: on a log drawn at random, users who were held out stay at chance.

Validation at chance would prove nothing, since a model that leaks is at chance there, too: what counts is the loss of
held-out users computed as in training.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from genrec_batch.core.arrays import HEADS, SideTable
from genrec_batch.events.histories import Histories
from genrec_batch.events.splits import Cuts
from genrec_batch.model.weights import ModelConfig
from genrec_batch.training.device import Place
from genrec_batch.training.inputs import Events
from genrec_batch.training.loop import Schedule, Trainer
from genrec_batch.training.network import Noise, initial
from genrec_batch.training.rows import Window

VIDEOS, USERS, EVENTS = 40, 1500, 16
LIKED = 0.3
CONFIG = ModelConfig(vocabulary=VIDEOS + 2, width=32, ffn=64, layers=1, positions=64, heads=2)
WINDOW = Window(history=4, horizon=4)
EPOCHS, BATCH = 5, 32


class Leaking(Events):
    """The control: features of the whole window, its targets too."""

    def _cuts(self, rows):
        honest = super()._cuts(rows)
        return Cuts(user_N=honest.user_N, place_N=honest.stop_N, stop_N=honest.stop_N, as_of_us_N=honest.as_of_us_N)


def log(users, seed):
    """Videos, likes and times that depend on nothing."""
    random = np.random.default_rng(seed)
    count = users * EVENTS
    offsets_N1 = np.arange(users + 1) * EVENTS
    code_E = random.integers(0, VIDEOS, count).astype(np.int32)
    liked_E = (random.random(count) < LIKED).astype(np.int8)
    whole = Histories(
        offsets_N1=offsets_N1,
        time_us_E=10**15 + np.cumsum(random.integers(1, 10**9, count)),
        tokens_E=code_E + np.int32(2),
        video_code_E=code_E,
        video_row_E=code_E,
        session_E=None,
        numbers={},
        flags={"is_liked": liked_E},
        categories={},
        total_events_N=np.full(users, EVENTS),
        user_row_N=np.full(users, -1, np.int32),
        as_of_us_N=np.full(users, 2 * 10**15),
        seen=None,
    )
    labels_EH = np.full((count, len(HEADS)), np.nan, np.float32)
    labels_EH[:, HEADS.index("engagement")] = liked_E
    return whole, labels_EH


VIDEO_TABLE = SideTable(  # a feature slot for each video: as telling as a table can be
    hashed_R200=np.eye(VIDEOS, 200, dtype=np.float32),
    has_hashed_R=np.ones(VIDEOS, np.bool_),
    dense_RD=None,
    has_dense_R=None,
    creator_R=np.full(VIDEOS, -1, np.int32),
    category_R=np.full(VIDEOS, -1, np.int32),
)


def events(kind, users, seed):
    whole, labels_EH = log(users, seed)
    made = Events.of(whole, labels_EH, users=None, videos=VIDEO_TABLE, include_seen=True, window=WINDOW, kernel="numpy")
    return kind(**{field.name: getattr(made, field.name) for field in fields(made)})


def losses_of_strangers(kind, block=1):
    """Train on some users; return the losses of others, made of rows as in training: videos, and the like."""
    learned, strangers = events(kind, USERS, seed=1), events(kind, 600, seed=2)
    trainer = Trainer(
        CONFIG,
        initial(CONFIG, 3),
        items=VIDEOS,
        standard=learned.standard(1, 1000),
        schedule=Schedule(peak=3e-3, steps=EPOCHS * -(-USERS // BATCH)),
        place=Place(device=torch.device("cpu"), precision="fp32"),
        dropout=0.0,
        seed=1,
    )
    for epoch in range(EPOCHS):
        rows, order = learned.epoch(1, epoch, BATCH)
        for _ in trainer.train(
            learned.batches(rows, order, seed=1, epoch=epoch, start=0, unknown=0.0, block=block), epoch=epoch, start=0
        ):
            pass
    items, positions, heads, labels = 0.0, 0.0, 0.0, 0
    with torch.no_grad():
        for epoch in range(4):
            rows, order = strangers.epoch(9, epoch, BATCH)
            for batch in strangers.batches(rows, order, seed=9, epoch=epoch, start=0, unknown=0.0, block=block):
                found = trainer.losses(trainer.placed(batch), Noise(0))
                items, positions = items + float(found.items), positions + found.positions
                heads, labels = heads + float(found.heads) * len(batch.labels_QH), labels + len(batch.labels_QH)
    return items / positions, heads / labels


@pytest.fixture(scope="module", params=[1, WINDOW.horizon], ids=["in order", "on sets"])
def measured(request):
    torch.set_num_threads(1)
    return {kind.__name__: losses_of_strangers(kind, request.param) for kind in (Events, Leaking)}


def test_videos_of_strangers_stay_at_chance(measured):
    assert abs(measured["Events"][0] - math.log(VIDEOS)) < 0.01, measured


def test_the_control_sees_the_videos_that_it_is_to_predict(measured):
    assert measured["Leaking"][0] < math.log(VIDEOS) - 0.1, measured


def test_likes_of_strangers_stay_at_chance(measured):
    chance = -(LIKED * math.log(LIKED) + (1 - LIKED) * math.log(1 - LIKED))
    assert abs(measured["Events"][1] - chance) < 0.01, measured


def test_the_control_sees_the_likes_that_it_is_to_predict(measured):
    chance = -(LIKED * math.log(LIKED) + (1 - LIKED) * math.log(1 - LIKED))
    assert measured["Leaking"][1] < chance - 0.1, measured


@pytest.mark.parametrize("block", [1, WINDOW.horizon])
def test_masked_videos_leave_chance_among_the_others(block):
    honest = replace(events(Events, 200, seed=5), include_seen=False)
    rows, order = honest.epoch(1, 0, BATCH)
    trainer = Trainer(
        CONFIG,
        {name: torch.zeros_like(tensor) for name, tensor in initial(CONFIG, 3).items()},
        items=VIDEOS,
        standard=honest.standard(1, 100),
        schedule=Schedule(peak=1e-3, steps=1),
        place=Place(device=torch.device("cpu"), precision="fp32"),
        dropout=0.0,
        seed=1,
    )
    with torch.no_grad():
        for batch in honest.batches(rows, order, seed=1, epoch=0, start=0, unknown=0.0, block=block):
            seen_P = zip(batch.seen_start_P, batch.seen_count_P, strict=True)
            distinct_P = np.array([len(set(batch.seen_M[start : start + count])) for start, count in seen_P])
            expected = (np.log(VIDEOS - distinct_P) * batch.weight_P).sum()
            np.testing.assert_allclose(
                float(trainer.losses(trainer.placed(batch), Noise(0)).items), expected, rtol=1e-5
            )
