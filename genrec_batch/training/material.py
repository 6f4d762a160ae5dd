"""What a training learns from: the log with its labels, what of it is held out, and the model to begin with.

Owns: reading them, and the checks that there is something to learn. Must not know: the network, the steps. In: options
and paths. Out: `Material`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from genrec_batch import __version__
from genrec_batch.core import layout
from genrec_batch.core.arrays import F32, HEADS, I32, UNKNOWN
from genrec_batch.core.declare import recorded
from genrec_batch.core.errors import ConfigError, InputError, ModelError
from genrec_batch.events import splits
from genrec_batch.events.labels import check_labels, head_labels
from genrec_batch.events.splits import DAY_US, Cuts
from genrec_batch.events.survey import Survey
from genrec_batch.events.whole import WholeLog, read_whole
from genrec_batch.features import kernel_name
from genrec_batch.model import opening
from genrec_batch.model.catalog import Catalog
from genrec_batch.model.registry import Begun
from genrec_batch.model.weights import Model, ModelConfig
from genrec_batch.runtime.clock import Stages
from genrec_batch.runtime.console import LOG
from genrec_batch.training.inputs import Events
from genrec_batch.training.options import TrainConfig
from genrec_batch.training.rows import Window

LEAST_ROWS = 500  # users of a last day that validates: fewer tell too little, and each user's newest event more


@dataclass(frozen=True, kw_only=True)
class Material:
    """The log and what is made of it; nothing here depends on weights but those to begin with."""

    log: WholeLog
    config: ModelConfig
    labels_EH: F32  # NaN where a head has no label
    heads: tuple[str, ...]  # that have labels
    cuts: Cuts  # what is held out
    split: str  # how, in words
    several: bool  # more than one event of a user is held out
    real_times: bool
    window: Window
    base: Model | None
    base_token_C: I32 | None  # of each video of the catalog in `base`, 0 where it has none

    @property
    def items(self) -> int:
        """Videos of the catalog."""
        return len(self.log.catalog)

    def events(self, options: TrainConfig, *, held_out: bool) -> Events:
        """Return what is learned from: all events, or those before the cuts where the others are `held_out`."""
        whole, labels_EH = self.log.events, self.labels_EH
        if held_out:
            whole, labels_EH = splits.before(whole, self.cuts), labels_EH[splits.kept_before(whole, self.cuts)]
        return Events.of(
            whole,
            labels_EH,
            users=self.log.users,
            videos=self.log.videos,
            include_seen=options.include_seen,
            window=self.window,
            kernel=kernel_name(len(whole) * (options.epochs or 10)),
            items=self.items,
        )

    def identity(self, options: TrainConfig, path: str) -> dict[str, Any]:
        """Return what makes a training this one, JSON-able: a run with the same can be continued."""
        return {
            "version": __version__,
            "layout": layout.fingerprint(),
            "options": {**recorded(options), "events": path},
            "inputs": {name: source.fingerprint for name, source in self.log.inputs.items()},
            "begins_with": None if self.base is None else self.base.fingerprint,
        }


def read(options: TrainConfig, path: str, stages: Stages, begun: Begun | None = None) -> Material:
    """Read what is learned from; `begun` is what a training that is continued began with.

    Raises:
        ConfigError, InputError, GateError, ModelError, RetryError: see each input, and `_check`.
    """
    base = (
        None
        if options.init_from is None
        else opening.open_model(options.init_from, options.registry, "--init-from", begun=begun)
    )
    config = sizes(options, base)
    with stages.watched(options.stall_limit):
        log = read_whole(
            path,
            lambda found, _: _catalog(found, config, path),
            stages,
            users=options.users,
            extra_features=options.extra_features,
            extra_wanted=-1 if base is None else base.config.features - layout.FEATURES,
            videos=options.videos,
            schema_name=options.schema,
            as_of_us=options.as_of_us(),
            since=options.since,
            timezone=options.timezone,
            dedupe=options.dedupe,
            dedupe_by=options.dedupe_by,
            max_rejects=options.max_rejects,
            min_match=options.min_match,
            positive=options.positive,
            newest=options.side_tables_newest,
            rejects=options.rejects,
        )
    _check(log, path)
    labels_EH = head_labels(log.events)
    heads = check_labels(labels_EH, log.events, f"EVENTS {path}", options.positive)
    missing = [head for head in HEADS if head not in heads]
    if missing:
        LOG.warning("no two labels for %s: what these heads predict will mean nothing", ", ".join(missing))
        labels_EH[:, [HEADS.index(head) for head in missing]] = np.nan
    cuts, split = _held_out(options, log)
    extra_RX = None if log.users is None else log.users.extra_RX
    return Material(
        log=log,
        config=replace(config, features=layout.FEATURES + (0 if extra_RX is None else extra_RX.shape[1])),
        labels_EH=labels_EH,
        heads=tuple(heads),
        cuts=cuts,
        split=split,
        several=bool((cuts.stop_N - cuts.place_N > 1).any()),
        real_times=splits.has_real_times(log.events),
        window=Window(history=options.max_events, horizon=options.horizon(config)),
        base=base,
        base_token_C=None if base is None else _tokens_of(base, log.catalog, options),
    )


def sizes(options: TrainConfig, base: Model | None) -> ModelConfig:
    """Return the model's sizes: those of the model to begin with, which only the vocabulary may differ from.

    Raises:
        ConfigError: others are asked for.
    """
    if base is None:
        return options.sizes()
    asked = options.sizes()
    same = replace(base.config, vocabulary=options.vocab_size or base.config.vocabulary)
    asked = replace(asked, features=same.features)
    if options.has_sizes() and replace(asked, vocabulary=same.vocabulary) != same:
        raise ConfigError(f"--init-from {options.init_from}: its sizes are {same}, so no others can be asked for")
    options.check_positions(same)
    return same


def _catalog(found: Survey, config: ModelConfig, path: str) -> Catalog:
    catalog = Catalog.from_counts(found.videos, vocabulary=config.vocabulary)
    if catalog.unknown_videos:
        LOG.warning(
            "%s of %s videos, with %.1f%% of the events, do not fit the vocabulary of %s and are never recommended; "
            "--vocab-size %d holds all",
            f"{catalog.unknown_videos:,}", f"{len(found.videos):,}",
            100 * catalog.unknown_events / max(1, int(found.videos["count"].sum())), f"{config.vocabulary:,}",
            len(found.videos) + 2,
        )  # fmt: skip
    if len(catalog) < 2:
        raise InputError(
            f"EVENTS {path}: {len(found.videos)} video{'s' * (len(found.videos) != 1)}, of which the vocabulary of "
            f"{config.vocabulary} holds {len(catalog)}: a model ranks at least two"
        )
    return catalog


def _check(log: WholeLog, path: str) -> None:
    if len(log.ids) < 2:
        raise InputError(f"EVENTS {path}: all events are of one user, so there is nothing to learn for others")
    if int(log.events.lengths_N.max(initial=0)) < 2:
        raise InputError(f"EVENTS {path}: no user has two events, so there is no next video to learn")


def _held_out(options: TrainConfig, log: WholeLog) -> tuple[Cuts, str]:
    """Return the cuts of the users whose newest events are held out, and in words which."""
    events = log.events
    flag, moment = "--valid-from", options.valid_from_us()
    if moment is not None:
        flag = f"--valid-from {options.valid_from}"
    elif options.valid_fraction is not None:
        flag = f"--valid-fraction {options.valid_fraction}"
        moment = splits.moment_of_share(events, options.valid_fraction, flag)
    elif not options.leave_one_out and splits.has_real_times(events):
        flag, last = "the last day", int(events.time_us_E.max()) - DAY_US + 1
        moment = last if len(splits.from_moment(events, last, flag)) >= LEAST_ROWS else None
    if moment is None:
        return splits.leave_out(events), "each user's newest event"
    cuts = splits.from_moment(events, moment, flag)
    if (cuts.place_N == events.offsets_N1[cuts.user_N]).all():
        raise ConfigError(f"{flag}: no user has events before and after it; choose an earlier moment")
    return cuts, f"events from {splits.text(moment)} on"


def _tokens_of(base: Model, catalog: Catalog, options: TrainConfig) -> I32:
    """Return the token of each video of the catalog in the model to begin with, 0 where it has none."""
    assert base.directory is not None
    with base.files.held():
        theirs = Catalog.read(base.directory / "catalog.parquet", vocabulary=base.config.vocabulary)
    theirs.check_type(catalog.id_type, "EVENTS")
    token_C = theirs.tokens(catalog.items["video_id"]).to_numpy().copy()
    token_C[token_C == UNKNOWN] = 0
    known = int((token_C > 0).sum())
    if not known:
        raise ModelError(f"--init-from {options.init_from}: none of its {len(theirs):,} videos is in the log")
    LOG.info("%s of %s videos begin with the embeddings of %s", f"{known:,}", f"{len(catalog):,}", options.init_from)
    return np.asarray(token_C, np.int32)
