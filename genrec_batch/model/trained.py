"""What scoring needs to know about a model's training: the entry `training` of `config.json`.

Owns: the names and the checks of that entry. Must not know: how a model is trained or scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from genrec_batch.core.drift import Distribution
from genrec_batch.core.errors import ConfigError, ModelError

MODES = ("slate", "candidates")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a model was trained, as far as scoring depends on it."""

    decode: str  # the mode of decoding that ranked better on validation
    seen_masked: bool  # videos that a user had seen were left out of the softmax, so they rank badly
    max_events: int  # newest events of a history in training
    heads: tuple[str, ...]  # heads that had labels; the values of others are meaningless
    catalog_sha256: str  # of the catalog that the weights belong to
    weights_sha256: str = ""  # of the weights as they were saved
    timezone: str = ""  # of hours and weekdays; empty where it was not recorded
    inputs: Mapping[str, list[float]] = field(default_factory=dict)  # mean and deviation of each feature in training
    distribution: Distribution | None = None  # of what the model read and scored at the end of its training
    facts: Mapping[str, Any] = field(default_factory=dict)  # further figures for people, JSON-able

    def stored(self) -> dict[str, Any]:
        """Return the entry of `config.json`."""
        found = self.distribution
        return {
            **asdict(replace(self, distribution=None)),
            "heads": list(self.heads),
            "facts": dict(self.facts),
            "inputs": dict(self.inputs),
            "distribution": None if found is None else found.stored(),
        }

    def check_catalog(self, sha256: str, path: Path) -> None:
        """Raise ModelError where a catalog is not the one that the weights were trained with."""
        if self.catalog_sha256 and sha256 != self.catalog_sha256:
            raise ModelError(
                f"{path}: not the catalog that the weights were trained with, so every token would be another video; "
                "copy the whole model directory again"
            )

    def check_timezone(self, zone: str | None) -> None:
        """Raise ConfigError where hours and weekdays are of another time zone than in training; None is UTC."""
        if self.timezone and self.timezone != (zone or "UTC"):
            raise ConfigError(
                f"--timezone {zone or 'UTC'}: the model was trained with hours and weekdays of {self.timezone}; score "
                f"with --timezone {self.timezone}, or train again"
            )

    @staticmethod
    def read(entry: Any, path: Path) -> Trained | None:
        """Return the entry of a `config.json`, None where it has none.

        Raises:
            ModelError: it is damaged.
        """
        if entry is None:
            return None
        try:
            found = Trained(
                decode=entry["decode"],
                seen_masked=entry["seen_masked"] is True,
                max_events=int(entry["max_events"]),
                heads=tuple(entry["heads"]),
                catalog_sha256=str(entry["catalog_sha256"]),
                weights_sha256=str(entry.get("weights_sha256", "")),
                timezone=str(entry.get("timezone", "")),
                inputs=entry.get("inputs", {}),
                distribution=None if (known := entry.get("distribution")) is None else Distribution.read(known),
                facts=entry.get("facts", {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{path}: the entry `training` is damaged ({type(error).__name__}: {error})") from error
        if found.decode not in MODES:
            raise ModelError(f"{path}: training.decode is {found.decode!r}, not one of {', '.join(MODES)}")
        return found
