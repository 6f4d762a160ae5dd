"""`expected`: what a version has to answer, and how far a server may be from it."""

from __future__ import annotations

import json

import pytest

from genrec_batch.core.errors import EngineError, ModelError
from genrec_batch.serving import expected, repository
from genrec_batch.serving.arms import Arms
from genrec_batch.serving.options import ExportConfig
from tests.serving.conftest import SAMPLE, exported
from tests.serving.swapping import broken_weights


def warm_up_of(version):
    return (version.parent / "warmup" / "request").read_bytes()


def test_a_version_of_two_arms_has_answers_of_both_and_gives_them(tmp_path):
    model = SAMPLE / "model"
    arms = (f"control={model}:99.99", f"test={model}:0.01")
    version = repository.export(None, ExportConfig(format="triton", out=str(tmp_path), arm=arms, salt="s"))
    answers = expected.computed(version, warm_up_of(version))
    assert [each["arm"] for each in answers] == ["control", "control", "test", "test"]
    assert [len(each["videos"]) for each in answers] == [10] * 4
    served = Arms.open(version)
    expected.check(served, version)
    (version / expected.EXPECTED_FILE).write_text("[")
    with pytest.raises(ModelError, match=r"expected\.json: damaged"):
        expected.check(served, version)


def test_a_version_without_expected_answers_is_not_compared(sample):
    expected.check(sample.served, sample.version)


def test_a_version_that_answers_otherwise_is_refused(sample, tmp_path):
    answers = expected._answers(sample.version, warm_up_of(sample.version)[4:])
    answers[0]["videos"] = [0] * 10
    (tmp_path / expected.EXPECTED_FILE).write_text(json.dumps(answers))
    with pytest.raises(ModelError, match="only 0% of the answer's videos"):
        expected.check(sample.served, tmp_path)


def test_weights_that_cannot_score_are_found_in_a_process_of_its_own(tmp_path):
    broken_weights(SAMPLE / "model", tmp_path / "broken")
    version = exported(tmp_path / "broken", tmp_path / "repository")
    with pytest.raises((EngineError, ModelError), match="weights of the model"):
        expected.computed(version, warm_up_of(version))
    assert not (version / expected.EXPECTED_FILE).exists()


ANSWER = {"version": "a", "arm": "", "videos": [1, 2, 3, 4], "log_probs": [-1.0, -2.0, -3.0, -4.0]}


@pytest.mark.parametrize(
    ("change", "precision", "said"),
    [
        ({}, "fp32", ""),
        ({"log_probs": [-1.0005, -2.0, -3.0, -4.0]}, "fp32", ""),
        ({"log_probs": [-1.1, -2.0, -3.0, -4.0]}, "fp16", ""),
        ({"videos": [1, 2, 4, 3], "log_probs": [-1.0, -2.0, -9.0, -9.0]}, "fp32", ""),
        ({"version": "b"}, "fp32", "of version 'b', not of 'a'"),
        ({"arm": "test"}, "fp32", "of arm 'test', not of ''"),
        ({"log_probs": [-1.1, -2.0, -3.0, -4.0]}, "fp32", "log_prob is 0.1 from"),
        ({"log_probs": [float("nan")] * 4}, "fp16", "log_prob is nan from"),
        ({"videos": [1, 5, 6, 7]}, "fp32", "only 25% of the answer's videos"),
        ({"videos": [], "log_probs": []}, "fp32", "only 0% of the answer's videos"),
    ],
)
def test_how_far_an_answer_may_be_from_the_expected_one(change, precision, said):
    if not said:
        expected.compare(ANSWER, {**ANSWER, **change}, precision)
        return
    with pytest.raises(ModelError, match=said):
        expected.compare(ANSWER, {**ANSWER, **change}, precision)
