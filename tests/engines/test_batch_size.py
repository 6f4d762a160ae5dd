"""The size of a batch on a GPU: measured once with a clock of the test's own, kept, bounded by memory."""

import dataclasses

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch, Ranked
from genrec_batch.core.errors import ConfigError, DeviceMemoryError
from genrec_batch.engines import batch_size, choose
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.plan_cache import EngineCache
from genrec_batch.model import weights
from tests.fakes.engine import PartialEngine

TINY = weights.demo_model(weights.PRESETS["tiny"])
DECODING = Decoding(top_k=3)


class Gpu(PartialEngine):
    """An engine whose batches take `fixed_s` and then `user_s` for each user; its clock is the only one."""

    name, device, precision = "torch", "cuda:0", "fp16"
    has_slate_loop = True

    def __init__(self, *, fixed_s=0.01, user_s=1e-5, fits=1 << 20, free=1 << 40, card="a card"):
        self.now, self.tried = 0.0, []
        self.fixed_s, self.user_s, self.fits, self.free, self.card = fixed_s, user_s, fits, free, card

    def clock(self):
        return self.now

    def free_bytes(self):
        return self.free

    def hardware(self):
        return self.card

    def slate(self, batches, steps, _record=None):
        for batch in batches:
            if len(batch) > self.fits:
                raise DeviceMemoryError("out of memory")
            self.tried.append(len(batch))
            self.now += self.fixed_s + self.user_s * len(batch)
            zeros = np.zeros((len(batch), steps), np.float32)
            yield Ranked(
                tokens_BK=zeros.astype(np.int32), log_prob_BK=zeros, heads_BKH=np.zeros((*zeros.shape, 4), np.float32)
            )


def sample(users=512):
    lengths = (np.arange(users) % 9).astype(np.int32)
    tokens = np.where(np.arange(8) < lengths[:, None], 5, 0).astype(np.int32)
    return Batch(
        dense_BF=np.zeros((users, 1024), np.float32),
        tokens_BS=tokens,
        lengths_B=lengths,
        seen_BX=tokens,
        profile_BP=np.zeros((users, 256), np.float32),
        has_profile_B=np.ones(users, np.bool_),
    )


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "cache")


def chosen(engine, cache, batch=None, decoding=DECODING):
    return batch_size.choose(engine, TINY, batch or sample(), decoding, cache=cache, clock=engine.clock)


def test_the_sweep_ends_where_a_larger_batch_no_longer_pays(cache):
    engine = Gpu(fixed_s=0.01)  # 1024: 20.24 ms = 50,593 users/s
    found = chosen(engine, cache)
    assert found.users == 16384
    assert list(found.users_per_s) == [1024, 2048, 4096, 8192, 16384]
    assert found.users_per_s[1024] == pytest.approx(1024 / (0.01 + 1e-5 * 1024), abs=1)
    found = chosen(Gpu(fixed_s=0.001, card="another"), cache)  # 91,103; 95,344; 97,617 (2.4% more); not tried beyond
    assert (found.users, list(found.users_per_s)) == (2048, [1024, 2048, 4096])
    assert found.why == (
        "2,048 users a batch: users/s at 1,024: 91,103, 2,048: 95,344, 4,096: 97,617; 4,096 is not 3% faster"
    )


def test_the_first_run_of_a_size_only_warms_up(cache):
    engine = Gpu()
    run = engine.slate

    def slow_at_first(batches, steps, _record=None):
        batches = list(batches)
        engine.now += 0 if len(batches[0]) in engine.tried else 10.0
        yield from run(batches, steps)

    engine.slate = slow_at_first
    assert chosen(engine, cache).users_per_s[1024] == pytest.approx(50_593, abs=1)


def test_the_next_run_takes_it_at_once(cache):
    first = chosen(Gpu(), cache)
    engine = Gpu()
    again = chosen(engine, EngineCache(cache.directory))
    assert engine.tried == []
    assert (again.users, again.users_per_s) == (first.users, first.users_per_s)
    assert again.why == f"{first.why}, as measured before"


