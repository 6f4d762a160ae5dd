"""The stages of an engine's work: calls that the host makes, and a device's marks on the host's clock."""

from __future__ import annotations

import time

import numpy as np
import pytest

from genrec_batch.core.arrays import Ranked
from genrec_batch.engines import timing
from genrec_batch.engines.decode import Decoding, recommend_all

torch = pytest.importorskip("torch")

from genrec_batch.engines.torch.engine import TorchEngine
from genrec_batch.model import weights
from tests.engines.test_decode import CONFIG, make_batch
from tests.fakes.engine import PartialEngine

WAYS = {
    "slate": (Decoding(top_k=4), ["copy in", "prefill", "decode", "copy out"]),
    "beam": (Decoding(top_k=4, beam_width=3), ["copy in", "prefill", "decode", "copy out"]),
    "candidates": (Decoding(mode="candidates", num_candidates=6), ["copy in", "prefill", "decode"]),
}


@pytest.fixture(scope="module")
def engine():
    return TorchEngine(weights.demo_model(CONFIG))


@pytest.mark.parametrize(("decoding", "stages"), WAYS.values(), ids=WAYS)
def test_every_way_to_decode_is_told_in_pieces_that_follow_each_other(engine, decoding, stages):
    batches = [make_batch([5, 0, 9]), make_batch([3, 2], seed=1)]
    plain = list(recommend_all(engine, batches, decoding))
    told, began = [], time.perf_counter()
    found = list(recommend_all(engine, batches, decoding, lambda *args, **rest: told.append((*args, rest))))
    for mine, theirs in zip(found, plain, strict=True):
        np.testing.assert_array_equal(mine.tokens_BK, theirs.tokens_BK)
        np.testing.assert_array_equal(mine.heads_BKH, theirs.heads_BKH)
    assert [piece[0] for piece in told] == stages * 2  # ten decode calls are one piece
    moments = [moment for piece in told for moment in piece[1:3]]
    assert moments == sorted(moments)
    assert began <= moments[0] <= moments[-1] <= time.perf_counter()
    decoded = {"slate": [3 * 4, 2 * 4], "beam": [3 * 4 * 3, 2 * 4 * 3], "candidates": [3 * 6, 2 * 6]}
    name = next(name for name, way in WAYS.items() if way[0] is decoding)
    assert [piece[3]["rows"] for piece in told if piece[0] == "decode"] == decoded[name]


def test_nobody_listens_after_a_batch_that_failed(engine):
    with pytest.raises(ValueError, match="positions"):
        list(recommend_all(engine, [make_batch([39])], Decoding(top_k=30), lambda *_, **__: None))
    told = []
    list(recommend_all(engine, [make_batch([3])], Decoding(top_k=2), lambda *args, **_: told.append(args[0])))
    assert told == ["copy in", "prefill", "decode", "copy out"]


def test_an_engine_that_does_not_tell_where_its_copy_ends_is_timed_without_it():
    class Plain(PartialEngine):
        name, device, precision = "plain", "cpu", "fp32"

        def prefill(self, batch, **_):
            return len(batch)

        def decode(self, state, tokens_B=None):
            pass

        def collect(self, state):
            none = np.zeros((state, 0), np.float32)
            return Ranked(tokens_BK=none.astype(np.int32), log_prob_BK=none, heads_BKH=np.zeros((state, 0, 4)))

    told = []
    list(recommend_all(Plain(), [make_batch([3])], Decoding(top_k=2), lambda *args, **_: told.append(args[0])))
    assert told == ["prefill", "decode", "copy out"]


class Device:
    """A device whose clock began at another moment and runs at another speed; the host looks late."""

    def __init__(self, speed=1.0):
        self.now_s, self.speed = 1000.0, speed

    def mark(self):
        return DeviceMark(self, self.now_s)


class DeviceMark:
    def __init__(self, device, at_s):
        self.device, self.at_s = device, at_s

    def synchronize(self):
        self.device.now_s = max(self.device.now_s, self.at_s)

    def elapsed_time(self, later):
        return 1e3 * (later.at_s - self.at_s) * self.device.speed


@pytest.mark.parametrize("speed", [1.0, 1 + 3e-5, 1 - 3e-5])
def test_marks_are_placed_on_the_hosts_clock_however_late_it_looks(monkeypatch, speed):
    device, told, late = Device(speed), [], iter([0.0, 0.02, 0.0, 0.5, 0.003, 0.0] * 400)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: device.now_s - 900.0)
    clock = timing.DeviceClock(lambda *args, **rest: told.append((*args, rest["lane"])), device.mark())
    for _ in range(2000):
        laps = clock.batch()
        made = [DeviceMark(device, device.now_s + 0.01 * i) for i in range(7)]
        truth = [mark.at_s - 900.0 for mark in made]
        laps.of_batch(made, users=2, items=4, bytes_in=8, bytes_out=8)
        device.now_s = made[-1].at_s + next(late)
        laps.report()
        (_, start, stop, _), (_, _, _, _), (_, _, decoded, _), (_, _, left, _) = told[-4:]
        assert left <= device.now_s - 900.0
        assert [start, stop, decoded, left] == pytest.approx([*truth[:2], truth[4], truth[6]], abs=2e-3)
    for lane in ("device in", "device", "device out"):
        moments = [moment for piece in told if piece[3] == lane for moment in piece[1:3]]
        assert moments == sorted(moments)
