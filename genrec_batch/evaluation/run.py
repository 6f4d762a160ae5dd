"""`evaluate`: a model, or an earlier output, compared with what users did next, beside simple rules on the same rows.

Owns: the order of the steps, and the report. Must not know: how a list, a metric or an engine works, or how the report
is shown. In: options and a log. Out: the report as a plain dictionary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from genrec_batch import __version__
from genrec_batch.core.arrays import F64, HEADS, I64
from genrec_batch.engines.choose import mode_of
from genrec_batch.engines.feed import Feed
from genrec_batch.evaluation import arms, baselines, gates, heads, judge, model_lists, opening, recs, tested_rows
from genrec_batch.evaluation.lists import Judged, Lists
from genrec_batch.evaluation.metrics import Videos
from genrec_batch.evaluation.options import EvaluateConfig
from genrec_batch.evaluation.tested_rows import Rows
from genrec_batch.events import labels
from genrec_batch.events.whole import WholeLog
from genrec_batch.model.weights import Model
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages, peak_rss_mib
from genrec_batch.runtime.console import LOG

SCHEMA, SCHEMA_VERSION = "genrec-batch/evaluation", 1
NO_LABEL = "no label of it is in the log"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an evaluation found: the report, and what it is made of for comparing two of them."""

    report: dict[str, Any]
    figures: Mapping[str, float | None]  # by the names that gates use
    value_M: Mapping[str, F64]  # of each row, by the same names, where a figure is a mean over rows
    row_ids: pl.Series  # user of each row
    moment_us_M: I64  # moment of each row


def evaluate(config: EvaluateConfig, source: str) -> dict[str, Any]:
    """Evaluate what the options name on a log and return the report; gates are judged in it, not enforced.

    Raises:
        GenrecError: see its subclasses.
    """
    return measure(config, source).report


def measure(config: EvaluateConfig, source: str, *, rules: bool = True) -> Measured:
    """Evaluate as `evaluate` does; `rules` says whether simple rules are measured, too.

    Raises:
        GenrecError: see its subclasses.
    """
    stages, known = Stages(), config.measurable(HEADS, heads.METRICS)
    wanted = gates.parse(config.gate, known)
    if config.recs is not None:
        log, rows, judged = recs.judged(config, source, stages)
    else:
        log, rows, judged = _by_model(config, source, stages)
    ks, main_k = config.lengths(), config.main_k()
    with stages.time("baselines", rows=len(rows)), console.busy("ranking by simple rules"):
        some = rules and len(rows.past.histories.values)
        simple = dict(baselines.lists(rows.past, ks[-1])) if some else {}
        videos = Videos(views_V=rows.past.views_V, vector_VD=rows.past.co_views.vectors())
    targets = {horizon: rows.targets(horizon) for horizon in config.horizons()}
    with stages.time("metrics", rows=len(rows)), console.busy("comparing with what came next"):
        groups = rows.groups()
        lists = {**judged.lists, **{name: Lists(tokens_MK=tokens_MK) for name, tokens_MK in simple.items()}}
        by_row = judge.by_row(lists, targets, ks=ks, main_k=main_k, groups=groups, videos=videos)
        rankings = judge.rankings(
            by_row, lists,
            horizons=list(targets), ks=ks, main_k=main_k, groups=groups, videos=videos, seed=config.seed,
        )  # fmt: skip
    with stages.time("heads"), console.busy("comparing the heads with labels"):
        of_heads = _heads(config, log, judged)
    figures = judge.measured(rankings, of_heads, judged.main)
    report = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "status": "ok",
        "command": "evaluate",
        "version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "log": source,
        "split": _split(config, rows),
        "seen": "included" if config.include_seen else "excluded",
        **judged.facts,
        "ks": list(ks),
        "main_k": main_k,
        "main": judged.main,
        "lists": list(judged.lists),
        "baselines": list(simple),
        "counts": tested_rows.counts(rows),
        "groups": {name: int(rows_M.sum()) for name, rows_M in groups.items()},
        "rankings": rankings,
        "heads": of_heads,
        **({} if judged.arms is None else {"arms": arms.compared(by_row, judged.main, judged.arms, seed=config.seed)}),
        "gates": gates.judge(wanted, figures),
        "seconds": round(stages.elapsed_s, 3),
        "stages_s": {name: round(seconds, 3) for name, seconds in stages.seconds.items()},
        "peak_rss_mib": round(peak_rss_mib(), 1),
        **log.facts,
        "matches": dict(log.matches),
        "warnings": console.warned(),
    }
    return Measured(
        report=report,
        figures=figures,
        value_M=judge.named(by_row, judged.main),
        row_ids=log.ids.gather(rows.cuts.user_N),
        moment_us_M=rows.cuts.as_of_us_N,
    )


