"""The choice of an engine, and the sentence that explains it.

Also tests `engines/precisions`.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch, Ranked
from genrec_batch.core.errors import EngineError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines import choose, precisions, registry
from genrec_batch.engines.decode import Decoding
from genrec_batch.engines.parity import top_overlap
from genrec_batch.model import weights
from genrec_batch.model.trained import Trained
from tests.fakes.engine import PartialEngine

TINY = weights.demo_model(weights.PRESETS["tiny"])
SAMPLE = Batch(
    dense_BF=np.zeros((3, 1024), np.float32),
    tokens_BS=np.array([[5, 6], [7, 0], [0, 0]], np.int32),
    lengths_B=np.array([2, 1, 0], np.int32),
    seen_BX=np.zeros((3, 1), np.int32),
)


class Pretend(PartialEngine):
    """An engine that recommends tokens 2.. from a first token on."""

    name, device = "torch", "cpu"
    has_slate_loop = True

    def __init__(self, precision, first):
        self.precision, self.first = precision, first

    def slate(self, batches, steps, _record=None):
        for batch in batches:
            tokens = np.tile(np.arange(self.first, self.first + steps, dtype=np.int32), (len(batch), 1))
            zeros = np.zeros(tokens.shape, np.float32)
            yield Ranked(tokens_BK=tokens, log_prob_BK=zeros, heads_BKH=np.zeros((*tokens.shape, 4), np.float32))


def chosen(monkeypatch, first_of_bf16, first_of_int8=500, **asked):
    made = {"fp32": Pretend("fp32", 2), "int8-fast": Pretend("int8-fast", first_of_int8)}
    made["bf16"] = Pretend("bf16", first_of_bf16)
    monkeypatch.setattr(choose, "open_engine", lambda _model, *, precision, **_: made[precision])
    monkeypatch.setattr(choose, "fast_precisions", lambda *_: ("int8-fast", "bf16"))
    asked = {"name": "torch", "device": "cpu", "precision": "auto", **asked}
    return choose.select(TINY, SAMPLE, Decoding(top_k=10), **asked)


def test_auto_takes_the_fast_precision_only_while_it_keeps_the_top_10(monkeypatch):
    same = chosen(monkeypatch, 2)
    assert (same.engine.precision, "100.0%" in same.why) == ("bf16", True)
    other = chosen(monkeypatch, 3)  # 9 of 10 in common
    assert (other.engine.precision, "int8-fast 0.0%, bf16 90.0%" in other.why) == ("fp32", True)


def test_auto_takes_the_fastest_precision_that_keeps_the_top_10_and_opens_no_other(monkeypatch):
    fastest = chosen(monkeypatch, None, 2)  # bf16 would fail
    assert (fastest.engine.precision, fastest.check.refused) == ("int8-fast", {})
    second = chosen(monkeypatch, 2, 3)
    assert (second.engine.precision, second.check.overlap, second.check.refused) == ("bf16", 1.0, {"int8-fast": 0.9})
    assert "100.0%" in second.why
    assert "under 98%: int8-fast 90.0%" in second.why


def test_the_engine_of_a_cpu_is_opened_while_the_log_is_read(monkeypatch):
    opened = []
    monkeypatch.setattr(choose, "open_engine", lambda _model, **asked: opened.append(asked) or Pretend("fp32", 2))
    asked = {"name": "torch", "device": "cpu", "precision": "fp32"}
    ahead = choose.Opening(ScoreConfig(engine="torch", device="cpu", precision="fp32"))
    ahead.know(TINY)
    ahead.close()
    assert len(opened) == 1
    chosen = choose.select(TINY, SAMPLE, Decoding(top_k=10), ahead=ahead, **asked)
    assert (len(opened), chosen.engine.precision) == (1, "fp32"), "it is opened twice"


def test_what_is_asked_for_by_name_is_taken_without_a_check(monkeypatch):
    assert chosen(monkeypatch, 500, precision="bf16").engine.precision == "bf16"


def test_overlap_counts_items_not_order_and_ignores_ends():
    a = np.array([[2, 3, 4], [5, 0, 0], [0, 0, 0]])
    b = np.array([[4, 3, 9], [5, 0, 0], [0, 0, 0]])
    assert top_overlap(a, b) == pytest.approx((2 / 3 + 1 + 1) / 3)


def test_auto_without_any_engine_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda _: None)
    message = (
        "--engine auto: none of torch, onnxruntime is installed for cpu; pip install 'genrec-batch[cpu]' or "
        "pip install 'genrec-batch[torch]'"
    )
    with pytest.raises(EngineError, match=re.escape(message)):
        choose.select(TINY, SAMPLE, Decoding(), name="auto", device="cpu", precision="auto")


def test_the_sample_spans_all_lengths():
    lengths = np.arange(8000)[::-1].copy()
    rows = choose.sample_rows(lengths)
    assert len(rows) == 512
    assert (lengths[rows].min(), lengths[rows].max()) == (0, 7999)


@pytest.mark.parametrize(
    ("decoding", "given"), [(Decoding(mode="candidates", num_candidates=290), None), (Decoding(), 290)]
)
def test_candidates_are_compared_by_the_best_of_them(monkeypatch, decoding, given):
    random = np.random.default_rng(5)
    candidates = None if given is None else np.tile(np.arange(2, 2 + given, dtype=np.int32), (16, 1))
    batch = Batch(
        dense_BF=random.random((16, 1024), np.float32),
        tokens_BS=random.integers(2, 300, (16, 5)).astype(np.int32),
        lengths_B=np.full(16, 5, np.int32),
        seen_BX=np.zeros((16, 1), np.int32),
        candidates_BC=candidates,
    )
    other = weights.demo_model(weights.PRESETS["tiny"], seed=1)
    real = choose.open_engine
    monkeypatch.setattr(
        choose, "open_engine", lambda m, *, precision, **rest: real(
            m if precision == "fp32" else other, precision="fp32", **rest
        )
    )  # fmt: skip
    monkeypatch.setattr(choose, "fast_precisions", lambda *_: ("bf16",))
    taken = choose.select(TINY, batch, decoding, name="onnxruntime", device="cpu", precision="auto")
    assert taken.engine.precision == "fp32", taken.why
    assert "100.0%" not in taken.why


@pytest.mark.parametrize(
    ("processor", "taken"),
    [
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16 avx512_vnni", ("int8-fast", "bf16-fast", "bf16")),
        ("vendor_id : AuthenticAMD\nflags : avx512_bf16 avx512_vnni", ("int8-fast", "bf16-fast", "bf16")),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 avx512_vnni", ("int8-fast", "int8")),
        ("vendor_id : GenuineIntel\nflags : avx2", ()),
    ],
)
def test_the_fast_precisions_are_those_measured_on_such_a_processor(monkeypatch, processor, taken):
    monkeypatch.setattr(precisions.Path, "read_text", lambda _: processor)
    monkeypatch.setattr(precisions.Path, "exists", lambda _: True)
    assert precisions.fast_precisions("torch", "cpu", "slate") == taken
    assert precisions.fast_precisions("onnxruntime", "cpu", "slate") == ()


class Woken(Pretend):
    """An engine on a GPU that packs rows and says what it was woken with."""

    device = "cuda:0"

    def __init__(self, precision):
        super().__init__(precision, 2)
        self.batches = []

    def room(self, users):
        return users

    def slate(self, batches, steps, _record=None):
        for batch in batches:
            self.batches.append(len(batch))
            yield from super().slate([batch], steps)


def opening(monkeypatch, make, **asked):
    """Open an engine ahead; return what `select` then takes and what was opened."""
    made = []

    def opened(_model, *, precision, **_):
        made.append(make(precision))
        return made[-1]

    monkeypatch.setattr(choose, "preload", lambda *_: None)
    monkeypatch.setattr(choose, "open_engine", opened)
    ahead = choose.Opening(ScoreConfig(engine="torch", **asked))
    ahead.start()
    ahead.know(TINY)
    given = {"name": "torch", "batch_size": "64", "ahead": ahead, **asked}
    try:
        return choose.select(TINY, SAMPLE, Decoding(top_k=10), **given), made
    finally:
        assert ahead.opened() is None, "an engine that is not taken must be free to go"
        ahead.close()


def test_an_engine_opened_ahead_is_the_one_that_is_taken(monkeypatch):
    found, made = opening(monkeypatch, Woken, device="cuda", precision="fp16")
    assert [found.engine] == made
    assert found.engine.batches == [choose.WARM_UP_USERS]


def test_auto_compares_the_engines_opened_ahead(monkeypatch):
    found, made = opening(monkeypatch, Woken, device="cuda", precision="auto")
    assert [engine.precision for engine in made] == ["fp32", "fp16"]
    assert found.engine is made[1]


def test_nothing_is_opened_ahead_on_a_cpu(monkeypatch):
    found, made = opening(monkeypatch, lambda precision: Pretend(precision, 2), device="cpu", precision="fp32")
    assert [found.engine] == made


def test_what_fails_ahead_is_told_where_the_engine_is_asked_for(monkeypatch):
    def broken(_precision):
        raise EngineError("no such GPU")

    with pytest.raises(EngineError, match="no such GPU"):
        opening(monkeypatch, broken, device="cuda", precision="fp16")


def test_decode_auto_takes_what_the_model_s_validation_found(model_dir, tmp_path):
    assert choose.decoding_of(ScoreConfig(), weights.load(model_dir)).mode == "slate"  # nothing says otherwise
    trained = Trained(decode="candidates", seen_masked=True, max_events=50, heads=(), catalog_sha256="")
    config = weights.PRESETS["tiny"]
    weights.save(tmp_path / "m", config, weights.initial_weights(config, 3), trained=True, card="", training=trained)
    loaded = weights.load(tmp_path / "m")
    assert loaded.training == trained
    assert loaded.fingerprint != weights.load(model_dir).fingerprint  # other rows, so no run is continued with it
    assert choose.decoding_of(ScoreConfig(), loaded).mode == "candidates"
    assert choose.decoding_of(ScoreConfig(top_k=200), loaded).num_candidates == 200
    assert choose.decoding_of(ScoreConfig(decode="slate"), loaded).mode == "slate"
    assert choose.decoding_of(ScoreConfig(beam_width=4), loaded).mode == "slate"
