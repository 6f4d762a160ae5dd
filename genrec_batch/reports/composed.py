"""How rules composed one user's list: where each video was after each rule, and which one moved it.

Owns: the order in which rules are added to find out, and the reasons in words. Must not know: how a rule is carried
out. In: what composes a run's lists, and what was scored for one user. Out: plain dictionaries. Each rule is added to
those before it, and the list composed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from genrec_batch.core.arrays import EXPLORED, F32, I32, POPULAR, PROMOTED, SOURCES, Ranked
from genrec_batch.rules.compose import Composed, Composer
from genrec_batch.rules.lists import PLAIN
from genrec_batch.scoring.composing import Composing


def composition(
    composing: Composing, ranked: Ranked, score_BP: F32, promoted_BK: I32 | None, ids: pl.Series
) -> list[dict[str, Any]]:
    """Return each video that is in a user's list, or was before a rule: its rank after each rule, and why it moved.

    Args:
        composing: the rules of the run.
        ranked: what was scored for the user, [1, P].
        score_BP: the score of each.
        promoted_BK: the videos that are promoted to the user, None where none are.
        ids: the user's id.
    """
    keys_B = composing.keys(ids)
    lists = {
        rule: composer.compose(ranked, score_BP, promoted_BK if with_promoted else None, keys_B)
        for rule, composer, with_promoted in _stages(composing)
    }
    final = list(lists.values())[-1]
    tokens = {int(token): None for found in reversed(lists.values()) for token in found.tokens_BK[0] if token}
    dataset, numbers = composing.dataset, pl.Series(list(tokens), dtype=pl.Int32)
    videos = dataset.catalog.ids(numbers).cast(dataset.video_type).to_list()
    rows = []
    for token, video in zip(tokens, videos, strict=True):
        ranks = {rule: _rank(found, token) for rule, found in lists.items()}
        row = {"video_id": video, "rank": _rank(final, token), "source": _source(final, token), "ranks": ranks}
        rows.append(row | {"moved_by": list(_reasons(composing, lists, token, ranks))})
    return rows


def filled(composed: list[dict[str, Any]], written: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of `composition` as they are once a fallback has filled the list, which became `written`."""
    listed = {row["video_id"]: row for row in written}
    before = {row["video_id"]: row for row in composed}
    videos = [*listed, *(video for video in before if video not in listed)]
    return [_filled(video, before.get(video), listed.get(video)) for video in videos]


def _filled(video: Any, before: dict[str, Any] | None, written: dict[str, Any] | None) -> dict[str, Any]:
    rank, source = (None, None) if written is None else (written["rank"], written["source"])
    row = before or {"rank": None, "source": None, "ranks": {}, "moved_by": []}
    moved = [f"popular at place {rank}"] if source == SOURCES[POPULAR] else []
    if not moved and rank != row["rank"]:
        moved = ["fallback" + _from(row["rank"], rank)]
    ranks = {**row["ranks"], "fallback": rank}
    return {"video_id": video, "rank": rank, "source": source, "ranks": ranks, "moved_by": [*row["moved_by"], *moved]}


def _stages(composing: Composing) -> Iterator[tuple[str, Composer, bool]]:
    """Yield what composes the list by score alone, then with one more rule each, and whether videos are promoted."""
    full, caps = composing.composer, composing.composer.rules
    rules = caps._replace(caps_D=caps.caps_D[:0], codes_VD=caps.codes_VD[:, :0], method=PLAIN, explore=0.0)
    plain = replace(full, rules=rules, boost_V=np.zeros(0), kernel="numpy")
    yield "score", plain, False
    if len(full.boost_V):
        plain = replace(plain, boost_V=full.boost_V)
        yield "boost", plain, False
    if len(caps.caps_D):
        plain = replace(plain, rules=plain.rules._replace(caps_D=caps.caps_D, codes_VD=caps.codes_VD))
        yield "max-per", plain, False
    if caps.method != PLAIN:
        plain = replace(plain, rules=plain.rules._replace(method=caps.method))
        yield "diversify", plain, False
    if composing.promotions is not None:
        yield "promote", plain, True
    if full.explores:
        plain = replace(plain, rules=plain.rules._replace(explore=caps.explore))
        yield "explore", plain, composing.promotions is not None


def _rank(found: Composed, token: int) -> int | None:
    places = np.flatnonzero(found.tokens_BK[0] == token)
    return int(places[0]) + 1 if len(places) else None


def _source(found: Composed, token: int) -> str | None:
    rank = _rank(found, token)
    return None if rank is None else SOURCES[found.source_BK[0, rank - 1]]


def _reasons(
    composing: Composing, lists: dict[str, Composed], token: int, ranks: dict[str, int | None]
) -> Iterator[str]:
    """Yield, rule by rule, what moved a video into the list, out of it or within it."""
    before: int | None = ranks["score"]
    for rule, found in list(lists.items())[1:]:
        now = ranks[rule]
        place = None if now is None else int(found.source_BK[0, now - 1])
        if rule == "boost" and composing.composer.boost_V[token]:
            yield f"boosted by {composing.composer.boost_V[token]:+.4g}"
        elif now == before:
            continue
        elif rule == "promote" and place == PROMOTED:
            yield f"promoted to place {now}"
        elif rule == "explore" and place == EXPLORED:
            yield f"explored at place {now}"
        elif rule == "max-per" and now is None:
            yield _capped(composing, found, token)
        elif rule == "diversify" and (now is None or (before is not None and now > before)):
            yield f"demoted by {composing.config.diversify}" + _from(before, now)
        else:
            yield f"{rule}" + _from(before, now)
        before = now


def _from(before: int | None, now: int | None) -> str:
    if now is None:
        return f": out of the list, from place {before}"
    return f": into the list, at place {now}" if before is None else f": from place {before} to {now}"


def _capped(composing: Composing, found: Composed, token: int) -> str:
    """Return which cap holds a video back, with the value that is in the list as often as it may be."""
    rules, videos = composing.composer.rules, composing.dataset.catalog_videos
    assert videos is not None
    for column, (name, most) in enumerate(composing.config.caps().items()):
        code = rules.codes_VD[token, column]
        if code >= 0 and (rules.codes_VD[found.tokens_BK[0], column] == code).sum() >= most:
            return f"capped by {name}={videos[name][token - 2]} ({most} in the list)"
    return "capped: others of the list came first"