def _by_model(config: EvaluateConfig, source: str, stages: Stages) -> tuple[WholeLog, Rows, Judged]:
    opened = opening.open_test(config, source, stages)
    config = config.for_model(opened.model)
    with stages.time("engine"):
        selection = opening.choose_engine(config, opened)
    LOG.info("engine: %s", selection.why)
    rows, model, engine = opened.rows, opened.model, selection.engine
    exposures, place_E = rows.exposures()
    lists, weights = {}, config.as_score().blend()

    def feed(mode: str) -> Feed:
        return opening.feed(config, opened, selection, mode, stages)

    by_look = "candidates" in config.modes() and weights is None
    with stages.time("first look", rows=len(rows)):
        count = min(config.lengths()[-1], model.tokens) if by_look else 1
        looked, heads_EH = model_lists.look(feed("candidates"), opened.inputs, exposures, count)
    for mode in config.modes():
        with stages.time(mode, rows=len(rows)):
            there = mode == "candidates" and by_look
            lists[mode] = looked if there else model_lists.recommend(feed(mode), opened.inputs, weights)
    facts = {
        "model": config.model or "reference preset",
        **({} if model.version is None else {"registry": model.version.facts()}),
        "fingerprint": model.fingerprint[:16],
        "trained": model.trained,
        "engine": engine.name,
        "device": engine.device,
        "precision": engine.precision,
        "engine_why": selection.why,
        "catalog_videos": len(opened.log.catalog),
    }
    row_E = np.repeat(np.arange(len(exposures)), exposures.lengths_N)
    judged = Judged(
        lists=lists, main=_main(config, model), facts=facts, heads_EH=heads_EH, row_E=row_E, place_E=place_E,
        trained_heads=None if model.training is None else model.training.heads,
    )  # fmt: skip
    return opened.log, rows, judged


def _main(config: EvaluateConfig, model: Model) -> str:
    """Return the way of decoding that `score` takes by default, where it is measured, else the first."""
    usual = mode_of("auto", config.beam_width, model)
    return usual if usual in config.modes() else config.modes()[0]


def _split(config: EvaluateConfig, rows: Rows) -> dict[str, Any]:
    moments_us = rows.cuts.as_of_us_N
    return {
        "test_from": config.test_from,
        "leave_out": config.leave_out if config.test_from is None and config.recs is None else None,
        "first_as_of": tested_rows.moment_text(int(moments_us.min())),
        "last_as_of": tested_rows.moment_text(int(moments_us.max())),
    }


def _heads(config: EvaluateConfig, log: WholeLog, judged: Judged) -> dict[str, Any]:
    """Return the figures of each head whose label the log has, by name; else why there are none."""
    if judged.heads_EH is None or judged.row_E is None or judged.place_E is None:
        return {}
    labels_EH = labels.head_labels(log.events)[judged.place_E]
    made: dict[str, Any] = {}
    for place, head in enumerate(HEADS):
        there_E = ~np.isnan(labels_EH[:, place])
        label_E = labels_EH[there_E, place]
        found = heads.judge(judged.heads_EH[there_E, place], label_E, judged.row_E[there_E], seed=config.seed)
        if found is None:
            made[head] = {"why_not": NO_LABEL}
            continue
        made[head] = {
            "trained": judged.trained_heads is None or head in judged.trained_heads,
            "exposures": found.exposures,
            "users": found.users,
            "label": judge.rounded(found.positive),
            "predicted": judge.rounded(found.predicted),
            "constant_log_loss": judge.rounded(found.constant_log_loss),
            "metrics": {name: judge.figure(getattr(found, name)) for name in heads.METRICS},
            "curve": [[judge.rounded(p), judge.rounded(o), n] for p, o, n in found.curve],
        }
        if found.auc.value is None:
            made[head]["why_not"] = f"every label is {'1' if label_E.min() >= 0.5 else 'below 0.5'}, so there is no AUC"
    return made
