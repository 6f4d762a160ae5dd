"""The size of a batch: a constant, bounded by the free memory of the device."""

import dataclasses

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch, Masks
from genrec_batch.core.errors import ConfigError
from genrec_batch.engines import batch_size, choose
from genrec_batch.engines.decode import Decoding
from genrec_batch.model import weights
from tests.fakes.engine import PartialEngine

TINY = weights.demo_model(weights.PRESETS["tiny"])
REFERENCE = weights.demo_model(weights.PRESETS["reference"])
DECODING = Decoding(top_k=3)


class Device(PartialEngine):
    """An engine on some device with so much free memory."""

    name = "torch"

    def __init__(self, device="cuda:0", *, free_gib=None, packed=0, precision="fp16"):
        self.device, self.free_gib, self.packed, self.precision = device, free_gib, packed, precision

    def free_bytes(self):
        return None if self.free_gib is None else int(self.free_gib * (1 << 30))

    def room(self, users):
        return users * self.packed


def sample(users=20, longest=8):
    lengths = (np.arange(users) % (longest + 1)).astype(np.int32)
    lengths[0] = longest
    tokens = np.where(np.arange(longest) < lengths[:, None], 5, 0).astype(np.int32)
    return Batch(
        dense_BF=np.zeros((users, 1024), np.float32),
        tokens_BS=tokens,
        lengths_B=lengths,
        seen_BX=tokens,
        profile_BP=np.zeros((users, 256), np.float32),
        has_profile_B=np.ones(users, np.bool_),
    )


def users(engine, decoding=DECODING, model=REFERENCE, **given):
    return batch_size.choose_size(engine, model, sample(**given), decoding).users


def test_the_constant_is_that_of_the_kind_of_device():
    found = batch_size.choose_size(Device(), TINY, sample(), DECODING)
    assert (found.users, found.why) == (8192, "8,192 users a batch: fixed for cuda")
    assert users(Device("cpu")) == 512


def test_a_mask_needs_room_for_a_second_copy_of_the_logits():
    rules = Masks.of(np.zeros((1, REFERENCE.config.vocabulary), np.bool_), np.zeros(20))
    masked = dataclasses.replace(sample(), masks=rules)
    logits_gib = 8192 * REFERENCE.config.vocabulary * 4 / 2**30
    needed_gib = batch_size._expected_bytes(Device(), REFERENCE, sample(), DECODING, 8192) / 2**30
    for free_gib, expected in ((needed_gib + 0.9 * logits_gib, 4096), (needed_gib + 1.1 * logits_gib, 8192)):
        found = batch_size.choose_size(Device(free_gib=free_gib), REFERENCE, masked, DECODING)
        assert found.users == expected
        assert batch_size.choose_size(Device(free_gib=free_gib), REFERENCE, sample(), DECODING).users == 8192


def test_each_beam_is_a_row_of_the_batch():
    beams = dataclasses.replace(DECODING, beam_width=8)
    assert users(Device("cpu"), beams) == 512 // 8
    found = batch_size.choose_size(Device(free_gib=1000), TINY, sample(), beams)
    assert (found.users, found.why) == (1024, "1,024 users a batch with 8 beams each: fixed for cuda")
    assert users(Device("cpu"), dataclasses.replace(DECODING, beam_width=1000)) == 1
    assert users(Device("cpu"), dataclasses.replace(DECODING, mode="candidates", beam_width=8)) == 512


def test_a_batch_is_halved_until_it_fits_the_free_memory():
    assert users(Device(free_gib=16), longest=50) == 8192  # on an H200 such a batch takes 8 to 10 GiB
    found = batch_size.choose_size(Device(free_gib=6), REFERENCE, sample(longest=50), DECODING)
    assert found.users == 4096
    assert found.why.endswith("8,192 would not fit the 6.0 GiB that are free")
    assert users(Device(free_gib=6, precision="fp32"), longest=50) == 2048
    assert users(Device(free_gib=6), longest=5) == 8192
    assert users(Device(free_gib=0.01), longest=50) == batch_size.LEAST


def test_packed_rows_count_as_what_a_batch_has_room_for():
    padded, packed = Device(free_gib=60), Device(free_gib=60, packed=128)
    assert users(padded, longest=1000) < users(packed, longest=1000) == 8192


def test_beams_that_no_memory_holds_are_refused_with_what_fits():
    reference = weights.PRESETS["reference"]
    beams = dataclasses.replace(DECODING, top_k=10, beam_width=1000)
    batch_size.check_memory(reference, 24, beams, memory_bytes=8 << 30)
    with pytest.raises(ConfigError, match=r"--beam-width 1000 needs about 3\.\d GiB .* has 2\.0 GiB") as caught:
        batch_size.check_memory(reference, 24, beams, memory_bytes=2 << 30)
    fitting = int(str(caught.value).rsplit("about ", 1)[1].split()[0].replace(",", ""))
    batch_size.check_memory(
        reference, 24, dataclasses.replace(beams, beam_width=int(0.98 * fitting)), memory_bytes=2 << 30
    )
    assert 1 << 28 < batch_size.machine_bytes() < 1 << 50


class OneSize(Device):
    """An engine that is built for one number of rows."""

    name, rows = "tensorrt", 2048

    def resize(self, rows):
        self.rows = rows

    def expect(self, **run):
        self.run = run


def test_an_engine_for_one_size_takes_it_or_what_fits():
    found = batch_size.choose_size(OneSize(free_gib=140), REFERENCE, sample(), DECODING)
    assert (found.users, found.why) == (2048, "2,048 users a batch: tensorrt builds its engines for one size")
    found = batch_size.choose_size(OneSize(free_gib=1), REFERENCE, sample(longest=50), DECODING)
    assert 64 <= found.users < 2048
    assert "2,048 would not fit the 1.0 GiB that are free" in found.why


@pytest.mark.parametrize(("asked", "users"), [("auto", 2048), ("512", 512)])
def test_a_run_gets_the_size_and_so_does_the_engine(monkeypatch, asked, users):
    engine = OneSize()
    monkeypatch.setattr(choose, "open_engine", lambda *_, **__: engine)
    given = {"name": "tensorrt", "device": "cuda:0", "precision": "fp16", "batch_size": asked}
    found = choose.select(TINY, sample(), DECODING, **given)
    assert (found.batch_users, engine.rows) == (users, users)
    lengths = sample().lengths_B
    assert engine.run == {"longest": lengths.max(), "mean": lengths.mean() + 1, "steps": DECODING.top_k}
    choose.select(TINY, sample(), DECODING, **given, longest=50, mean=7.5)
    assert engine.run == {"longest": 50, "mean": 8.5, "steps": DECODING.top_k}, "of the run, not of its sample"
