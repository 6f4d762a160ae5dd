from __future__ import annotations

import pytest

from genrec_batch.core.errors import ConfigError, GateError
from genrec_batch.evaluation import gates

KNOWN = ["ndcg@10", "hr@10", "slate.ndcg@10", "engagement.log_loss"]
MEASURED = {"ndcg@10": 0.03, "hr@10": None, "engagement.log_loss": 0.5}


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("ndcg@10>=0.02", True),
        ("ndcg@10 >= 0.03", True),
        ("NDCG@10>0.03", False),
        ("ndcg@10<=3e-2", True),
        ("engagement.log_loss<0.4", False),
        ("hr@10>=0", False),
    ],
)
def test_a_gate_compares_a_figure_with_a_number(text, passed):
    [judged] = gates.judge(gates.parse([text], KNOWN), MEASURED)
    assert judged["passed"] is passed
    if passed:
        gates.check([judged])
    else:
        with pytest.raises(GateError, match="measured"):
            gates.check([judged])


def test_all_gates_that_fail_are_told_with_what_was_measured():
    judged = gates.judge(gates.parse(["ndcg@10>=0.5", "ndcg@10>=0.01", "hr@10>=0.5"], KNOWN), MEASURED)
    with pytest.raises(GateError) as failed:
        gates.check(judged)
    assert "--gate ndcg@10>=0.5: measured 0.03" in str(failed.value)
    assert "--gate hr@10>=0.5: not measured" in str(failed.value)
    assert "0.01" not in str(failed.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ndcg@10", "not NAME>=NUMBER"),
        ("ndcg@10=0.5", "not NAME>=NUMBER"),
        ("ndcg@10>=much", "'much' is not a number"),
        ("ndcg@10>=nan", "NaN"),
        ("ndcg@1O>=0.5", "does not measure 'ndcg@1o'. Did you mean 'ndcg@10'"),
    ],
)
def test_what_is_no_gate_is_refused(text, said):
    with pytest.raises(ConfigError, match=r"--gate") as refused:
        gates.parse([text], KNOWN)
    assert said in str(refused.value)
