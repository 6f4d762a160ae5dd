"""The options of how a list is composed of the videos that were scored, and what their texts mean.

Owns: caps, diversity, boosts, promotions, exploration and the pool that they choose from; the checks between them. Must
not know: tables, engines, what a rule does to a list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from genrec_batch.core.declare import check_share, option
from genrec_batch.core.errors import ConfigError, nearest

T = TypeVar("T", int, float)
METHODS = ("mmr", "dpp")
DIVERSITY = 0.3  # weight of diversity where `--diversify` names none
LEAST_DIVERSITY = 0.01  # of dpp, whose quality is an exponential of (1 - weight) / weight
LARGEST_BOOST = 1_000_000
POOL = 2  # videos that a slate decodes for each one of its list, where `--pool` is not given


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """How `--diversify` chooses: the method, and the weight of diversity from 0 (score alone) to 1."""

    method: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """How a list is composed of the videos that were scored, before it is cut to `--top-k`."""

    max_per: str | None = option(
        "Most videos of a list with the same value in a column of --videos, such as creator_id=2,category=4; videos "
        "without a value are not capped.",
        panel="Rules",
    )
    diversify: str | None = option(
        "Weigh score against likeness to the videos before: mmr or dpp, each with the weight of diversity from 0 to 1, "
        f"such as mmr=0.5. Default weight: {DIVERSITY}.",
        panel="Rules",
    )
    diversify_by: str | None = option(
        "Columns of --videos, such as category,creator_id: videos are alike by the share of these in which they are "
        "equal. Default: by the cosine of `embedding`, else of all columns.",
        panel="Rules",
    )
    boost: str | None = option(
        "Add weight times value of numeric or Boolean columns of --videos to the score, such as is_new=0.5,quality=2; "
        "a null adds 0.",
        panel="Rules",
    )
    promote: str | None = option(
        "Table of video_id to put into lists: with user_id for that user alone; with `rank` at that place, else spread "
        "evenly over a share of the list, in the table's order.",
        panel="Rules",
        identity="content",
    )
    promote_share: float = option("Share of a list for promoted videos without a place.", 0.2, panel="Rules")
    explore: float = option(
        "Probability with which each place shows a video drawn evenly from those scored beyond the list, from 0 to 1; "
        "the column `propensity` has each row's probability.",
        0.0,
        panel="Rules",
    )
    pool: int | None = option(
        "Videos that --decode slate decodes for rules to choose from; each costs one more decode step. Default: "
        f"{POOL} x --top-k.",
        panel="Rules",
    )

    @property
    def composes(self) -> bool:
        """Whether any rule composes lists, so that more videos are scored than a list has."""
        return bool(self.rules_asked())

    def rules_asked(self) -> list[str]:
        """Return the flags of the rules that compose lists."""
        given = {
            "--max-per": self.max_per is not None,
            "--diversify": self.diversify is not None,
            "--boost": self.boost is not None,
            "--promote": self.promote is not None,
            "--explore": self.explore > 0,
        }
        return [flag for flag, asked in given.items() if asked]

    def caps(self) -> dict[str, int]:
        """Return `--max-per` by column.

        Raises:
            ConfigError: not COLUMN=NUMBER, a column twice, or a number below 1.
        """
        return _by_column(self.max_per, "--max-per", int, "a whole number from 1", lambda cap: cap >= 1)

    def boosts(self) -> dict[str, float]:
        """Return `--boost` by column.

        Raises:
            ConfigError: not COLUMN=NUMBER, a column twice, or a number that is not finite or larger than a million.
        """
        what = f"a number from -{LARGEST_BOOST:,} to {LARGEST_BOOST:,}"
        return _by_column(self.boost, "--boost", float, what, lambda weight: abs(weight) <= LARGEST_BOOST)

    def diversity(self) -> Diversity | None:
        """Return the method and the weight of `--diversify`, None where it is not given or weighs nothing.

        Raises:
            ConfigError: an unknown method, or a weight that is not from 0 to 1.
        """
        if self.diversify is None:
            return None
        method, sign, number = (part.strip() for part in self.diversify.partition("="))
        if method not in METHODS:
            hint = nearest(method, list(METHODS))
            raise ConfigError(f"--diversify {self.diversify!r}: {method!r} is not one of {', '.join(METHODS)}.{hint}")
        weight = _number(number, float) if sign else DIVERSITY
        if weight is None or not 0 <= weight <= 1:
            raise ConfigError(f"--diversify {self.diversify!r}: a weight from 0 to 1, such as {method}={DIVERSITY}")
        if method == "dpp" and 0 < weight < LEAST_DIVERSITY:
            raise ConfigError(f"--diversify {self.diversify!r}: 0, or a weight from {LEAST_DIVERSITY} to 1")
        return Diversity(method=method, weight=weight) if weight else None

    def alike_by(self) -> tuple[str, ...]:
        """Return the columns of `--diversify-by`.

        Raises:
            ConfigError: an empty name, or one given twice.
        """
        if self.diversify_by is None:
            return ()
        names = tuple(name.strip() for name in self.diversify_by.split(","))
        if not all(names) or len(set(names)) < len(names):
            raise ConfigError(f"--diversify-by {self.diversify_by!r}: names of columns, each once, such as category")
        return names

    def pool_steps(self, top_k: int) -> int:
        """Return how many videos a slate decodes: those of the list, or a pool for rules to choose from."""
        if not self.composes:
            return top_k
        return POOL * top_k if self.pool is None else self.pool

    def check_lists(self, decode: str, top_k: int, candidates: int | None, *, beams: int, videos: str | None) -> None:
        """Raise ConfigError for a rule that cannot be read, goes without what it needs, or has no pool.

        Args:
            decode: slate, candidates or auto.
            top_k: videos of a list.
            candidates: that are scored for a user with `--decode candidates`; None where they are given.
            beams: `--beam-width`.
            videos: `--videos`.
        """
        self.caps(), self.boosts(), self.diversity(), self.alike_by()
        check_share(self, "explore")
        check_share(self, "promote_share")
        if self.diversify_by is not None and self.diversify is None:
            raise ConfigError("--diversify-by goes with --diversify mmr or --diversify dpp")
        if self.composes and beams > 1:
            said = "a beam is one whole list, and a rule chooses from many"
            raise ConfigError(f"--beam-width goes without {self.rules_asked()[0]}: {said}")
        needs = [flag for flag in self.rules_asked() if flag in ("--max-per", "--diversify", "--boost")]
        if needs and videos is None:
            raise ConfigError(f"{needs[0]} needs --videos, the table whose columns it reads")
        if self.promote is None and self.promote_share != 0.2:  # its default
            raise ConfigError("--promote-share goes with --promote, the table of videos")
        if self.pool is not None and not self.composes:
            raise ConfigError("--pool goes with a rule that chooses from it: --max-per, --diversify, --boost, ...")
        if self.pool is not None and (candidates is None or decode != "slate"):
            raise ConfigError("--pool goes with --decode slate; the pool of candidates is --num-candidates")
        if self.pool is not None and self.pool < top_k:
            raise ConfigError(f"--pool {self.pool} is less than --top-k {top_k}")
        scored = self.pool_steps(top_k) if decode == "slate" else candidates or top_k
        if self.explore > 0 and candidates is not None and scored <= top_k:
            raise ConfigError(
                f"--explore {self.explore}: {scored} videos are scored for a list of {top_k}, so there is nothing to "
                "draw from; raise --num-candidates, or --pool with --decode slate"
            )


def _by_column(
    text: str | None, flag: str, kind: Callable[[str], T], what: str, right: Callable[[T], bool]
) -> dict[str, T]:
    """Return COLUMN=NUMBER,... as a mapping, empty where there is no text."""
    parsed: dict[str, T] = {}
    for part in _parts(text):
        name, _, number = (side.strip() for side in part.rpartition("="))
        value = _number(number, kind)
        if not name or value is None or not right(value):
            raise ConfigError(f"{flag} {text!r}: {part.strip()!r} is not COLUMN={what}")
        if name in parsed:
            raise ConfigError(f"{flag} {text!r}: {name!r} is given twice")
        parsed[name] = value
    return parsed


def _parts(text: str | None) -> Sequence[str]:
    return () if text is None else text.split(",")


def _number(text: str, kind: Callable[[str], T]) -> T | None:
    """Return a finite number, None where the text is none."""
    try:
        value = kind(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
