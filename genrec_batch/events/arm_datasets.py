"""The data sets of the arms of an experiment: the same users and events, each with the model and catalog of its arm.

Owns: what depends on the model in a data set. Must not know: who is in which arm, engines. In: a data set that was
opened for arms, and an arm's options. Out: the `Dataset` of the arm, which shares users, events and tables with it.
"""

from __future__ import annotations

from dataclasses import replace

from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events import side_tables
from genrec_batch.events.beside import given_candidates, named_rows
from genrec_batch.events.dataset import Dataset, catalog_for, open_model, warn_about
from genrec_batch.events.promoted import promoted_tokens
from genrec_batch.model.registry import Begun


def of_arm(dataset: Dataset, config: ScoreConfig, begun: Begun | None = None) -> Dataset:
    """Return a data set as another model reads it; `begun` is what an earlier try of the run recorded of it.

    Raises:
        ConfigError: the model reads other further features, or was trained with another time zone.
        GateError, ModelError: next to none of its catalog's videos are the log's, or it is damaged.
    """
    shared = dataset.shared
    assert shared is not None, "opened for arms"
    found, joins = shared.found, replace(shared.joins, found={})
    model = open_model(config, begun)
    config.check_positions(model.config.positions)
    if model.config.features != dataset.model.config.features:
        raise ConfigError(
            f"its model reads {model.config.features} features of a user, that of the first arm "
            f"{dataset.model.config.features}: arms share --extra-features, so give models of one number of features"
        )
    warn_about(model, config)
    catalog = catalog_for(model, found, joins.where)
    token_V = catalog.tokens(found.videos["video_id"]).to_numpy()
    joins.catalog(catalog, token_V, found.videos["count"], f"--model {config.model}")
    videos = shared.beside.video_rows
    return replace(
        dataset,
        tables=replace(
            dataset.tables, candidates=given_candidates(shared.beside.given, dataset.users.ids, catalog, config)
        ),
        promoted=promoted_tokens(shared.promoted, config.promote, catalog, joins),
        named_videos=named_rows(config, videos),
        catalog_videos=None if videos is None else side_tables.by_token(videos, catalog),
        catalog=catalog,
        model=model.with_catalog(len(catalog)),
        facts={**dataset.facts, "matches": joins.found},
        token_V=token_V,
    )
