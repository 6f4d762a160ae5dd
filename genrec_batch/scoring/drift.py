"""Drift of a run: its sampled users beside those of the model's training and those of the output of `--previous`.

Owns: what is compared with what and when scores are comparable, the warnings, the gate `--max-drift`, and what an
output keeps for the next run. Must not know: how quantities are computed, files. In: the options, the model, the
earlier output, the samples of all parts. Out: figures for the summary, and an entry of the output's metadata.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genrec_batch.core import drift, layout
from genrec_batch.core.declare import differences
from genrec_batch.core.drift import Distribution, Move, Sample
from genrec_batch.core.errors import GateError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import mode_of
from genrec_batch.features.sampled import LABELS, LENGTH, SCORES, distributions
from genrec_batch.model.weights import Model
from genrec_batch.runtime.console import LOG

DISTRIBUTION, DRIFT = "genrec.distribution", "genrec.drift"  # in the metadata of an output
MODEL, PREVIOUS = "model", "previous"
SAID = {MODEL: "the model's training", PREVIOUS: "the output of --previous"}
SHOWN = 3  # quantities that a message names
GIVEN, BEAMS = "given candidates", "beams"
ELSEWHERE = {  # options that are compared through the inputs themselves, as `mode`, or not at all
    *("decode", "top_k", "num_candidates", "candidates", "fallback"),
    *("timezone", "dedupe", "dedupe_by", "side_tables_newest", "schema", "users", "videos", "extra_features"),
    *("users_only", "model", "engine", "device", "precision"),
}


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What must be the same for scores to be comparable."""

    model: str
    mode: str  # slate, candidates, beams or given candidates
    options: Mapping[str, Any]  # those that change which videos are scored, where they are not the default

    @staticmethod
    def of(config: ScoreConfig, model: Model) -> Scored:
        """Return how a run scores."""
        mode = BEAMS if config.beam_width > 1 else mode_of(config.decode, config.beam_width, model)
        mode = GIVEN if config.candidates else mode
        chosen = {}
        for option in dataclasses.fields(config):
            value, identity = getattr(config, option.name), option.metadata["identity"]
            if option.name not in ELSEWHERE and identity in ("rows", "content") and value != option.default:
                chosen[option.name] = True if identity == "content" else value  # such as --exclude: others every night
        if mode in (BEAMS, GIVEN) or config.weights:  # which videos are in a list depends on its length, then
            chosen["top_k"] = config.top_k
        return Scored(model=model.fingerprint, mode=mode, options=chosen)

    def unlike(self, other: Scored) -> str:
        """Return why scores of two runs are not comparable, "" where they are."""
        if self.model != other.model:
            return "they are of another model"
        if self.mode != other.mode:
            return f"they are of {other.mode}, now of {self.mode}"
        return ", ".join(differences(other.options, self.options))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a run is compared with."""

    name: str  # model or previous
    found: Distribution | None
    scored: Scored | None = None
    why_not: str = ""  # why nothing is compared


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the samples of a run are compared with, and what follows."""

    scored: Scored
    references: tuple[Reference, ...]
    max_drift: float | None

    @staticmethod
    def of(config: ScoreConfig, model: Model, previous: str | None = None, why_not: str = "") -> Watch:
        """Return what a run with these options is compared with.

        Args:
            config: the run's options.
            model: its model.
            previous: what the output of `--previous` kept (`Found.kept`), None where it kept nothing.
            why_not: why that output cannot be compared, "" if it can.
        """
        scored = Scored.of(config, model)
        references = [_of_model(model, scored)]
        if config.previous is not None:
            references.append(_of_previous(previous, why_not))
        return Watch(scored=scored, references=tuple(references), max_drift=config.max_drift)

    def found(self, texts: Sequence[str]) -> Found:
        """Compare the samples of all parts, which are given as they were kept."""
        sample = Sample.joined(texts) if texts else None
        comparisons = tuple(_compared(self.scored, reference, sample) for reference in self.references)
        return Found(scored=self.scored, sample=sample, comparisons=comparisons)

    def check(self, found: Found, target: str, staging: str) -> None:
        """Say what has moved, and hold it to `--max-drift`.

        Raises:
            GateError: a quantity has moved further.
        """
        for each in found.comparisons:
            _say(each)
        limit = self.max_drift
        if limit is None:
            return
        if not any(each.moves for each in found.comparisons):
            why = "; ".join(f"{SAID[each.name]}: {', '.join(each.left_out)}" for each in found.comparisons)
            nothing = "there is nothing that this run can be compared with"
            LOG.warning("--max-drift %g was not checked: %s (%s)", limit, nothing, why)
        faults = [(each, moved) for each in found.comparisons if (moved := each.above(limit))]
        if faults:
            said = "\n  ".join(f"against {SAID[each.name]}: {_listed(moved, len(moved))}" for each, moved in faults)
            raise GateError(
                f"--max-drift {limit:g}: OUTPUT {target} is not published, its parts are in {staging}; the same "
                "command with a larger --max-drift publishes them without scoring again. What has moved further:\n  "
                f"{said}"
            )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far each quantity has moved from one reference."""

    name: str
    moves: tuple[Move, ...] = ()  # the furthest first
    left_out: tuple[str, ...] = ()  # what is not compared, and why

    def above(self, limit: float) -> list[Move]:
        """Return what has moved further than a limit."""
        return [each for each in self.moves if each.psi > limit]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The drift of a run, and the distribution that the next run is compared with."""

    scored: Scored
    sample: Sample | None
    comparisons: tuple[Comparison, ...] = field(default_factory=tuple)

    def figures(self) -> dict[str, Any]:
        """Return what the summary, the report and `inspect` show, JSON-able."""
        users = 0 if self.sample is None else len(self.sample)
        by_name = {each.name: {move.quantity: round(move.psi, 4) for move in each.moves} for each in self.comparisons}
        moved = [
            {"against": each.name, **dataclasses.asdict(move), "psi": round(move.psi, 4)}
            for each in self.comparisons
            for move in each.moves
            if move.psi >= drift.MOVED
        ]
        left_out = {each.name: list(each.left_out) for each in self.comparisons if each.left_out}
        return {"users": users, **by_name, "moved": moved, "left_out": left_out}

    def kept(self) -> str | None:
        """Return what the output keeps for the next run as text, None without a sample."""
        if self.sample is None or not len(self.sample):
            return None
        names = self.sample.names
        inputs = tuple(name for name in names if name not in SCORES)
        scores, known = {}, _known(self.sample)
        if known is not None:
            scores = {self.scored.mode: distributions(names[len(inputs) :], known.values_SQ[:, len(inputs) :])}
        found = Distribution(
            users=len(self.sample),
            inputs=distributions(inputs, self.sample.values_SQ[:, : len(inputs)]),
            scores=scores,
        )
        return json.dumps(
            {**found.stored(), "scored": dataclasses.asdict(self.scored), "layout": layout.fingerprint()},
            sort_keys=True,
        )

    def metadata(self) -> dict[str, str]:
        """Return the entries of the output's metadata."""
        kept = self.kept()
        about = {DRIFT: json.dumps(self.figures(), sort_keys=True)}
        return about if kept is None else {**about, DISTRIBUTION: kept}


