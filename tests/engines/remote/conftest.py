"""A small model, the engine that servers compute with, and servers that end with their test."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tritonclient.grpc")

from genrec_batch.core.arrays import Batch, Masks
from genrec_batch.core.servers import servers_of
from genrec_batch.engines.onnx.engine import OnnxRuntimeEngine
from genrec_batch.engines.remote.engine import RemoteEngine
from genrec_batch.model.weights import ModelConfig, demo_model, initial_weights
from tests.fakes.triton_server import FakeServer

CONFIG = ModelConfig(vocabulary=75, width=32, ffn=48, layers=2, positions=40, heads=2, features=24, profile=8, video=6)
MODEL = replace(demo_model(CONFIG), weights=initial_weights(CONFIG, 3)).with_catalog(68)


def batch(rows, seed=0, *, given=False, vectors=False, masked=False):
    """Some users, each different."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 9, rows).astype(np.int32)
    tokens = random.integers(1, 68, (rows, 8)).astype(np.int32)
    tokens[np.arange(8) >= lengths[:, None]] = 0
    more = {}
    if vectors:
        more = {
            "profile_BP": random.standard_normal((rows, 8)).astype(np.float32),
            "has_profile_B": random.random(rows) < 0.5,
            "video_BV": random.standard_normal((rows, 6)).astype(np.float32),
            "has_video_B": random.random(rows) < 0.5,
        }
    if masked:
        banned_MV = random.random((3, 75)) < 0.6
        more["masks"] = Masks.of(banned_MV, random.integers(0, 3, rows))
    return Batch(
        dense_BF=random.standard_normal((rows, 24)).astype(np.float32),
        tokens_BS=tokens,
        lengths_B=lengths,
        seen_BX=tokens,
        candidates_BC=random.integers(0, 68, (rows, 12)).astype(np.int32) if given else None,
        **more,
    )


def same(ours, theirs):
    """Whether two rankings are the same to the last bit."""
    return all(
        np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("tokens_BK", "log_prob_BK", "heads_BKH")
    )


@pytest.fixture(scope="session")
def local():
    return OnnxRuntimeEngine(MODEL, device="cpu", precision="fp32", threads=1)


@pytest.fixture
def fleet(local):
    """Start servers, and open engines over them."""
    started, opened = [], []

    def serve(behave=None, **options):
        started.append(FakeServer(MODEL, local, behave=behave, **options))
        return started[-1]

    def engine(*servers, wait=0.5, precision="auto", model=MODEL):
        addresses = ",".join(each if isinstance(each, str) else each.address for each in servers)
        opened.append(RemoteEngine(model, servers_of(f"triton://{addresses}?wait={wait}"), precision=precision))
        return opened[-1]

    yield SimpleNamespace(serve=serve, engine=engine)
    for each in opened:
        each._fleet.close()
    for each in started:
        each.stop()
