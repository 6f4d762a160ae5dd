"""Which videos may be recommended to whom: `--exclude`, `--only`, `--max-age` and `--exclude-recommended` as bit maps.

Owns: what each rule removes, and for whom. Must not know: engines, lists, how tables are read. In: the tables of rules,
and the users of a run. Out: `arrays.Masks` of some users, where all who obey the same rules share a bit map.

A video is removed where any rule removes it: an excluded video stays out whatever `--only` has, and with several
`--only` a video must be in each. Seen videos are no rule here: engines mask them themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from genrec_batch.core.arrays import FIRST_ITEM, I32, I64, MASK_BITS, U8, U32, Masks, Ragged, offsets_of, row_keys
from genrec_batch.core.errors import GateError
from genrec_batch.core.options import ScoreConfig
from genrec_batch.events.earlier import Earlier
from genrec_batch.events.ids import IdIndex
from genrec_batch.events.rule_tables import Listed, RuleTables
from genrec_batch.rules.universe import Universe
from genrec_batch.runtime.console import LOG

DAY_US = 86_400 * 10**6
SHORT_LIST = 128  # tokens of a user's own that go beside the bit maps; 10,000 videos take 1.25 kB as a bit map

Entries = tuple[I64, I32]  # the row among N users, and the token, of each entry


@dataclass(frozen=True, kw_only=True)
class ForAll:
    """A rule that is the same for all users: what it removes."""

    name: str
    kind: str  # "exclude", "only" or "max-age"
    removed_U: U8


@dataclass(frozen=True, kw_only=True)
class Own:
    """A rule with a list of each user's own, sorted by the user's place among those of the run, [R] entries."""

    name: str
    kind: str  # "exclude": the list is removed; "only": all others are, where the user has a list
    place_R: I64
    token_R: I32  # 1 for a video that is not in the universe

    def of_users(self, places_N: I64) -> tuple[I64, I32]:
        """Return the row among N users and the token of each of their entries."""
        low_N, high_N = (np.searchsorted(self.place_R, places_N, side) for side in ("left", "right"))
        lengths_N = high_N - low_N
        row_E = np.repeat(np.arange(len(places_N)), lengths_N)
        entry_E = np.arange(len(row_E)) - np.repeat(offsets_of(lengths_N)[:-1] - low_N, lengths_N)
        return row_E, self.token_R[entry_E]


@dataclass(frozen=True, kw_only=True)
class Eligible:
    """The rules of a run with N users."""

    universe: Universe
    ids: pl.Series  # of the users, rising
    for_all: tuple[ForAll, ...]
    own: tuple[Own, ...]
    earlier: tuple[Earlier, ...]

    @staticmethod
    def of(tables: RuleTables, config: ScoreConfig, universe: Universe, ids: pl.Series, as_of_us: int) -> Eligible:
        """Return the rules of the tables and options.

        Raises:
            GateError: together they leave no video for anybody.
        """
        for_all = [_for_all(each, universe) for each in tables.listed if not each.per_user]
        age = config.max_age_of()
        if age is not None and tables.uploaded is not None:
            for_all.append(_too_old(tables.uploaded, age.span_us, f"--max-age {config.max_age}", universe, as_of_us))
        users = IdIndex(ids)
        rules = Eligible(
            universe=universe,
            ids=ids,
            for_all=tuple(for_all),
            own=tuple(_own(each, universe, users) for each in tables.listed if each.per_user),
            earlier=tables.earlier,
        )
        rules.check_not_empty()
        return rules

    @cached_property
    def common_U(self) -> U8:
        """Which numbers the rules for all remove, [U]."""
        removed_U = np.zeros(len(self.universe), np.bool_)
        for rule in self.for_all:
            removed_U |= rule.removed_U
        return removed_U

    @cached_property
    def _common_W(self) -> U32:
        return _words(self.common_U)

    @cached_property
    def _videos_W(self) -> U32:
        return _words(self.universe.videos_U)

    def check_not_empty(self) -> None:
        """Raise GateError where the rules for all leave nothing to recommend."""
        if not (self.universe.videos_U & ~self.common_U).any():
            names = ", ".join(rule.name for rule in self.for_all)
            raise GateError(
                f"{names}: no video of the catalog is left for anybody, so nothing is scored; take a rule away, or "
                "give a model that knows videos which they allow"
            )

    def _keys(self, kind: str) -> list[I64]:
        own = [rule.place_R << 32 | rule.token_R for rule in self.own if rule.kind == kind]
        return [np.zeros(0, np.int64), *own]

    def masks(self, places_N: I64) -> Masks:
        """Return what must not be recommended to the users at some places of the run, over the whole universe.

        Raises:
            InputError, RetryError: an earlier output cannot be read.
        """
        return self._bit_maps(len(places_N), *self._lists(places_N))

    def _lists(self, places_N: I64) -> tuple[Entries, list[Entries]]:
        """Return what is excluded for N users alone, distinct and rising, and each of their lists of `--only`."""
        excluded: list[Entries] = [(np.zeros(0, np.int64), np.zeros(0, np.int32))]
        allowed: list[Entries] = []
        for rule in self.own:
            (excluded if rule.kind == "exclude" else allowed).append(rule.of_users(places_N))
        excluded += [entries for _, entries in self._recommended(places_N)]
        keys = _distinct(np.concatenate([row_keys(row_E, token_E) for row_E, token_E in excluded]))
        return (keys >> 32, (keys & 0xFFFFFFFF).astype(np.int32)), allowed

    def _bit_maps(self, users: int, excluded: Entries, allowed: list[Entries]) -> Masks:
        """Return the bit maps of N users: one for all without entries, one for each of the others."""
        affected_N = np.zeros(users, np.bool_)
        for row_E, _ in (excluded, *allowed):
            affected_N[row_E] = True
        mask_N = np.where(affected_N, np.cumsum(affected_N), 0).astype(np.int32)
        banned_MW = np.repeat(self._common_W[None], int(affected_N.sum()) + 1, axis=0)
        _set_bits(banned_MW, mask_N[excluded[0]], excluded[1])
        for row_E, token_E in allowed:
            listed_MW = np.zeros_like(banned_MW)
            _set_bits(listed_MW, mask_N[row_E], token_E)
            has_M = np.zeros(len(banned_MW), np.bool_)
            has_M[mask_N[row_E]] = True
            banned_MW |= np.where(has_M[:, None], ~listed_MW & self._videos_W, np.uint32(0))
        return Masks(banned_MW=banned_MW, mask_B=mask_N)

    def model_masks(self, places_N: I64) -> Masks:
        """Return `masks` over the model's own vocabulary, short lists of a user's own as `Masks.own`.

        Raises:
            InputError, RetryError: see `masks`.
        """
        users, words = len(places_N), self.universe.model_words
        (row_E, token_E), allowed = self._lists(places_N)
        known_E = (token_E >= FIRST_ITEM) & (token_E < words * MASK_BITS)
        row_E, token_E = row_E[known_E], token_E[known_E]
        long_E = (np.bincount(row_E, minlength=users) > SHORT_LIST)[row_E]
        found = self._bit_maps(users, (row_E[long_E], token_E[long_E]), allowed)
        lengths_N = np.bincount(row_E[~long_E], minlength=users)
        return Masks(
            banned_MW=np.ascontiguousarray(found.banned_MW[:, :words]),
            mask_B=found.mask_B,
            own=Ragged(offsets_N1=offsets_of(lengths_N), values=token_E[~long_E]),
        )

    def removed_from(self, place: int) -> Iterator[tuple[str, U8]]:
        """Yield each rule, by name, and what it removes for the user at a place of the run, [U]."""
        yield from ((rule.name, rule.removed_U) for rule in self.for_all)
        places_N = np.array([place])
        for rule in self.own:
            _, token_E = rule.of_users(places_N)
            yield rule.name, self._removed(rule.kind, token_E)
        for earlier, (_, token_E) in self._recommended(places_N):
            yield earlier.name, self._removed("exclude", token_E)

    def _removed(self, kind: str, token_E: I32) -> U8:
        listed_U = np.zeros(len(self.universe), np.bool_)
        listed_U[token_E] = True
        if kind == "exclude":
            return listed_U & self.universe.videos_U
        return self.universe.videos_U & ~listed_U if len(token_E) else np.zeros_like(listed_U)

    def _recommended(self, places_N: I64) -> Iterator[tuple[Earlier, tuple[I64, I32]]]:
        """Yield each earlier output with the row among N users and the token of each of its recommendations."""
        if not self.earlier or not len(places_N):
            return
        order_N = np.argsort(places_N, kind="stable")
        rising = self.ids.gather(places_N[order_N])
        for earlier in self.earlier:
            rows = earlier.rows_of(rising)
            at_R = rising.search_sorted(rows["user_id"], "left").to_numpy().astype(np.int64)
            at_R = np.minimum(at_R, len(rising) - 1)
            mine_R = (rising.gather(at_R) == rows["user_id"]).to_numpy()
            yield earlier, (order_N[at_R[mine_R]], self.universe.tokens(rows["video_id"])[mine_R])

    def facts(self) -> dict[str, Any]:
        """Return what the summary says of the rules: the videos of the catalog that are left, and what each removes."""
        catalog = slice(FIRST_ITEM, FIRST_ITEM + len(self.universe.catalog))
        found: dict[str, Any] = {rule.name: {"videos": int(rule.removed_U[catalog].sum())} for rule in self.for_all}
        for own in self.own:
            users = len(np.unique(own.place_R))
            without = {} if own.kind == "exclude" else {"users_without_rows": len(self.ids) - users}
            found[own.name] = {"users": users, "rows": len(own.place_R), **without}
        found |= {earlier.name: {"rows": earlier.rows, "as_of": earlier.as_of} for earlier in self.earlier}
        both = self._contradicting()
        if both:
            LOG.info("%s videos are in a table of --exclude and in one of --only: they are excluded", f"{both:,}")
        return {
            "eligible_videos": int((~self.common_U[catalog]).sum()),
            "rules": found,
            **({"contradicting_rows": both} if both else {}),
        }

    def _contradicting(self) -> int:
        """Return how many videos are excluded for all or for a user, and in a list of `--only` for the same."""
        no_U, yes_U = (np.zeros(len(self.universe), np.bool_) for _ in range(2))
        for rule in self.for_all:
            if rule.kind == "exclude":
                no_U |= rule.removed_U
            elif rule.kind == "only":
                yes_U |= self.universe.videos_U & ~rule.removed_U
        keys = {kind: np.unique(np.concatenate(self._keys(kind))) for kind in ("exclude", "only")}
        return int((no_U & yes_U).sum()) + len(np.intersect1d(keys["exclude"], keys["only"], assume_unique=True))


def _for_all(listed: Listed, universe: Universe) -> ForAll:
    listed_U = np.zeros(len(universe), np.bool_)
    listed_U[universe.tokens(listed.rows["video_id"])] = True
    listed_U &= universe.videos_U
    removed_U = listed_U if listed.kind == "exclude" else universe.videos_U & ~listed_U
    return ForAll(name=listed.name, kind=listed.kind, removed_U=removed_U)


def _own(listed: Listed, universe: Universe, users: IdIndex) -> Own:
    place_R = users.rows(listed.rows["user_id"]).astype(np.int64)
    token_R = universe.tokens(listed.rows["video_id"])
    mine_R = place_R >= 0
    order_R = np.argsort(place_R[mine_R], kind="stable")
    return Own(
        name=listed.name,
        kind=listed.kind,
        place_R=place_R[mine_R][order_R],
        token_R=token_R[mine_R][order_R],
    )


def _too_old(uploaded: pl.DataFrame, span_us: int, name: str, universe: Universe, as_of_us: int) -> ForAll:
    """Return the rule of `--max-age`, which also removes videos whose time of upload is not known."""
    fresh = uploaded.filter(pl.col("us") >= as_of_us - span_us)
    removed_U = universe.videos_U.copy()
    removed_U[universe.tokens(fresh["video_id"])] = False
    timed_U = np.zeros(len(universe), np.bool_)
    timed_U[universe.tokens(uploaded.filter(pl.col("us").is_not_null())["video_id"])] = True
    unknown = int((universe.videos_U & ~timed_U).sum())
    if unknown:
        LOG.info("%s: %s videos have no time of upload and are not recommended", name, f"{unknown:,}")
    return ForAll(name=name, kind="max-age", removed_U=removed_U)


def _distinct(keys: I64) -> I64:
    """Return the distinct keys, rising; `np.unique` hashes them first, which takes ten times as long."""
    rising = np.sort(keys)
    first = np.ones(len(rising), np.bool_)
    np.not_equal(rising[1:], rising[:-1], out=first[1:])
    return rising[first]


def _set_bits(banned_MW: U32, mask_E: I32, token_E: I32) -> None:
    """Set the bit of each token in the bit map beside it."""
    words = banned_MW.shape[1]
    flat_E = mask_E.astype(np.int64) * words + token_E // MASK_BITS
    np.bitwise_or.at(banned_MW.reshape(-1), flat_E, np.uint32(1) << (token_E % MASK_BITS).astype(np.uint32))


def _words(bits_U: U8) -> U32:
    words_W: U32 = Masks.of(bits_U[None], [0]).banned_MW[0]
    return words_W
