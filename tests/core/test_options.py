"""`options` and `verify_options`, and their `errors`: checks that name the flag, times, blends."""

from __future__ import annotations

import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import HistoryConfig, ScoreConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tensorflow"}, r"--engine 'tensorflow' is not one of auto, tensorrt, onnxruntime, torch"),
        ({"engine": "onnx"}, "--engine"),
        ({"precision": "fp23"}, "Did you mean 'fp32'"),
        ({"decode": "slates"}, "Did you mean 'slate'"),
        ({"top_k": 0}, "--top-k 0: at least 1"),
        ({"max_events": 0}, "--max-events 0"),
        ({"batch_size": "many"}, "--batch-size 'many'"),
        ({"device": "gpu"}, "--device 'gpu'"),
        ({"weights": "recomendation=1"}, "Did you mean 'recommendation'"),
        ({"weights": "engagement=x"}, "not NAME=NUMBER"),
        ({"weights": "engagement=nan"}, "not a finite number"),
        ({"stall_limit": float("nan")}, "--stall-limit nan: at least 0"),
        ({"weights": "engagement=1,engagement=2"}, "given twice"),
        *(
            ({"weights": f"engagement={value}"}, "not a finite number from -1,000,000")
            for value in ("nan", "inf", "1e308", "-1e7")
        ),
        ({"as_of": "yesterday"}, "--as-of 'yesterday'"),
        ({"decode": "candidates", "beam_width": 2}, "--beam-width"),
        ({"decode": "candidates", "num_candidates": 3}, "--num-candidates 3 is less than --top-k 10"),
        ({"max_rejects": 2.0}, "--max-rejects"),
        ({"limit": 0}, "--limit"),
    ],
)
def test_a_bad_option_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        ScoreConfig(**options)


@pytest.mark.parametrize(
    "text", ["2026-04-30T10:00:00", "2026-04-30T10:00:00Z", "2026-04-30 10:00", "2026-04-30T12:00:00+02:00"]
)
def test_as_of_is_one_moment_however_written(text):
    assert HistoryConfig(as_of=text).as_of_us() == 1_777_543_200_000_000


def test_a_blend_is_read_by_name():
    config = ScoreConfig(weights="recommendation=0.4, log_prob=-1e-1")
    assert config.blend() == {"recommendation": 0.4, "log_prob": -0.1}
