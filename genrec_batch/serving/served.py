"""A model that answers requests: the events, features, engines and rules of `score`, for a few users at a time.

Owns: the way of a request to a list, and which requests go through the engine together. Must not know: Triton, other
models of an experiment (`arms`), how any step does its work. In: a model directory, then requests. Out: for each an
`Answer`, or the error that refuses it; one bad request costs no other.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec_batch import features
from genrec_batch.core import layout
from genrec_batch.core.arrays import (
    F32,
    FIRST_ITEM,
    I8,
    I32,
    I64,
    MODEL,
    Batch,
    Histories,
    Masks,
    Ragged,
    Ranked,
    SideTable,
    offsets_of,
)  # fmt: skip
from genrec_batch.core.errors import EngineError, GenrecError, without_frames
from genrec_batch.engines import numbers
from genrec_batch.engines.choose import device_of, prepare
from genrec_batch.engines.decode import recommend_all
from genrec_batch.engines.numbers import NotNumbersError
from genrec_batch.engines.protocol import Prefix, SteppedEngine
from genrec_batch.engines.registry import open_engine
from genrec_batch.events.schema_file import ColumnNames
from genrec_batch.features.batches import ModelInputs
from genrec_batch.model import weights
from genrec_batch.model.catalog import Catalog
from genrec_batch.model.weights import Model
from genrec_batch.rules.ranking import Ranking
from genrec_batch.serving import asks, columns, histories, profiles
from genrec_batch.serving.asks import Ask, Wanted
from genrec_batch.serving.columns import Columns
from genrec_batch.serving.histories import History
from genrec_batch.serving.options import Serving
from genrec_batch.serving.own_columns import OwnColumns
from genrec_batch.serving.plans import Plan, plan_of, together
from genrec_batch.serving.sessions import Found, Sessions, recommend_resumed
from genrec_batch.serving.videos import Videos

MOST_PLANS = 4096  # that are kept: clients choose what they want


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A user's list, best first; `source_K` has codes of `arrays.SOURCES`, a score that decided no place is NaN."""

    video_K: npt.NDArray[Any]
    score_K: F32
    log_prob_K: F32
    step_K: I32
    heads_KH: F32
    source_K: I8
    version: str  # the model's fingerprint, as `model` in the summary of `score`
    arm: str = ""  # of an experiment
    bucket: int = -1

    def __len__(self) -> int:
        return len(self.video_K)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request once it is read."""

    place: int
    ask: Ask
    plan: Plan
    found: Found  # the user's history, and what was read of it earlier

    @property
    def history(self) -> History:
        """The user's history."""
        return self.found.history


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model with its engine, ready to answer."""

    serving: Serving
    model: Model
    videos: Videos
    engine: SteppedEngine
    own_columns: OwnColumns | None
    zone: zoneinfo.ZoneInfo | None
    kernel: features.Kernel
    sessions: Sessions | None = None  # of all arms
    arm: str = ""
    _plans: dict[Wanted, Plan] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        folder: Path,
        videos: Path,
        serving: Serving,
        names: ColumnNames,
        *,
        sessions: Sessions | None = None,
        arm: str = "",
    ) -> Served:
        """Open a model directory.

        Args:
            folder: the model directory.
            videos: the table of videos, which need not be there.
            serving: how requests are answered.
            names: the columns of requests.
            sessions: where what is read of users is kept.
            arm: of an experiment.

        Raises:
            ModelError: a file is missing or damaged.
            EngineError: the engine, its device or its precision is not there, or it keeps no sessions.
        """
        model = weights.load(folder)
        catalog = Catalog.read(folder / "catalog.parquet", vocabulary=model.config.vocabulary)
        model = model.with_catalog(len(catalog))
        engine = open_engine(
            model,
            name=serving.engine,
            device=device_of(serving.device, serving.engine),
            precision=serving.precision,
        )
        assert isinstance(engine, SteppedEngine)
        if sessions is not None and not engine.keeps_prefixes:
            raise EngineError(
                f"--session-cache-mb {serving.session_cache_mb}: {engine.name} keeps no sessions on {engine.device}; "
                "export with --device cpu, or without it"
            )
        served = Served(
            serving=serving,
            model=model,
            videos=Videos.read(catalog, videos),
            engine=engine,
            own_columns=OwnColumns.of(names),
            zone=zoneinfo.ZoneInfo(serving.timezone) if serving.timezone not in ("", "UTC") else None,
            kernel=features.kernel_name(features.COMPILED_FROM),
            sessions=sessions,
            arm=arm,
        )
        engine.resize(serving.max_batch)
        usual = Wanted(top_k=serving.top_k, weights=None, max_per=None, include_seen=False, given=False)
        prepare(engine, served._plan(usual).decoding, longest=serving.max_events, mean=serving.max_events)
        return served

    def answers(self, asked: Sequence[Ask | GenrecError]) -> list[Answer | GenrecError]:
        """Return the answer to each request, or why it is refused, in order; a refused one stays what it is."""
        found: list[Answer | GenrecError | None] = [each if isinstance(each, GenrecError) else None for each in asked]
        groups: dict[tuple[object, ...], dict[frozenset[str], list[Prepared]]] = {}
        for place, ask in enumerate(asked):
            if isinstance(ask, GenrecError):
                continue
            try:
                each = self.prepared(ask, place)
            except GenrecError as error:
                found[place] = without_frames(error)
                continue
            names = each.history.columns.names if len(each.history) else frozenset[str]()
            groups.setdefault(each.plan.key, {}).setdefault(names, []).append(each)
        for by_names in groups.values():
            cold = by_names.pop(frozenset(), [])  # events that have no other columns, too
            if cold and by_names and not any(len(each.history) for each in cold):
                next(iter(by_names.values())).extend(cold)
            elif cold:
                by_names[frozenset()] = cold
            for users in by_names.values():
                self._answer(users, found)
        return [each for each in found if each is not None]

    def prepared(self, ask: Ask, place: int = 0) -> Prepared:
        """Return a request with its user's history.

        Raises:
            ConfigError, InputError: it is refused.
        """
        videos, plan = self.videos, self._plan(ask.wanted)
        for name in ("seen", "candidates", "exclude", "only"):
            videos.check(getattr(ask, name) or (), name)
        profiles.check(ask, extra=self.extra)
        own = self.own_columns
        events = columns.converted(ask.events if own is None else own.contract(ask.events), self.zone)
        videos.check(events.video, "events: video_id")
        history = self._history(ask, events)
        found = Found(key=None, history=history)
        if self.sessions is not None:
            found = self.sessions.find(self.arm, ask, history)
        return Prepared(place=place, ask=ask, plan=plan, found=found)

    def inputs(self, users: Sequence[Prepared]) -> ModelInputs:
        """Return what the model reads of users whose requests have the same columns."""
        table, user_row_N = profiles.table([each.ask for each in users], extra=self.extra)
        found = histories.joined([each.history for each in users], user_row_N)
        new_R = np.array([row for row, each in enumerate(users) if each.found.prefix is None], np.int64)
        if len(new_R) == len(users):
            dense_NF = self._dense(found, table)
        else:  # the features of the others are in what was read of them
            dense_NF = np.zeros((len(users), self.model.config.features), np.float32)
            if len(new_R):
                dense_NF[new_R] = self._dense(found.take(new_R), table)
        videos = self.videos.table
        return ModelInputs(
            histories=found,
            dense_NF=dense_NF,
            profile=None if table is None else features.profile_vectors(found, table),
            video=None if videos is None else features.video_vectors(found, videos, kernel=self.kernel),
            candidates=self._ragged([each.ask.candidates for each in users]) if users[0].plan.wanted.given else None,
            include_seen=users[0].plan.wanted.include_seen,
            masks=self._masks([each.ask for each in users]),
        )

    def _dense(self, found: Histories, table: SideTable | None) -> F32:
        dense_NF = features.compute(
            found, table, self.videos.table, max_events=self.serving.max_events, kernel=self.kernel
        )
        if self.extra and dense_NF.shape[1] == layout.FEATURES:
            dense_NF = np.concatenate([dense_NF, np.zeros((len(found), self.extra), np.float32)], axis=1)
        return dense_NF

    @property
    def extra(self) -> int:
        """Further features that the model reads of a user."""
        return self.model.config.features - layout.FEATURES

    def _plan(self, wanted: Wanted) -> Plan:
        plan = self._plans.get(wanted)
        if plan is None:
            plan = plan_of(wanted, self.serving, self.model, self.videos)
            if len(self._plans) < MOST_PLANS:
                self._plans[wanted] = plan
        return plan

    def _history(self, ask: Ask, events: Columns) -> History:
        return histories.of(
            events,
            self.videos,
            as_of_us=None if ask.as_of is None else columns.moment(ask.as_of),
            total_events=ask.total_events,
            seen=self.videos.tokens(ask.seen),
            max_events=self.serving.max_events,
            seen_limit=self.serving.seen_limit,
        )

    def _ragged(self, lists: Sequence[Sequence[asks.Id]]) -> Ragged:
        """Return lists of videos as tokens, without those that are not in the catalog."""
        tokens = [self.videos.tokens(each) for each in lists]
        known = [each[each >= FIRST_ITEM] for each in tokens]
        return Ragged(offsets_N1=offsets_of(np.array([len(each) for each in known])), values=np.concatenate(known))

    def _masks(self, users: Sequence[Ask]) -> Masks | None:
        """Return what `exclude` and `only` forbid, None where no request has either."""
        if not any(each.exclude or each.only is not None for each in users):
            return None
        vocabulary = self.model.config.vocabulary
        allowed = [each.only for each in users if each.only is not None]
        banned_MV = np.zeros((1 + len(allowed), vocabulary), np.bool_)
        banned_MV[1:, FIRST_ITEM:] = True
        for row, ids in enumerate(allowed, 1):
            banned_MV[row, self.videos.tokens(ids)] = False
        has_B = np.array([each.only is not None for each in users])
        masks = Masks.of(banned_MV, np.where(has_B, np.cumsum(has_B), 0))
        excluded = self._ragged([each.exclude for each in users])
        return Masks(banned_MW=masks.banned_MW, mask_B=masks.mask_B, own=excluded)

    def _answer(self, users: Sequence[Prepared], found: list[Answer | GenrecError | None]) -> None:
        """Put the answers to users of one group where they belong, or the error of the engine."""
        users = sorted(
            users, key=lambda each: -each.found.left
        )  # those with the most to read first: see `SteppedEngine.resume`
        kept: dict[int, Prefix] = {}
        try:
            inputs = self.inputs(users)
            batch = inputs.batch(np.arange(len(users)))
            decoding = together([each.plan for each in users])
            if self.sessions is None:
                ranked = next(recommend_all(self.engine, [batch], decoding))
            else:
                ranked, kept = recommend_resumed(self.engine, [each.found for each in users], batch, decoding)
        except GenrecError as error:
            for each in users:
                found[each.place] = without_frames(error)
            return
        bad = self._not_numbers(batch, ranked)
        for row, prefix in kept.items():
            if self.sessions is not None and row not in bad:
                self.sessions.keep(users[row].found, prefix)
        by_plan: dict[Wanted, list[int]] = {}
        for row, each in enumerate(users):
            if row in bad:
                found[each.place] = bad[row]
            else:
                by_plan.setdefault(each.plan.wanted, []).append(row)
        for rows in by_plan.values():
            rows_B = np.array(rows, np.int64)
            lists = users[rows[0]].plan.ranking(taken(ranked, rows_B))
            for row, answer in zip(rows, self._lists(lists), strict=True):
                found[users[row].place] = answer

    def _not_numbers(self, batch: Batch, ranked: Ranked) -> dict[int, GenrecError]:
        try:
            numbers.check(batch, ranked, tokens=self.model.tokens)
        except NotNumbersError as error:
            said = EngineError(f"{self.engine.title} returned no finite scores for the user; {error}")
            return dict.fromkeys(map(int, error.rows_R), said)
        return {}

    def _lists(self, lists: Ranking) -> list[Answer]:
        counts_N = (lists.tokens_NK > 0).sum(axis=1)
        source_NK = np.full(lists.tokens_NK.shape, MODEL, np.int8) if lists.source_NK is None else lists.source_NK
        return [
            Answer(
                video_K=self.videos.id_V[lists.tokens_NK[row, :count]],
                score_K=lists.score_NK[row, :count],
                log_prob_K=lists.log_prob_NK[row, :count],
                step_K=lists.step_NK[row, :count],
                heads_KH=lists.heads_NKH[row, :count],
                source_K=source_NK[row, :count],
                version=self.model.fingerprint[:16],
            )
            for row, count in enumerate(counts_N)
        ]


def taken(ranked: Ranked, rows_B: I64) -> Ranked:
    """Return some rows of what was decoded."""
    if len(rows_B) == len(ranked):
        return ranked
    return Ranked(
        tokens_BK=ranked.tokens_BK[rows_B],
        log_prob_BK=ranked.log_prob_BK[rows_B],
        heads_BKH=ranked.heads_BKH[rows_B],
    )
