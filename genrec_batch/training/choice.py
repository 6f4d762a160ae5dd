"""What validation decides of a model: the correction of its bias, its decoding, its heads, whether sets have paid.

Owns: the choice and how it is measured, with the engine that scores. Must not know: how weights come about. In: the
weights of a phase, and its held-out rows. Out: `Choice`, and with it the arrays of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from genrec_batch.core.arrays import F32, FIRST_ITEM, HEADS
from genrec_batch.engines.protocol import SteppedEngine
from genrec_batch.engines.registry import open_engine
from genrec_batch.model.weights import Model
from genrec_batch.training import finish
from genrec_batch.training.heads import Calibration, calibrate
from genrec_batch.training.material import Material
from genrec_batch.training.phase import Phase
from genrec_batch.training.validate import Lists, better_mode, gain, helpful


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What validation decided, and its figures."""

    amount: float = 0.0  # of the correction of the output bias
    decode: str
    calibrations: list[Calibration] = field(default_factory=lambda: [Calibration()] * len(HEADS))
    figures: dict[str, Any] = field(default_factory=dict)
    lists: Lists | None = None  # of that decoding
    sets: Mapping[str, Any] | None = None  # how lists were before and after epochs on sets; None without such epochs

    @property
    def set_epochs(self) -> int:
        """Epochs on sets that are kept."""
        return self.sets["epochs"] if self.sets is not None and self.sets["kept"] else 0


def choose(run: Phase, material: Material, parameters: Mapping[str, Tensor]) -> Choice:
    """Measure what may be chosen on the held-out rows."""
    held_out = run.held_out
    assert held_out is not None, run.name
    day_C = finish.last_day(run.events, run.items)
    amounts = finish.AMOUNTS if material.real_times else finish.AMOUNTS[:1]
    corrections = [amount * day_C if amount else None for amount in amounts]
    ranks_AN, loss = held_out.ranks(parameters, run.config, run.standard, run.items, corrections)
    place = helpful(ranks_AN)
    engine = engine_of(run, exported(run, material, parameters, Choice(amount=amounts[place], decode="slate")))
    modes = held_out.decoding(engine, run.items)
    decode = better_mode(modes, several=material.several)
    calibrations, of_heads = calibrate(held_out.probabilities(engine), held_out.labels_NCH)
    return Choice(
        amount=amounts[place],
        decode=decode,
        lists=modes[decode],
        calibrations=calibrations,
        figures={
            "loss": loss,
            "hr@10": float((ranks_AN[place] < 10).mean()),
            "ndcg@10": float(gain(ranks_AN[place]).mean()),
            "bias_correction": {
                str(amount): float(gain(ranks_N).mean()) for amount, ranks_N in zip(amounts, ranks_AN, strict=True)
            },
            "decode": {mode: lists.figures() for mode, lists in modes.items()},
            "heads": of_heads,
            "rows": len(held_out),
        },
    )


def better(before: Choice, after: Choice, epochs: int, *, several: bool) -> Choice:
    """Return the choice after so many epochs on sets if its lists are better, else that before; with both's figures.

    What is compared are lists of the decoding that is the default, before and after. To be better they must gain more
    than the standard error of the difference.
    """
    assert before.lists is not None
    assert after.lists is not None
    kept = after.lists.better_than(before.lists, several=several)
    modes = {name: each.figures["decode"] for name, each in (("before", before), ("after", after))}
    return replace(after if kept else before, sets={"epochs": epochs, "kept": kept, **modes})


def exported(run: Phase, material: Material, parameters: Mapping[str, Tensor], choice: Choice) -> dict[str, F32]:
    """Return the arrays of a model directory, with what is chosen folded in."""
    bias_C = choice.amount * finish.last_day(run.events, run.items) if choice.amount else None
    sides = {"profile": material.log.users, "video": material.log.videos}
    return finish.exported(
        parameters,
        run.config,
        run.standard,
        choice.calibrations,
        items=run.items,
        bias_added=None if bias_C is None else bias_C.astype(np.float32),
        without=[name for name, side in sides.items() if side is None or side.dense_RD is None],
    )


def engine_of(run: Phase, arrays: dict[str, F32]) -> SteppedEngine:
    """Open the engine that scores with these arrays."""
    model = Model(
        config=run.config,
        weights=arrays,
        directory=None,
        fingerprint="",
        trained=True,
        tokens=FIRST_ITEM + run.items,
    )
    engine = open_engine(model, name="torch", device=str(run.place.device), precision="fp32")
    assert isinstance(engine, SteppedEngine)
    return engine
