"""How the lists of a run are composed, made ready from its options and its data set.

Owns: when a run composes lists at all, the seed of its draws, and what it counts. Must not know: how a rule is carried
out, engines, files. In: options and a data set, then what was scored for users. Out: rows of a `Ranking`.

The seed is a hash of what decides the rows: model, catalog, as-of, the contents of the inputs and the options that
decide rows. Which users are scored, in which batches, on which engine and in which layout is no part of it, so `--user`
and `--explain` draw what the whole run drew, and a run of another night draws anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import polars as pl

from genrec_batch.core.arrays import EXPLORED, F32, I32, I64, PROMOTED, U64, Ranked
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events.dataset import Dataset
from genrec_batch.features.batches import ModelInputs
from genrec_batch.rules import columns, draws
from genrec_batch.rules.compose import Composed, Composer, kernel_name
from genrec_batch.rules.lists import DPP, MMR, PLAIN, Rules
from genrec_batch.rules.promotions import Promoted, Promotions
from genrec_batch.rules.ranking import Ranking
from genrec_batch.runtime.console import LOG

METHODS = {"mmr": MMR, "dpp": DPP}
NOT_DRAWN_FROM = ("users_only",)  # inputs that say who is scored


@dataclass(frozen=True, kw_only=True)
class Composing:
    """The rules of a run that compose lists."""

    config: ScoreConfig
    dataset: Dataset
    composer: Composer
    promotions: Promotions | None

    @staticmethod
    def of(config: ScoreConfig, dataset: Dataset) -> Composing | None:
        """Return what composes the lists of a run, None where no rule does.

        Raises:
            ConfigError: a rule names a column that `--videos` lacks, or has nothing to compare videos by.
            InputError: a column cannot be used as its rule does.
        """
        if not config.composes:
            return None
        _tell_pool(config)
        videos = pl.DataFrame(height=len(dataset.catalog)) if dataset.catalog_videos is None else dataset.catalog_videos
        boosts, table = config.boosts(), dataset.promoted
        composer = Composer(
            top_k=config.top_k,
            rules=_rules(config, videos),
            boost_V=columns.boosts(videos, boosts, dataset.catalog) if boosts else np.zeros(0),
            kernel=kernel_name(len(dataset.users)),
        )
        promotions = None
        if table is not None:
            promotions = Promotions.of(
                table,
                dataset.users.ids,
                top_k=config.top_k,
                share=config.promote_share,
                vocabulary=dataset.model.config.vocabulary,
            )
        return Composing(config=config, dataset=dataset, composer=composer, promotions=promotions)

    @cached_property
    def seed(self) -> int:
        """The seed of all draws; see the module."""
        inputs = self.dataset.inputs.items()
        deciding = [f.name for f in fields(ScoreConfig) if f.metadata["identity"] == "rows"]
        shown = [f.name for f in fields(ScoreConfig) if f.metadata["panel"] == "Output"]
        return draws.seed_of(
            {
                "model": self.dataset.model.fingerprint,
                "catalog": self.dataset.catalog.fingerprint(),
                "as_of": self.dataset.users.as_of_us,
                "config": {name: getattr(self.config, name) for name in deciding if name not in shown},
                "input": {name: {**s.snapshot(), "path": ""} for name, s in inputs if name not in NOT_DRAWN_FROM},
            }
        )

    def scope(self) -> dict[str, str]:
        """Return what the rules read of tables, for all users: an earlier output with another one gives no rows."""
        digest = hashlib.sha256(self.composer.fingerprint().encode())
        if self.dataset.promoted is not None:
            digest.update(str(self.dataset.inputs["promote"].snapshot()["sha256"]).encode())
        return {"composed_by": digest.hexdigest()}

    def promoted(self, places_N: I64, inputs: ModelInputs) -> Promoted | None:
        """Return the promoted videos of the users at some places of the run, None where none are promoted."""
        if self.promotions is None:
            return None
        seen = None if inputs.include_seen else inputs.histories.seen
        return self.promotions.promoted(places_N, seen, inputs.masks)

    def keys(self, ids: pl.Series) -> U64:
        """Return the keys of users for their draws, [N]; zeros where nothing is drawn."""
        return draws.keys(ids, self.seed) if self.composer.explores else np.zeros(len(ids), np.uint64)

    def room(self, users: int) -> Ranking:
        """Return room for the lists of N users."""
        return Ranking.empty(users, self.config.top_k, sources=True, propensity=self.composer.explores)

    def put(
        self, ranking: Ranking, rows_B: I64, ranked: Ranked, score_BP: F32, promoted_BK: I32 | None, keys_B: U64
    ) -> Composed:
        """Compose the lists of B users and write them at `rows_B`."""
        composed = self.composer.compose(ranked, score_BP, promoted_BK, keys_B)
        ranking.put_composed(rows_B, ranked, composed)
        return composed


def counts(ranking: Ranking, found: list[Composed], promoted: Promoted | None) -> dict[str, int]:
    """Return what a shard's summary says of its lists."""
    assert ranking.source_NK is not None
    there_NK = ranking.tokens_NK > 0
    said = (
        {"explored_rows": int((there_NK & (ranking.source_NK == EXPLORED)).sum())}
        if ranking.propensity_NK is not None
        else {}
    )
    if promoted is not None:
        said["promoted_rows"] = int((there_NK & (ranking.source_NK == PROMOTED)).sum())
        said["promoted_seen"] = promoted.seen
        said["promoted_excluded"] = promoted.excluded
        said["promoted_capped"] = sum(int(each.dropped_B.sum()) for each in found)
    return said


def _tell_pool(config: ScoreConfig) -> None:
    """Log what the rules choose from."""
    if config.candidates:
        return
    if config.list_decode == "slate":
        more = config.pool_steps(config.top_k)
        LOG.info("rules choose from a slate of %d videos for a list of %d, one decode step each", more, config.top_k)
    elif config.decode == "auto":
        said = "--decode auto is candidates, since rules compose lists: they choose from the best %d; slate decodes %d"
        LOG.info(said, config.num_candidates, config.pool_steps(config.top_k))


def _rules(config: ScoreConfig, videos: pl.DataFrame) -> Rules:
    """Return the rules as arrays by token."""
    caps, diversity = config.caps(), config.diversity()
    rows = columns.codes(videos, (), "--max-per").shape[0]
    vectors_VE, one_over_V, groups_VG = np.zeros((rows, 0), np.float32), np.zeros(rows), np.zeros((rows, 0), np.int32)
    if diversity is not None:
        vectors_VE, one_over_V, groups_VG = columns.likeness(videos, config.alike_by())
    return Rules(
        caps_D=np.array(list(caps.values()), np.int32),
        codes_VD=columns.codes(videos, caps, "--max-per"),
        vectors_VE=vectors_VE,
        one_over_V=one_over_V,
        groups_VG=groups_VG,
        method=METHODS[diversity.method] if diversity is not None else PLAIN,
        weight=diversity.weight if diversity is not None else 0.0,
        explore=float(config.explore),
    )
