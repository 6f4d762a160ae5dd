"""Plans: how the list of a request is made, resolved once for all requests that want the same.

Owns: what a request's fields mean as options of `score`, whose checks and defaults they get. Must not know: events,
engines, users. In: what is `Wanted`, and the options of the repository. Out: a `Plan`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from genrec_batch.core.arrays import F32, FIRST_ITEM, Ranked
from genrec_batch.core.errors import ConfigError, InputError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.engines.choose import decoding_of
from genrec_batch.engines.decode import Decoding, blend
from genrec_batch.model.weights import Model
from genrec_batch.rules import columns
from genrec_batch.rules.compose import Composer
from genrec_batch.rules.lists import PLAIN, Rules
from genrec_batch.rules.ranking import Ranking
from genrec_batch.serving.asks import Wanted
from genrec_batch.serving.options import Serving
from genrec_batch.serving.videos import Videos

FIELDS = {"--" + name.replace("_", "-"): name for name in ("top_k", "weights", "max_per", "include_seen", "candidates")}
OPTION = re.compile(r"--[a-z]+(?:-[a-z]+)*")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How lists are made."""

    wanted: Wanted
    decoding: Decoding
    weights: Mapping[str, float] | None
    composer: Composer | None  # where rules compose the list

    @property
    def key(self) -> tuple[object, ...]:
        """What requests must have in common, so that one pass of the engine answers them: not the lengths of lists."""
        beams = self.decoding.beam_width
        return (
            self.decoding.mode, beams, self.wanted.top_k if beams > 1 else 0, self.wanted.given,
            self.wanted.include_seen,
        )  # fmt: skip

    def cut(self, ranked: Ranked) -> Ranked:
        """Return what this plan looks at of what was decoded for longer lists too, which begin alike."""
        if self.wanted.given:
            return ranked
        width = self.decoding.top_k if self.decoding.mode == "slate" else self.decoding.num_candidates
        return Ranked(
            tokens_BK=ranked.tokens_BK[:, :width],
            log_prob_BK=ranked.log_prob_BK[:, :width],
            heads_BKH=ranked.heads_BKH[:, :width],
        )

    def ranking(self, ranked: Ranked) -> Ranking:
        """Return the lists of B users in rank order, as `score` ranks them."""
        ranked = self.cut(ranked)
        score_BK: F32 = blend(ranked, self.weights)
        rows_B = np.arange(len(ranked))
        if self.composer is None:
            lists = Ranking.empty(len(ranked), self.wanted.top_k)
            lists.put(rows_B, ranked, score_BK)
            return lists
        lists = Ranking.empty(len(ranked), self.wanted.top_k, sources=True)
        lists.put_composed(
            rows_B, ranked, self.composer.compose(ranked, score_BK, None, np.zeros(len(ranked), np.uint64))
        )
        return lists


def plan_of(wanted: Wanted, serving: Serving, model: Model, videos: Videos) -> Plan:
    """Return the plan of a request.

    Raises:
        ConfigError: its fields do not fit each other, the model or the table of videos.
        InputError: it asks for too much.
    """
    if wanted.top_k > serving.most_top_k:
        raise InputError(f"top_k: {wanted.top_k} videos, at most {serving.most_top_k}")
    if wanted.max_per is not None and videos.table is None:
        raise ConfigError("max_per: the repository has no table of videos; export it with --videos")
    try:
        config = ScoreConfig(
            top_k=wanted.top_k,
            decode=serving.decode,
            num_candidates=max(serving.num_candidates, wanted.top_k),
            beam_width=1 if wanted.given or wanted.max_per is not None else serving.beam_width,
            weights=wanted.weights,
            max_per=wanted.max_per,
            videos=None if videos.table is None else "the repository's",
            include_seen=wanted.include_seen,
            candidates="the request's" if wanted.given else None,
            max_events=serving.max_events,
            seen_limit=serving.seen_limit,
        )
        config.check_positions(model.config.positions)
        return Plan(
            wanted=wanted,
            decoding=decoding_of(config, model),
            weights=config.blend(),
            composer=_composer(config, videos),
        )
    except ConfigError as error:
        raise ConfigError(OPTION.sub(lambda option: FIELDS.get(option[0], option[0]), str(error))) from error


def together(plans: list[Plan]) -> Decoding:
    """Return the decoding that answers requests of one `Plan.key`: of the longest list."""
    decodings = [plan.decoding for plan in plans]
    return replace(
        decodings[0],
        top_k=max(each.top_k for each in decodings),
        num_candidates=max(each.num_candidates for each in decodings),
    )


def _composer(config: ScoreConfig, videos: Videos) -> Composer | None:
    caps = config.caps()
    if not caps:
        return None
    rows = FIRST_ITEM + len(videos.columns)
    rules = Rules(
        caps_D=np.array(list(caps.values()), np.int32),
        codes_VD=columns.codes(videos.columns, caps, "max_per"),
        vectors_VE=np.zeros((rows, 0), np.float32),
        one_over_V=np.zeros(rows),
        groups_VG=np.zeros((rows, 0), np.int32),
        method=PLAIN,
        weight=0.0,
        explore=0.0,
    )
    return Composer(top_k=config.top_k, rules=rules, boost_V=np.zeros(0))
