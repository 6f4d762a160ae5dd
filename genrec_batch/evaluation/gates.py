"""Gates: the least quality that a run must show, such as `ndcg@10>=0.02` or `ndcg@10>=0.98*champion`.

Owns: reading `--gate`, and comparing. Must not know: how a figure is measured. In: texts, and figures by name. Out: the
gates with what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genrec_batch.core.errors import ConfigError, GateError, nearest

FORM = re.compile(r"\s*(?P<name>[^<>=\s]+)\s*(?P<sign>>=|<=|>|<)\s*(?P<limit>[^<>=\s]+)\s*")
HOLDS = {
    ">=": lambda measured, limit: measured >= limit,
    "<=": lambda measured, limit: measured <= limit,
    ">": lambda measured, limit: measured > limit,
    "<": lambda measured, limit: measured < limit,
}


_WITH_PROMOTE = "; a share of the champion's figure goes with `model promote`"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition on one figure."""

    text: str
    name: str
    sign: str
    limit: float
    of: str = ""  # limit is a share of this other model's figure; empty: it is the figure itself


def parse(texts: Sequence[str], known: Collection[str], others: Collection[str] = ()) -> list[Gate]:
    """Read `--gate`.

    Args:
        texts: the conditions.
        known: the names of all figures that the run can measure.
        others: the models that it can be compared with, as in `NAME>=0.98*champion`.

    Raises:
        ConfigError: not `NAME>=NUMBER` or the like, or a name that the run does not measure.
    """
    gates = []
    for text in texts:
        match = FORM.fullmatch(text)
        if match is None:
            raise ConfigError(f"--gate {text!r}: not NAME>=NUMBER, such as ndcg@10>=0.02 (or <=, >, <)")
        name = match["name"].lower()
        share, times, of = match["limit"].rpartition("*")
        if of not in others:
            share, of = match["limit"], ""
        try:
            limit = float(share) if times or not of else 1.0
        except ValueError:
            also = "".join(f", nor a number times {other}" for other in others) or (_WITH_PROMOTE if times else "")
            raise ConfigError(f"--gate {text!r}: {match['limit']!r} is not a number{also}") from None
        if limit != limit:  # noqa: PLR0124 (NaN)
            raise ConfigError(f"--gate {text!r}: NaN is no limit")
        if name not in known:
            hint = nearest(name, sorted(known)) or f" There are {', '.join(sorted(known)[:12])}, ..."
            raise ConfigError(f"--gate {text!r}: this run does not measure {name!r}.{hint}")
        gates.append(Gate(text=text.strip(), name=name, sign=match["sign"], limit=limit, of=of))
    return gates


def judge(gates: Sequence[Gate], measured: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Return each gate with what was measured and whether it holds; a figure that could not be measured fails."""
    return [
        {
            "gate": gate.text,
            "measured": (found := measured.get(gate.name)),
            "passed": found is not None and bool(HOLDS[gate.sign](found, gate.limit)),
        }
        for gate in gates
    ]


def check(judged: Sequence[Mapping[str, Any]], what: str = "the quality is not good enough") -> None:
    """Raise GateError with every gate that fails, what was measured and, where a gate says it, by how much it fails."""
    faults = [
        f"{each.get('flag', '--gate')} {each['gate']}: "
        + ("not measured, see the report" if each["measured"] is None else f"measured {each['measured']:.5g}")
        + (f", {each['why']}" if each.get("why") else "")
        for each in judged
        if not each["passed"]
    ]
    if faults:
        raise GateError(f"{what}:\n  " + "\n  ".join(faults))
