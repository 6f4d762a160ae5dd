"""`arm_options`: the form of `--arm`, and what is no experiment."""

from __future__ import annotations

import pytest

from genrec_batch.core.arm_options import arms_of
from genrec_batch.core.errors import ConfigError


def test_an_arm_has_a_name_a_model_a_share_and_options_of_its_own():
    control, test, shadow = arms_of(
        [
            "control=model/:90.25",
            "test=registry:recs@challenger:9.75",
            "test.include-seen=true",
            "test.weights=engagement=1,log_prob=0.5",
            "old=/models/a:b=c:5:shadow",
        ]
    )
    assert (control.name, control.model, control.buckets, control.own) == ("control", "model/", 9025, {})
    assert (test.model, test.buckets, test.shadow) == ("registry:recs@challenger", 975, False)
    assert test.own == {"include_seen": "true", "weights": "engagement=1,log_prob=0.5"}
    assert (shadow.model, shadow.percent, shadow.shadow) == ("/models/a:b=c", 5.0, True)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["control=m:90", "test=m:9"], r"weights of the published arms \(90 \+ 9\) add up to 99, not to 100"),
        (["control=m:90", "test=m:10.01"], "add up to 100.01"),
        (["control=m:33.333"], "two decimals"),
        (["control=m:0", "test=m:100"], "the weight 0 is not above 0 and at most 100"),
        (["control=m:101"], "the weight 101 is not above 0"),
        (["control=m:100", "s=m:100.5:shadow"], "the weight 100.5 is not above 0 and at most 100"),
        (["control=m:50", "control=m2:50"], "control: named twice"),
        (["control=m:50", "Control=m2:50"], "only in upper and lower case"),
        (["new=m:10:shadow"], r"the published arms \(none\) add up to 0"),
        (["control=m"], "expected NAME=MODEL:WEIGHT"),
        (["control=m:٩٠", "test=m:10"], "two decimals"),
        (["control=m:100", "control.decode=slate", "control.decode=candidates"], "control.decode: given twice"),
        (["control=m:100", "control.include-seen=1", "control.include_seen=0"], "control.include_seen: given twice"),
        (["control=:100"], "expected NAME=MODEL:WEIGHT"),
        (["control:100"], "expected NAME=MODEL:WEIGHT"),
        (["con trol=m:100"], "a name has letters, digits"),
        (["=m:100"], "a name has letters, digits"),
        (["control=m:100", "contrl.weights=engagement=1"], "no arm is named contrl. Did you mean 'control'"),
    ],
)
def test_what_is_no_experiment_is_refused(arms, message):
    with pytest.raises(ConfigError, match=message):
        arms_of(arms)
