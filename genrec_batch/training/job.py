"""A training from end to end: read the log, train and validate, choose, train again on all of it, save.

Owns: the order of the steps and what each hands to the next. Must not know: the arithmetic of any of them. In: options,
a log, the place of the model. Out: a model directory, and a summary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from genrec_batch.core.arrays import F32, HEADS
from genrec_batch.core.errors import GateError
from genrec_batch.model import places, weights
from genrec_batch.model.trained import Trained
from genrec_batch.runtime import console
from genrec_batch.runtime.clock import Stages, peak_rss_mib
from genrec_batch.runtime.console import LOG
from genrec_batch.training import distribution, finish, material, network, phase, precheck
from genrec_batch.training.checkpoint import SETS, STATE, Checkpoints
from genrec_batch.training.choice import Choice, better, choose, engine_of, exported
from genrec_batch.training.device import Place
from genrec_batch.training.inputs import Standard
from genrec_batch.training.material import Material
from genrec_batch.training.options import TrainConfig
from genrec_batch.training.phase import REFIT, REFIT_SETS, SEARCH, SEARCH_SETS, Phase, State
from genrec_batch.training.saving import save
from genrec_batch.training.validate import Validation

STANDARD_ROWS = 20_000  # whose features are looked at


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
        choice = self._choose(search, best)
        if self.options.set_epochs:
            best, choice = self._on_sets(search, best, choice, state, tensors)
        last, of_last = search, best
        if self.options.refit:
            with self.stages.time("refit"):
                last, of_last = self._refit(choice, state, tensors)
        arrays = exported(last, self.material, of_last, choice)
        facts = self._facts(state, choice)
        with self.stages.time("distribution"), console.busy("recording the distribution of inputs and scores"):
            engine = engine_of(last, arrays)
            found_now = distribution.recorded(everything, engine, self.material.config.features, self.material.items)
        with self.stages.time("save"), console.busy("writing the model"):
            trained = self._trained(last, arrays, choice, facts)
            save(self.out, self.options, self.material, arrays, replace(trained, distribution=found_now), state.history)
        self.checkpoints.remove()
        with self.stages.time("precision"):
            check = precheck.checked(self.out, self.options, everything, self.material.items)
        return facts | check

    def _search(self, search: Phase, state: State, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        if state.phase != SEARCH:
            return phase.best_weights(state, self.checkpoints, self.place)
        initial = self.initial(search.standard)
        if not state.planned:
            state.planned = self._planned(search, initial)
        with self.stages.time("search"):
            return self._phase(search, state.planned, initial, state, tensors)

    def _on_sets(
        self, search: Phase, best: dict[str, Tensor], plain: Choice, state: State, tensors: dict[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], Choice]:
        """Train on sets from the best weights on; return those that rank better on validation, and the choice."""
        sets, epochs = search.on_sets(SEARCH_SETS, state.best_epoch), self.options.set_epochs
        if state.phase in (SEARCH, SEARCH_SETS):
            with self.stages.time("sets"):
                after = self._phase(sets, epochs, best, state, tensors)
            self.checkpoints.save(SETS, after, {})
        else:
            after = phase.stored_weights(SETS, self.checkpoints, self.place)
        choice = better(plain, self._choose(sets, after), epochs, several=self.material.several)
        LOG.info(
            "epochs on sets: %s", "lists are better, kept" if choice.set_epochs else "lists are not better, undone"
        )
        return (after if choice.set_epochs else best), choice

    def _refit(
        self, choice: Choice, state: State, tensors: dict[str, Tensor] | None
    ) -> tuple[Phase, dict[str, Tensor]]:
        """Train anew on the whole log, for as many epochs as validation found."""
        refit = self.phase(REFIT, None)
        found = self.initial(refit.standard)
        if state.phase != REFIT_SETS:
            found = self._phase(refit, state.best_epoch, found, state, tensors)
        if choice.set_epochs:
            sets = refit.on_sets(REFIT_SETS, state.best_epoch)
            found = self._phase(sets, choice.set_epochs, found, state, tensors)
        return refit, found

    def _planned(self, search: Phase, initial: dict[str, Tensor]) -> int:
        """Return the epochs that are planned, and say how long they will take."""
        steps = search.steps()
        planned = self.options.epochs or phase.planned_epochs(steps)
        more = self.options.set_epochs
        epoch_s = phase.estimated_epoch_s(search, initial) * (2 if self.options.refit else 1)
        limit_s = self.options.time_limit_s()
        if limit_s is not None:
            planned = max(1, min(planned, int(limit_s / epoch_s) - more))
        LOG.info(
            "at most %d epochs%s of %s steps, about %s%s; held out: %s",
            planned,
            f" and {more} on sets" if more else "",
            f"{steps:,}",
            _span((planned + more) * epoch_s),
            " with the refit" if self.options.refit else "",
            self.material.split,
        )
        return planned

    def _phase(
        self, run: Phase, epochs: int, initial: dict[str, Tensor], state: State, tensors: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Run a phase, from where the checkpoint is if that is in it.

        Where it diverges, what validated best so far becomes a model beside the checkpoint.
        """
        if state.phase != run.name:
            state.next_phase(run.name)
            tensors = None
        try:
            return phase.run(run, epochs, initial, state, self.checkpoints, tensors)
        except GateError as error:
            said = "no epoch was validated yet"
            if state.best_file is not None and run.held_out is not None:
                best = phase.best_weights(state, self.checkpoints, self.place)
                place = self.checkpoints.folder / "last-good"
                choice = Choice(decode="candidates")
                arrays = exported(run, self.material, best, choice)
                trained = self._trained(run, arrays, choice, self._facts(state, choice))
                save(place, self.options, self.material, arrays, trained, state.history, replace=True)
                said = f"the model of epoch {state.best_epoch}, the last good one, is {place}"
            raise GateError(f"{error}; {said}. Try a smaller --lr, after rm -r {self.checkpoints.folder}") from error

    def _choose(self, run: Phase, parameters: dict[str, Tensor]) -> Choice:
        with self.stages.time("choose"), console.busy("choosing the decoding, calibrating the heads"):
            return choose(run, self.material, parameters)

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
            "set_epochs": choice.set_epochs,
            "sets": choice.sets,
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
    learned = material.read(options, path, stages, Checkpoints.begun(out))
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
        **({} if learned.base is None or learned.base.version is None else {"init_from": learned.base.version.facts()}),
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
