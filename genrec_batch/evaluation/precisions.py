"""`verify --evaluate`: the quality that each engine and precision loses, on the same rows.

Owns: which engines are compared, and the loss with its interval. Must not know: how an engine computes, `verify`. In:
the options of `verify` and a log. Out: a plain dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from genrec_batch.core.arrays import F64
from genrec_batch.core.errors import DeviceMemoryError, EngineError, GateError
from genrec_batch.core.verify_options import VerifyConfig
from genrec_batch.engines.choose import device_of, reference_engine, sample_rows
from genrec_batch.engines.precisions import runs_here
from genrec_batch.engines.registry import ENTRIES
from genrec_batch.evaluation import bootstrap, judge, metrics, model_lists, opening
from genrec_batch.evaluation.bootstrap import Estimate
from genrec_batch.evaluation.opening import Opened
from genrec_batch.evaluation.options import EvaluateConfig
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG

SEED = 1
METRICS = ("ndcg", "hr")


def quality(config: VerifyConfig, source: str) -> dict[str, Any]:
    """Return NDCG and HR of the next video for the reference, and for every engine and precision of the device.

    The test is each user's newest event, or with `--test-from` the first from that moment on, of `--sample` users.

    Raises:
        GenrecError: see `opening.open_test` and `choose.reference_engine`.
    """
    shared = {f.name for f in fields(EvaluateConfig)} & {f.name for f in fields(VerifyConfig)}
    evaluate = EvaluateConfig(**{name: getattr(config, name) for name in shared} | {"ks": str(config.top_k)})
    opened = opening.open_test(evaluate, source, Stages())
    evaluate = evaluate.for_model(opened.model)
    opened = opened.take(sample_rows(opened.rows.histories.lengths_N, most=config.sample))
    reference = reference_engine(opened.model, name=config.against, precision=config.against_precision)
    device = device_of(config.device, config.engine)
    triples = [(reference.name, reference.precision, reference.device)]
    triples += [(*each, device) for each in _choices(device) if (*each, device) not in triples]
    expected: dict[str, F64] = {}
    found, skipped = [], {}
    for name, precision, place in triples:
        one = replace(evaluate, engine=name, precision=precision, device=place)
        try:
            measured = _measured(one, opened)
        except (EngineError, DeviceMemoryError) as error:
            if not expected:
                raise
            skipped[f"{name} {precision} {place}"] = str(error)
            LOG.warning("%s in %s is left out: %s", name, precision, error)
            continue
        found.append({"engine": name, "device": place, "precision": precision, **_figures(measured, expected)})
        expected = expected or measured
    decode = evaluate.modes()[0]
    return {"k": config.top_k, "users": len(opened.rows), "decode": decode, "engines": found, "skipped": skipped}


def check(found: Mapping[str, Any], most: float | None) -> None:
    """Raise GateError with every engine whose NDCG falls by more than the share `most` (`--max-quality-loss`)."""
    faults = [
        f"{each['engine']} in {each['precision']} on {each['device']}: measured {each['lost']['value']:.4f}"
        for each in found["engines"]
        if most is not None and each["lost"] is not None and (each["lost"]["value"] or 0) > most
    ]
    if faults:
        raise GateError(f"--max-quality-loss {most}: NDCG@{found['k']} falls by more:\n  " + "\n  ".join(faults))


def _choices(device: str) -> list[tuple[str, str]]:
    """Return every engine that is installed with its precisions on the kind of device."""
    kind = device.partition(":")[0]
    return [
        (entry.name, precision)
        for entry in ENTRIES
        if entry.module()
        for precision in entry.precisions.get(kind, ())
        if runs_here(precision)
    ]


def _measured(config: EvaluateConfig, opened: Opened) -> dict[str, F64]:
    """Return each metric of each row, by one engine."""
    selection = opening.choose_engine(config, opened)
    feed = opening.feed(config, opened, selection, config.modes()[0], Stages())
    lists = model_lists.recommend(feed, opened.inputs, config.as_score().blend())
    k = config.main_k()
    values = metrics.accuracy(lists.best(k), opened.rows.targets(1), (k,))
    return {name: values[f"{name}@{k}"] for name in METRICS}


def _figures(measured: Mapping[str, F64], expected: Mapping[str, F64]) -> dict[str, Any]:
    """Return the mean of each metric, and the share of NDCG that is lost; None where nothing is expected yet."""
    means = {name: judge.rounded(float(values_M.mean())) for name, values_M in measured.items()}
    return means | {"lost": judge.figure(_lost(measured["ndcg"], expected["ndcg"])) if expected else None}


def _lost(ours_M: F64, theirs_M: F64) -> Estimate:
    """Return the share of a metric that is lost, by the same resamples of the rows for both."""

    def lost(weight_RM: F64) -> F64:
        ours_R, theirs_R = weight_RM @ ours_M, weight_RM @ theirs_M
        share_R: F64 = 1 - np.divide(ours_R, theirs_R, out=np.full(len(ours_R), np.nan), where=theirs_R > 0)
        return share_R

    drawn_R = np.concatenate([lost(weight_RM) for weight_RM in bootstrap.resamples(len(ours_M), SEED)])
    return bootstrap.estimate(float(lost(np.ones((1, len(ours_M))))[0]), drawn_R)
