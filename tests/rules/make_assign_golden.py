"""Make `assign_golden.json`: buckets and arms as the SDKs of Statsig and GrowthBook compute them.

Run by hand, in an environment of its own with both SDKs; this project does not depend on them:

    python3 -m venv sdk && sdk/bin/pip install statsig==0.72.1 growthbook==4.0.0
    sdk/bin/python tests/rules/make_assign_golden.py

Statsig: the hash that its evaluator takes modulo 10,000 for a rule's pass percentage, of the text SALT.USERID, and
gates evaluated as a whole. GrowthBook: hash version 2, with the first `hash` cases of its specification, and
variations. GrowthBook's JavaScript SDK (1.8.0) returns the same for all of them.
"""

import json
from pathlib import Path

from growthbook.core import chooseVariation, gbhash, getBucketRanges
from statsig import StatsigOptions, StatsigServer, StatsigUser
from statsig.utils import sha256_hash

OF_THE_SPECIFICATION = [["seed", "a"], ["seed", "b"], ["foo", "ab"], ["foo", "def"], ["()**(%$##$%#$#", '___)((*":&']]
SALTS = ["exp42", "", "Größe", "a.b:c d"]
IDS = [
    "0",
    "7",
    "42",
    "100",
    "9223372036854775807",
    "-5",
    "18446744073709551615",
    "user_1",
    "ünïcode",
    "视频",
    "🙂x",
    "a" * 80,
]
WEIGHTS = [[90, 10], [10, 20, 70], [33.33, 33.33, 33.34], [50, 50], [0.01, 99.99], [30, 30, 20, 20], [100]]
GATE_SALTS, GATE_IDS, GATE_PERCENT = ["config", "rule"], [str(number) for number in range(200)], 10


def statsig_gates():
    """Return which of some ids pass a gate of 10% as the whole SDK evaluates it."""
    everyone = {"type": "public", "targetValue": None, "operator": None, "field": None, "additionalValues": {}}
    rule = {
        "name": "r", "id": "r", "groupName": "r", "salt": GATE_SALTS[1], "passPercentage": GATE_PERCENT,
        "conditions": [{**everyone, "isDeviceBased": False, "idType": "userID"}], "returnValue": True,
        "idType": "userID",
    }  # fmt: skip
    gate = {
        "name": "g", "type": "feature_gate", "salt": GATE_SALTS[0], "enabled": True, "defaultValue": False,
        "rules": [rule], "isDeviceBased": False, "idType": "userID", "entity": "feature_gate",
    }  # fmt: skip
    specs = {"has_updates": True, "time": 1, "feature_gates": [gate], "dynamic_configs": [], "layer_configs": []}
    server = StatsigServer()
    server.initialize("secret-x", StatsigOptions(local_mode=True, bootstrap_values=json.dumps(specs)))
    passed = [server.check_gate(StatsigUser(user), "g") for user in GATE_IDS]
    server.shutdown()
    return passed


def growthbook_arms(salt, weights):
    """Return the variation of some ids: its place in the weights."""
    ranges = getBucketRanges(len(weights), 1, [round(weight * 100) / 10_000 for weight in weights])
    return [chooseVariation(gbhash(salt, user, 2), ranges) for user in GATE_IDS]


def main():
    golden = {
        "statsig": [[salt, user, sha256_hash(f"{salt}.{user}") % 10_000] for salt in SALTS for user in IDS],
        "statsig_gate": {
            "salt": ".".join(GATE_SALTS),
            "ids": GATE_IDS,
            "percent": GATE_PERCENT,
            "passed": statsig_gates(),
        },
        "growthbook": [
            [salt, user, gbhash(salt, user, 2)]
            for salt, user in [*OF_THE_SPECIFICATION, *([salt, user] for salt in SALTS for user in IDS)]
        ],
        "growthbook_arms": [
            {"salt": "exp42", "weights": weights, "ids": GATE_IDS, "arms": growthbook_arms("exp42", weights)}
            for weights in WEIGHTS
        ],
        "growthbook_ranges": [{"weights": weights, "firsts": bounds(weights)} for weights in WEIGHTS],
    }
    Path(__file__).with_name("assign_golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=0) + "\n")


def bounds(weights):
    """Return the first bucket of each variation, from the variation of each of the 10,000 buckets."""
    ranges = getBucketRanges(len(weights), 1, [round(weight * 100) / 10_000 for weight in weights])
    arms = [chooseVariation(bucket / 10_000, ranges) for bucket in range(10_000)]
    return [arms.index(arm) for arm in range(len(weights))]


if __name__ == "__main__":
    main()
