"""`score --explain USER`: why a user gets this list.

Owns: which facts explain a list. Must not know: how histories, features or engines compute; it calls them. In: the
options of `score`, a log and a user's id. Out: a plain dictionary. What was masked as seen is found by decoding twice
side by side: once as always, once with nothing seen, both reading the same videos.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import polars as pl

from genrec_batch.core import layout
from genrec_batch.core.arrays import FIRST_ITEM, HEADS, I32, U8, Batch, Histories, Ranked
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import decoding_of, select
from genrec_batch.engines.decode import Decoding, blend, recommend
from genrec_batch.engines.protocol import SteppedEngine
from genrec_batch.events.dataset import Dataset
from genrec_batch.features.batches import ModelInputs
from genrec_batch.reports.composed import composition, filled
from genrec_batch.rules.assign import Assignment
from genrec_batch.rules.ranking import Ranking
from genrec_batch.runtime import console
from genrec_batch.runtime.console import LOG
from genrec_batch.scoring.arm_run import of_arm
from genrec_batch.scoring.carry import Carried
from genrec_batch.scoring.composing import Composing
from genrec_batch.scoring.filling import Filled
from genrec_batch.scoring.rows import recommendations
from genrec_batch.scoring.rules import Ruling

COMPARED = 100  # best videos of each step, seen ones among them, that are searched for the chosen one
LISTED = 5  # best videos listed for each step, and slots for each feature block
SHOWN = (
    "watch_duration",
    "watch_percentage",
    "is_liked",
    "recommendation_source",
)  # columns of a kept event, if the log has them


def explained(config: ScoreConfig, source: str, user: str) -> dict[str, Any]:
    """Return the user's kept history, unknown and seen videos, feature blocks, candidates per step, and the list.

    With arms, it is the list of the arm that the user is in; shadows explain nothing, as nobody gets their lists.

    Raises:
        GenrecError: see its subclasses; ConfigError if the user is in no input.
    """
    if config.arm:
        return _in_the_own_arm(config, source, user)
    config = dataclasses.replace(config, user=(user,))
    dataset = Dataset.open(source, config)
    with closing(dataset.users):
        histories = dataset.users.first_shard()
    composing, ruling = Composing.of(config, dataset), Ruling.of(config, dataset)
    inputs = ruling.vectorizer(config, dataset).inputs(histories, 0)
    rules = [] if ruling.rules is None else list(ruling.rules.removed_from(0))
    batch = inputs.batch(np.zeros(1, np.int64))
    decoding = decoding_of(config, dataset.model)
    chosen = select(
        dataset.model, batch, decoding, name=config.engine, device=config.device, precision=config.precision
    )
    LOG.info("engine: %s", chosen.why)
    engine = chosen.engine
    assert isinstance(engine, SteppedEngine)
    ranked = recommend(engine, batch, decoding)
    seen = set() if config.include_seen else set(histories.seen.values.tolist())
    total, kept = int(histories.total_events_N[0]), int(histories.lengths_N[0])
    events = _events(dataset)
    return {
        "status": "ok",
        "command": "score --explain",
        "user_id": dataset.users.ids[0],
        "as_of": dataset.facts["as_of"],
        "engine": chosen.why,
        "trained": dataset.model.trained,
        "in_users_table": bool(histories.user_row_N[0] >= 0),
        "cold_start": bool(histories.cold_start_N()[0]),
        "events": {"in_all": total, "kept": kept, "older_left_out": total - kept, "max_events": config.max_events},
        **_history(dataset, histories, events),
        "seen": _seen(dataset, events, config),
        "rules": [_rule(name, removed_U, dataset) for name, removed_U in rules],
        "features": _blocks(inputs.dense_NF[0]),
        "steps": _steps(engine, batch, decoding, dataset, seen, rules),
        **_recommended(ranked, inputs, dataset, config, ruling, composing),
        "warnings": console.warned(),
    }


def _in_the_own_arm(config: ScoreConfig, source: str, user: str) -> dict[str, Any]:
    """Return what explains the list that the arm gives which a user is in.

    Raises:
        ConfigError: the id is not written as it is hashed, so it could be the bucket of another.
    """
    arms = config.arms()
    assignment = Assignment.of(arms, salt=config.salt or "", assign=config.assign)
    bucket_N = assignment.buckets([user.encode("utf-8", "surrogateescape")])
    arm = arms[int(assignment.arms(bucket_N)[0])]
    with of_arm(arm):
        found = explained(config.of_arm(arm), source, user)
    hashed = str(found["user_id"])
    if hashed != user:
        raise ConfigError(f"--explain {user}: the log's id is {hashed}, by which the arm is chosen; give it so")
    return found | {"arm": arm.name, "bucket": int(bucket_N[0])}


def _events(dataset: Dataset) -> pl.DataFrame:
    """Return all events of the user up to as-of, newest first."""
    ours = (pl.col("user_id") == dataset.users.ids[0]) & (pl.col("timestamp").dt.epoch("us") <= dataset.users.as_of_us)
    found = []
    with console.progress("reading the history", dataset.log.rows, "rows") as advance:
        for number, group in enumerate(dataset.log.row_groups):
            found.append(dataset.log.usable(number).filter(ours))
            advance(group.rows)
    return pl.concat(found).sort("timestamp", maintain_order=True).reverse()


def _history(dataset: Dataset, histories: Histories, events: pl.DataFrame) -> dict[str, Any]:
    """Return the kept events, newest first, and which of their videos are not in the catalog."""
    mine = events.head(dataset.users.max_events)
    tokens = dataset.catalog.tokens(mine["video_id"])
    assert (tokens.to_numpy() == histories.tokens_E[::-1]).all(), "not the history that the model reads"
    known = (tokens >= FIRST_ITEM).to_list()
    columns = [name for name in SHOWN if name in mine.columns]
    rows = mine.select(pl.col("timestamp").dt.to_string("iso:strict"), "video_id", *columns).to_dicts()
    unknown = mine["video_id"].filter(tokens < FIRST_ITEM).unique(maintain_order=True)
    return {
        "history": [{**row, "known": is_known} for row, is_known in zip(rows, known, strict=True)],
        "unknown_videos": unknown.to_list(),
    }


def _seen(dataset: Dataset, events: pl.DataFrame, config: ScoreConfig) -> dict[str, Any]:
    """Return the seen videos of the catalog, newest first, and how many others there are, never recommended anyway."""
    ids = events["video_id"].unique(maintain_order=True).head(config.seen_limit)
    known = ids.filter(dataset.catalog.tokens(ids) >= FIRST_ITEM).to_list()
    return {
        "removed": not config.include_seen,
        "seen_limit": config.seen_limit,
        "videos": known,
        "not_in_catalog": len(ids) - len(known),
    }


def _rule(name: str, removed_U: U8, dataset: Dataset) -> dict[str, Any]:
    """Return how many videos of the catalog a rule removes for the user, and the most viewed of them."""
    tokens = np.flatnonzero(removed_U[: FIRST_ITEM + len(dataset.catalog)])
    some = dataset.catalog.ids(pl.Series(tokens[:LISTED].astype(np.int32))).to_list()
    return {"rule": name, "videos": len(tokens), "most_viewed": some}


def _blocks(dense_F: np.ndarray[Any, np.dtype[np.float32]]) -> list[dict[str, Any]]:
    """Return the feature blocks by falling magnitude (Euclidean norm), each with its largest slots."""
    blocks: dict[str, list[tuple[int, str]]] = {}
    for slot, block, name in layout.describe():
        if block != "reserved":
            blocks.setdefault(block, []).append((slot, name))
    rows = []
    for block, members in blocks.items():
        values = dense_F[[slot for slot, _ in members]]
        largest = np.argsort(-np.abs(values), kind="stable")[:LISTED]
        rows.append(
            {
                "block": block,
                "norm": round(float(np.linalg.norm(values)), 4),
                "non_zero": int(np.count_nonzero(values)),
                "slots": len(members),
                "largest": [
                    {"slot": members[i][0], "name": members[i][1], "value": round(float(values[i]), 4)}
                    for i in largest
                    if values[i]
                ],
            }
        )
    return sorted(rows, key=lambda row: -float(row["norm"]))


def _steps(
    engine: SteppedEngine,
    batch: Batch,
    decoding: Decoding,
    dataset: Dataset,
    seen: Collection[int],
    rules: Sequence[tuple[str, U8]],
) -> list[dict[str, Any]]:
    """Return the best videos at each step of a greedy slate: the chosen one, and what removed others.

    Beam search and candidates have one step; given candidates have none.
    """
    if batch.candidates_BC is not None:
        return []
    looks = min(COMPARED, dataset.model.tokens)
    greedy = decoding.mode == "slate" and decoding.beam_width == 1
    steps = decoding.top_k if greedy else 1
    masked = engine.prefill(batch, steps=steps, choices=1)
    everything = dataclasses.replace(batch, seen_BX=np.zeros((1, 1), np.int32), masks=None)
    free = engine.prefill(everything, steps=steps, choices=looks)
    rows = []
    for step in range(1, steps + 1):
        tokens_BK: I32
        tokens_BK, log_prob_BK = engine.choose(free)
        choice_B = engine.choose(masked)[0][:, 0]
        if not choice_B[0]:  # nothing left to recommend
            break
        ids = dataset.catalog.ids(pl.Series(tokens_BK[0])).to_list()
        best = [
            {
                "video_id": video,
                "log_prob": round(float(log_prob), 4),
                "removed_as_seen": int(token) in seen,
                "removed_by": [
                    *(["seen"] if int(token) in seen else []),
                    *(name for name, removed_U in rules if removed_U[token]),
                ],
            }
            for video, token, log_prob in zip(ids, tokens_BK[0], log_prob_BK[0], strict=True)
            if token
        ]
        place = int(np.argmax(tokens_BK[0] == choice_B[0])) if (tokens_BK[0] == choice_B[0]).any() else None
        rows.append(
            {
                "step": step,
                "chosen": dataset.catalog.ids(pl.Series(choice_B)).to_list()[0],
                "removed_before_it": sum(
                    bool(row["removed_by"]) for row in best[: place if place is not None else looks]
                ),
                "more_than_told": place is None,
                "best": best[:LISTED],
            }
        )
        if step < steps or decoding.greedy:
            engine.decode(masked, choice_B)
            engine.decode(free, choice_B)
    return rows


def _recommended(
    ranked: Ranked,
    inputs: ModelInputs,
    dataset: Dataset,
    config: ScoreConfig,
    ruling: Ruling,
    composing: Composing | None,
) -> dict[str, Any]:
    """Return the user's rows, as `score` writes them, and what rules moved in the list."""
    ids, first_B, score_BP = dataset.users.ids, np.zeros(1, np.int64), blend(ranked, config.blend())
    moved: list[dict[str, Any]] = []
    if composing is None:
        ranking = Ranking.empty(1, config.top_k)
        ranking.put(first_B, ranked, score_BP)
    else:
        ranking, promoted = composing.room(1), composing.promoted(first_B, inputs)
        promoted_BK = None if promoted is None else promoted.tokens_NK
        composing.put(ranking, first_B, ranked, score_BP, promoted_BK, composing.keys(ids))
        moved = composition(composing, ranked, score_BP, promoted_BK, ids)
    if ruling.filling is not None:
        ranking, _ = ruling.filling.filled(ranking, Filled.of(inputs, first_B))
    rows = recommendations(dataset.users.ids, ranking, catalog=ruling.catalog, video_type=dataset.video_type)
    columns = ["user_id", "rank", "video_id", "score", "log_prob", "step", *HEADS, "source", "propensity"]
    mine = rows.select(name for name in columns if name in rows.columns).to_dicts()
    carried = Carried.of(config, dataset, ruling.catalog)
    of_videos, (of_user,) = _plain(carried.of_videos(rows["video_id"]), len(mine)), _plain(carried.of_users(0, 1), 1)
    return {
        "recommended": [row | video | of_user for row, video in zip(mine, of_videos, strict=True)],
        **({} if composing is None else {"composed": moved if ruling.filling is None else filled(moved, mine)}),
    }


def _plain(frame: pl.DataFrame, rows: int) -> list[dict[str, Any]]:
    """Return rows of columns of any types as JSON has them."""
    return json.loads(frame.write_json()) if frame.width else [{} for _ in range(rows)]
