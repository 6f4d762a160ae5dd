"""A training from end to end: read the log, train and validate, choose, train again on all of it, save.

Owns: the order of the steps and what each hands to the next. Must not know: the arithmetic of any of them. In: options,
a log, the place of the model. Out: a model directory, and a summary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genrec_batch.core.arrays import F32, FIRST_ITEM, HEADS
from genrec_batch.core.errors import GateError
from genrec_batch.engines.registry import open_engine
from genrec_batch.model import places, weights
from genrec_batch.model.trained import Trained
from genrec_batch.model.weights import Model
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages, peak_rss_mib
from genrec_batch.runtime.console import LOG
from genrec_batch.training import finish, material, network, phase
from genrec_batch.training.checkpoint import STATE, Checkpoints
from genrec_batch.training.device import Place
from genrec_batch.training.heads import Calibration, calibrate
from genrec_batch.training.inputs import Standard
from genrec_batch.training.material import Material
from genrec_batch.training.options import TrainConfig
from genrec_batch.training.phase import REFIT, SEARCH, Phase, State
from genrec_batch.training.saving import save
from genrec_batch.training.validate import Validation, better_mode, gain, helpful

STANDARD_ROWS = 20_000  # whose features are looked at


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What validation decided, and its figures."""

    amount: float  # of the correction of the output bias
    decode: str
    calibrations: list[Calibration]
    figures: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training with all that its steps share."""

    options: TrainConfig
    path: str
    out: Path
    material: Material
    place: Place
    checkpoints: Checkpoints
    stages: Stages

    def phase(self, name: str, held_out: Validation | None) -> Phase:
        """Return a phase: over the events before the cuts where others are held out, else over all."""
        events = self.material.events(self.options, held_out=held_out is not None)
        return Phase(
            name=name,
            events=events,
            standard=events.standard(self.options.seed, STANDARD_ROWS),
            held_out=held_out,
            config=self.material.config,
            items=self.material.items,
            recipe=self.options.recipe(),
            place=self.place,
            seed=self.options.seed,
        )

    def initial(self, standard: Standard) -> dict[str, Tensor]:
        """Return the parameters that a phase begins with."""
        made = network.initial(self.material.config, self.options.seed)
        base, token_C = self.material.base, self.material.base_token_C
        if base is None or token_C is None:
            return made
        return finish.carried_over(made, base.weights, standard, token_C, self.material.items)

    def run(self) -> dict[str, Any]:
        """Train, choose, train again, save; return what the summary says of it."""
        found = self.checkpoints.load(STATE)
        state, tensors = (State(), None) if found is None else (_state(found[1]), found[0])
        if found is not None:
            LOG.info("continuing: %s, epoch %d, step %d", state.phase, state.epoch + 1, state.step)
        everything = self.material.events(self.options, held_out=False)
        held_out = Validation.of(everything, self.material.cuts, self.options.seed)
        search = self.phase(SEARCH, held_out)
        best = self._search(search, state, tensors)
        with self.stages.time("choose"), console.busy("choosing the decoding, calibrating the heads"):
            choice = self._choose(search, best, held_out)
        last, of_last = search, best
        if self.options.refit:
            last = self.phase(REFIT, None)
            tensors = tensors if state.phase == REFIT else None
            if state.phase == SEARCH:
                state.next_phase()
            with self.stages.time("refit"):
                of_last = self._guarded(
                    last, state, lambda: phase.run(last, self.initial(last.standard), state, self.checkpoints, tensors)
                )
        arrays = self._exported(last, of_last, choice)
        facts = self._facts(state, choice)
        with self.stages.time("save"), console.busy("writing the model"):
            save(
                self.out, self.options, self.material, arrays, self._trained(last, arrays, choice, facts), state.history
            )
        self.checkpoints.remove()
        return facts

    def _search(self, search: Phase, state: State, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        if state.phase != SEARCH:
            return phase.best_weights(state, self.checkpoints, self.place)
        initial = self.initial(search.standard)
        if not state.planned:
            state.planned = self._planned(search, initial)
        with self.stages.time("search"):
            return self._guarded(search, state, lambda: phase.run(search, initial, state, self.checkpoints, tensors))

    def _planned(self, search: Phase, initial: dict[str, Tensor]) -> int:
        """Return the epochs that are planned, and say how long they will take."""
        steps = search.steps()
        planned = self.options.epochs or phase.planned_epochs(steps)
        epoch_s = phase.estimated_epoch_s(search, initial) * (2 if self.options.refit else 1)
        limit_s = self.options.time_limit_s()
        if limit_s is not None:
            planned = max(1, min(planned, int(limit_s / epoch_s)))
        LOG.info(
            "at most %d epochs of %s steps, about %s%s; held out: %s",
            planned,
            f"{steps:,}",
            _span(planned * epoch_s),
            " with the refit" if self.options.refit else "",
            self.material.split,
        )
        return planned

    def _guarded(self, run: Phase, state: State, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Do a phase's work; where it diverges, what validated best so far becomes a model beside the checkpoint."""
        try:
            return work()
        except GateError as error:
            said = "no epoch was validated yet"
            if state.best_file is not None and run.held_out is not None:
                best = phase.best_weights(state, self.checkpoints, self.place)
                place = self.checkpoints.folder / "last-good"
                choice = Choice(amount=0.0, decode="candidates", calibrations=[Calibration()] * len(HEADS), figures={})
                arrays = self._exported(run, best, choice)
                trained = self._trained(run, arrays, choice, self._facts(state, choice))
                save(place, self.options, self.material, arrays, trained, state.history, replace=True)
                said = f"the model of epoch {state.best_epoch}, the last good one, is {place}"
            raise GateError(f"{error}; {said}. Try a smaller --lr, after rm -r {self.checkpoints.folder}") from error

    def _choose(self, search: Phase, best: dict[str, Tensor], held_out: Validation) -> Choice:
        """Measure what may be chosen on the held-out rows, with the engine that scores."""
        day_C = finish.last_day(search.events, self.material.items)
        amounts = finish.AMOUNTS if self.material.real_times else finish.AMOUNTS[:1]
        ranks_AN, loss = held_out.ranks(
            best,
            search.config,
            search.standard,
            search.items,
            [amount * day_C if amount else None for amount in amounts],
        )
        place = helpful(ranks_AN)
        plain = Choice(amount=amounts[place], decode="slate", calibrations=[Calibration()] * len(HEADS), figures={})
        engine = open_engine(
            self._model(self._exported(search, best, plain)),
            name="torch",
            device=str(self.place.device),
            precision="fp32",
        )
        modes = held_out.decoding(engine, self.material.items)
        calibrations, of_heads = calibrate(held_out.probabilities(engine), held_out.labels_NCH)
        return Choice(
            amount=amounts[place],
            decode=better_mode(modes, several=self.material.several),
            calibrations=calibrations,
            figures={
                "loss": loss,
                "hr@10": float((ranks_AN[place] < 10).mean()),
                "ndcg@10": float(gain(ranks_AN[place]).mean()),
                "bias_correction": {
                    str(amount): float(gain(ranks_N).mean()) for amount, ranks_N in zip(amounts, ranks_AN, strict=True)
                },
                "decode": modes,
                "heads": of_heads,
                "rows": len(held_out),
            },
        )

    def _exported(self, run: Phase, parameters: dict[str, Tensor], choice: Choice) -> dict[str, F32]:
        bias_C = choice.amount * finish.last_day(run.events, self.material.items) if choice.amount else None
        sides = {"profile": self.material.log.users, "video": self.material.log.videos}
        return finish.exported(
            parameters,
            run.config,
            run.standard,
            choice.calibrations,
            items=run.items,
            bias_added=None if bias_C is None else bias_C.astype(np.float32),
            without=[name for name, side in sides.items() if side is None or side.dense_RD is None],
        )

    def _model(self, arrays: dict[str, F32]) -> Model:
        return Model(
            config=self.material.config,
            weights=arrays,
            directory=None,
            fingerprint="",
            trained=True,
            tokens=FIRST_ITEM + self.material.items,
        )

    def _trained(self, run: Phase, arrays: dict[str, F32], choice: Choice, facts: dict[str, Any]) -> Trained:
        return Trained(
            decode=choice.decode,
            seen_masked=not self.options.include_seen,
            max_events=self.options.max_events,
            heads=self.material.heads,
            catalog_sha256=self.material.log.catalog.fingerprint(),
            weights_sha256=weights.weights_fingerprint(arrays),
            timezone=self.options.timezone or "UTC",
            inputs={
                "mean": [float(f"{value:.5g}") for value in run.standard.mean_F],
                "deviation": [float(f"{value:.5g}") for value in run.standard.deviation_F],
            },
            facts=facts,
        )

    def _facts(self, state: State, choice: Choice) -> dict[str, Any]:
        log = self.material.log
        return {
            "parameters": weights.parameters(self.material.config),
            "users": len(log.ids),
            "events": len(log.events.tokens_E),
            "catalog_videos": self.material.items,
            "videos_beyond_vocabulary": log.catalog.unknown_videos,
            "split": self.material.split,
            "validation": choice.figures,
            "epochs": state.best_epoch,
            "planned_epochs": state.planned,
            "refit": self.options.refit,
            "decode": choice.decode,
            "bias_correction": choice.amount,
            "heads_without_labels": [head for head in HEADS if head not in self.material.heads],
            "device": str(self.place.device),
            "precision": self.place.precision,
        }


def train(options: TrainConfig, path: str, out: Path, stages: Stages | None = None) -> dict[str, Any]:
    """Train a model on a log and save it at `out`; return the run's summary.

    Raises:
        ConfigError, InputError, ModelError, EngineError, GateError, RetryError: see each step.
    """
    stages = stages or Stages()
    places.check_free(out)
    place = Place.of(options.device, options.precision)
    learned = material.read(options, path, stages)
    checkpoints = Checkpoints.open(out, learned.identity(options, path))
    facts = Training(
        options=options,
        path=path,
        out=out,
        material=learned,
        place=place,
        checkpoints=checkpoints,
        stages=stages,
    ).run()
    return {
        "status": "done",
        "model": str(out),
        **facts,
        "stages": {name: round(seconds, 3) for name, seconds in stages.seconds.items()},
        "seconds": round(stages.elapsed_s, 3),
        "peak_rss_mib": round(peak_rss_mib(), 1),
        **learned.log.facts,
        "matches": dict(learned.log.matches),
        "warnings": console.warned(),
    }


def _state(facts: dict[str, Any]) -> State:
    return State(**{name: value for name, value in facts.items() if name != "format"})


def _span(seconds: float) -> str:
    """Return a time as words: "40 s", "12 min", "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