@pytest.mark.parametrize("change", ["card", "precision", "engine", "decoding", "longer histories", "model"])
def test_what_changes_the_speed_is_measured_anew(cache, change, monkeypatch):
    chosen(Gpu(), cache)
    engine, batch, decoding = Gpu(), sample(), DECODING
    if change == "card":
        engine.card = "a newer card"
    elif change == "precision":
        engine.precision = "bf16"
    elif change == "engine":
        engine.name = "onnxruntime"
    elif change == "decoding":
        decoding = Decoding(top_k=4)
    elif change == "longer histories":
        batch = dataclasses.replace(batch, tokens_BS=np.tile(batch.tokens_BS, 4), lengths_B=batch.lengths_B * 4)
    else:
        monkeypatch.setattr(f"{__name__}.TINY", weights.demo_model(weights.PRESETS["lightweight"]))
    chosen(engine, cache, batch, decoding)
    assert engine.tried


def test_a_size_that_does_not_fit_ends_the_sweep(cache):
    found = chosen(Gpu(fits=4096), cache)
    assert found.users == 4096
    assert found.why.endswith("8,192 ran out of memory")
    engine = Gpu(free=200 << 20, card="small")
    found = chosen(engine, cache)
    assert max(engine.tried) == found.users
    assert found.why.endswith("would not fit the 0.2 GiB that are free")
    with pytest.raises(DeviceMemoryError):
        chosen(Gpu(fits=10, card="tiny"), cache)


def test_a_small_run_and_a_cpu_take_the_constant(cache):
    engine = Gpu()
    assert chosen(engine, cache, sample(511)).users == batch_size.GPU_USERS
    engine.device = "cpu"
    assert chosen(engine, cache).users == batch_size.CPU_USERS == 256
    assert engine.tried == []
    assert list(cache.directory.iterdir()) == []


def test_each_beam_is_a_row_of_the_batch(cache):
    beams = dataclasses.replace(DECODING, beam_width=8)
    engine = Gpu()
    engine.device = "cpu"
    assert chosen(engine, cache, decoding=beams).users == batch_size.CPU_USERS // 8
    assert chosen(engine, cache, decoding=dataclasses.replace(DECODING, beam_width=1000)).users == 1


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


class OneSize(Gpu):
    """An engine that is built for one number of rows."""

    name, rows = "tensorrt", 2048

    def resize(self, rows):
        self.rows = rows

    def expect(self, **run):
        self.run = run


def test_an_engine_for_one_size_takes_it_or_what_fits(cache):
    engine = OneSize()
    found = chosen(engine, cache, sample(20))
    assert (found.users, engine.tried) == (2048, [])
    assert found.why == "2,048 users a batch: tensorrt builds its engines for one size"
    found = chosen(OneSize(free=20 << 20), cache, sample(20))
    assert 64 <= found.users < 2048
    assert "2,048 would not fit the 0.0 GiB that are free" in found.why


@pytest.mark.parametrize(("asked", "users"), [("auto", 2048), ("512", 512)])
def test_a_run_gets_the_size_and_so_does_the_engine(monkeypatch, asked, users):
    engine = OneSize()
    monkeypatch.setattr(choose, "open_engine", lambda *_, **__: engine)
    given = {"name": "tensorrt", "device": "cuda:0", "precision": "fp16", "batch_size": asked}
    found = choose.select(TINY, sample(20), DECODING, **given)
    assert (found.batch_users, engine.rows) == (users, users)
    lengths = sample(20).lengths_B
    assert engine.run == {"longest": lengths.max(), "mean": lengths.mean() + 1, "steps": DECODING.top_k}
    choose.select(TINY, sample(20), DECODING, **given, longest=50, mean=7.5)
    assert engine.run == {"longest": 50, "mean": 8.5, "steps": DECODING.top_k}, "of the run, not of its sample"
