"""A run's rules about which videos may be recommended, made ready from its options and its data set.

Owns: when a run has rules at all, and a fallback. Must not know: how either is carried out. In: options and a data set.
Out: `Ruling`, and the vectorizer whose inputs obey it.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from genrec_batch.core.arrays import I32
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events.dataset import Dataset
from genrec_batch.features.batches import Vectorizer
from genrec_batch.model.catalog import Catalog
from genrec_batch.rules.eligible import Eligible
from genrec_batch.rules.popular import Caps, Popular, beyond_catalog
from genrec_batch.rules.universe import Universe
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring import filling
from genrec_batch.scoring.filling import Filling


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """What the rules of a run mean for its users."""

    rules: Eligible | None  # None where the engine has nothing to mask
    filling: Filling | None  # what fills short lists
    catalog: Catalog  # with the ids of all numbers that rows can have
    beyond_V: I32 | None = None  # see `filling.know_seen`

    @staticmethod
    def of(config: ScoreConfig, dataset: Dataset) -> Ruling:
        """Return the rules of a run, and count the views that its fallback needs.

        Raises:
            ConfigError: neither `--users` nor the log has the column of the fallback.
            GateError: the rules leave no video for anybody.
            InputError, RetryError: the log cannot be read.
        """
        fallback, viewed, beyond = config.fallback_of(), None, pl.Series("video_id", [], dataset.video_type)
        if fallback is not None:
            viewed = filling.views(fallback, dataset)
            beyond = beyond_catalog(viewed, dataset.catalog, dataset.video_type)
        universe = Universe(catalog=dataset.catalog, vocabulary=dataset.model.config.vocabulary, beyond=beyond)
        if viewed is None and not dataset.rules:
            return Ruling(rules=None, filling=None, catalog=dataset.catalog)
        ids = dataset.users.ids
        rules = Eligible.of(dataset.rules, config, universe, ids, dataset.users.as_of_us)
        filler, beyond_V = None, None
        if viewed is not None:
            beyond_V = filling.know_seen(dataset, universe)
            videos, per = dataset.named_videos, config.caps()
            caps = Caps.of(per, videos, universe) if per and videos is not None else None
            popular = Popular.of(viewed, universe, rules.common_U, ids, caps)
            filler = Filling(popular=popular, rules=rules, include_seen=config.include_seen)
        _tell_promoted(dataset, rules)
        masking = rules if dataset.rules else None
        return Ruling(rules=masking, filling=filler, catalog=universe.shown(), beyond_V=beyond_V)

    def vectorizer(self, config: ScoreConfig, dataset: Dataset) -> Vectorizer:
        """Return the vectorizer of the users, whose inputs carry the masks of the rules."""
        masks = None if self.rules is None else self.rules.model_masks
        return Vectorizer.of(dataset, include_seen=config.include_seen, masks=masks, beyond_V=self.beyond_V)


def _tell_promoted(dataset: Dataset, rules: Eligible) -> None:
    """Warn of videos that are promoted, and that a rule for all removes."""
    if dataset.promoted is None:
        return
    token_P = dataset.promoted["token"].unique().to_numpy()
    names = [rule.name for rule in rules.for_all if rule.removed_U[token_P].any()]
    if names:
        said = "%s of the %s videos of --promote are not promoted, since a rule removes them for everybody: %s"
        LOG.warning(said, f"{int(rules.common_U[token_P].sum()):,}", f"{len(token_P):,}", ", ".join(names))
