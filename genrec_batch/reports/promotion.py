"""The gates of `model promote`: what is measured of a version before it becomes live.

Owns: which gates there are and in which order. Must not know: how a figure is measured, how an alias moves. In: the
options, a version, the number of the champion. Out: the gates with what was measured, plain dictionaries.
"""

from __future__ import annotations

from typing import Any

from genrec_batch.core.arrays import HEADS
from genrec_batch.evaluation import against, coverage, gates, heads, run
from genrec_batch.evaluation.promote_options import PromoteConfig
from genrec_batch.model import opening
from genrec_batch.model.catalog import Catalog
from genrec_batch.model.registry import CHAMPION, PREFIX, Version
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring import verify

UNTRAINED = "%s has untrained weights: its ranking means nothing"


def judged(config: PromoteConfig, candidate: Version, champion: int | None) -> list[dict[str, Any]]:
    """Measure everything that the options ask for; the version is read in any case, which checks its layout.

    Raises:
        GenrecError: see its subclasses; a gate that fails is no error here.
    """
    known = config.for_evaluation("").measurable(HEADS, heads.METRICS)
    wanted = gates.parse(config.gate, known, (CHAMPION,))
    model = opening.read(candidate, candidate.label)
    if not model.trained:
        LOG.warning(UNTRAINED, candidate.label)
    text = PREFIX + candidate.label
    found = []
    if config.log is not None:
        assert model.directory is not None, "it was read from a directory"
        catalog = Catalog.read(model.directory / "catalog.parquet", vocabulary=model.config.vocabulary)
        found.append(_coverage(config, text, catalog, config.log))
        found += [] if config.min_topk_overlap is None else [_parity(config, text, config.log)]
    if config.evaluate is not None:
        ours = run.measure(config.for_evaluation(text), config.evaluate, rules=False)
        theirs = None
        if champion is not None and any(gate.of for gate in wanted):
            other = config.for_evaluation(f"{PREFIX}{candidate.name}@{champion}")
            theirs = run.measure(other, config.evaluate, rules=False)
        found += against.judged(wanted, ours, theirs, seed=config.seed, max_noise=config.max_noise)
    return found


def _coverage(config: PromoteConfig, text: str, catalog: Catalog, log: str) -> dict[str, Any]:
    share = coverage.share_of_events(config.for_parity(text), log, catalog, "--log")
    return {
        "flag": "--min-coverage",
        "gate": str(config.min_coverage),
        "measured": round(share, 4),
        "passed": share >= config.min_coverage,
        "why": f"the share of the events of {log} whose video is in the catalog",
    }


def _parity(config: PromoteConfig, text: str, log: str) -> dict[str, Any]:
    report, found = verify.verified(config.for_parity(text), log)
    return {
        "flag": "--min-topk-overlap",
        "gate": str(config.min_topk_overlap),
        "measured": round(found.topk_overlap, 4),
        "passed": found.topk_overlap >= (config.min_topk_overlap or 0.0),
        "why": f"the share of the top K of {report['engine']} in common with {report['against']}",
    }
