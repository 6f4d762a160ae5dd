"""`promote_options`: which gates go together, and what they hand to `evaluate` and `verify`."""

from __future__ import annotations

import pytest

from genrec_batch.core.errors import ConfigError
from genrec_batch.evaluation.promote_options import PromoteConfig


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"min_coverage": 1.5}, "--min-coverage"),
        ({"max_noise": -0.1}, "--max-noise"),
        ({"log": "l", "min_topk_overlap": 2.0}, "--min-topk-overlap"),
        ({"evaluate": "e", "gate": ("ndcg@10>=1",), "test_from": "yesterday"}, "--test-from"),
        ({"alias": "Champion"}, "--alias"),
        ({"engine": "abacus"}, "--engine"),
    ],
)
def test_a_wrong_value_is_named(given, said):
    with pytest.raises(ConfigError, match=said):
        PromoteConfig(**given)


def test_options_reach_the_evaluation_and_the_comparison_of_engines():
    config = PromoteConfig(
        registry="r", log="l", min_topk_overlap=0.9, evaluate="e", gate=("ndcg@10>=champion",), test_from="2026-05-16",
        users="u", schema="kuairand", engine="torch", precision="bf16", ks="10", limit=7,
    )  # fmt: skip
    tested = config.for_evaluation("registry:a@1")
    assert (tested.model, tested.registry, tested.test_from, tested.ks, tested.limit) == (
        "registry:a@1", "r", "2026-05-16", "10", 7,
    )  # fmt: skip
    assert tested.gate == ()
    compared = config.for_parity("registry:a@1")
    assert (compared.model, compared.engine, compared.precision, compared.min_topk_overlap) == (
        "registry:a@1", "torch", "bf16", 0.9,
    )  # fmt: skip
    assert (compared.users, compared.schema, compared.limit, compared.evaluate) == ("u", "kuairand", None, False)