def figures_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the summary's entry `drift` from an output's metadata, nothing where that has none."""
    return {"drift": json.loads(metadata[DRIFT])} if DRIFT in metadata else {}


def _known(sample: Sample) -> Sample | None:
    """Return a sample whose scores are known, None where those of carried users are not."""
    return None if np.isinf(sample.values_SQ).any() else sample


def _of_model(model: Model, scored: Scored) -> Reference:
    if model.training is None or model.training.distribution is None:
        why = "it carries no distribution of its training; one trained by this version does"
        return Reference(name=MODEL, found=None, why_not=why)
    options = {} if model.training.seen_masked else {"include_seen": True}
    known = dataclasses.replace(scored, options=options)
    return Reference(name=MODEL, found=model.training.distribution, scored=known)


def _of_previous(kept: str | None, why_not: str) -> Reference:
    if kept is None:
        why = why_not or "it carries no distribution; an output of this version does"
        return Reference(name=PREVIOUS, found=None, why_not=why)
    try:
        entry = json.loads(kept)
        if entry["layout"] != layout.fingerprint():
            return Reference(name=PREVIOUS, found=None, why_not="its features have another layout")
        return Reference(name=PREVIOUS, found=Distribution.read(entry), scored=Scored(**entry["scored"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"its distribution is damaged ({type(error).__name__}: {error})"
        return Reference(name=PREVIOUS, found=None, why_not=why)


def _compared(scored: Scored, reference: Reference, sample: Sample | None) -> Comparison:
    name, before = reference.name, reference.found
    if before is None:
        return Comparison(name=name, left_out=(f"not compared, since {reference.why_not}",))
    if sample is None:
        return Comparison(name=name, left_out=("not compared, since the parts of this run have no samples",))
    if name == MODEL:  # which learned of users with events only
        sample = sample.take(sample.of(LENGTH) > 0)
    few = [(len(sample), "this run has"), (before.users, "it is of")]
    for users, whose in few:
        if users < drift.LEAST_USERS:
            what = f"{whose} {users:,} users{' with events' * (name == MODEL)}, fewer than {drift.LEAST_USERS:,}"
            return Comparison(name=name, left_out=(f"not compared, since {what}, too few to tell drift from chance",))
    there: dict[str, drift.Bins] = dict(before.inputs)
    left_out = _scores_left_out(scored, reference, sample)
    if not left_out:
        there |= before.scores[scored.mode]
    moves = [
        drift.move(each, there[each], sample.of(each), LABELS.get(each, ())) for each in sample.names if each in there
    ]
    moves.sort(key=lambda move: -move.psi)
    return Comparison(
        name=name, moves=tuple(moves), left_out=tuple(f"scores are not compared: {why}" for why in left_out)
    )


def _scores_left_out(scored: Scored, reference: Reference, sample: Sample) -> list[str]:
    """Return why the scores of a run are not compared; nothing where they are."""
    assert reference.found is not None
    assert reference.scored is not None
    unlike = scored.unlike(reference.scored)
    if unlike:
        return [unlike]
    if scored.mode not in reference.found.scores:
        return [f"it has none of {scored.mode}"]
    return [] if _known(sample) is not None else ["rows were carried over without log_prob or step"]


def _say(found: Comparison) -> None:
    """Tell how far a run has moved from one reference."""
    no_model = found.name == MODEL and not found.moves  # no fault of this run, and the same every night
    for why in found.left_out:
        LOG.log(logging.DEBUG if no_model else logging.INFO, "drift against %s: %s", SAID[found.name], why)
    if not found.moves:
        return
    shifted = [move for move in found.moves if move.psi >= drift.SHIFTED]
    if shifted:
        LOG.warning("drift against %s (population stability index): %s", SAID[found.name], _listed(shifted))
    else:
        LOG.info("drift against %s: at most %s", SAID[found.name], found.moves[0])


def _listed(moves: Sequence[Move], most: int = SHOWN) -> str:
    more = f" and {len(moves) - most} more" if len(moves) > most else ""
    return "; ".join(map(str, moves[:most])) + more
