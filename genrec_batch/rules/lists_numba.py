"""Lists composed of scored videos: the compiled kernel, one user after the other, without the interpreter's lock.

Owns: the same rules and formulas as its twin, `lists`, to the bit. Must not know: tables, ids, engines. Needs numba;
loaded by name.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from genrec_batch.core.arrays import EXPLORED, F32, F64, I32, I64, MODEL, PROMOTED, U8
from genrec_batch.rules.lists import DPP, MMR, PLAIN, RIDGE, Lists, Pool, Rules
from genrec_batch.runtime.jit import kernel


class Work(NamedTuple):
    """What the kernel writes down about one user's pool of P videos and list of K places."""

    free_P: U8  # neither in the list nor promoted
    can_P: U8  # of these, which no cap holds back
    nearest_P: F64  # greatest likeness to a chosen video
    left_P: F64  # of the variance, which no chosen video explains
    by_KP: F64  # factors of the Cholesky decomposition, by step
    vectors_PE: F32
    products_P: F32
    alike_P: F64
    kept_K: I32  # promoted videos by place
    list_K: I32  # the list so far, in any order
    chosen_K: I64  # places in the pool, by step
    value_K: F64

    @staticmethod
    def room(videos: int, places: int, numbers: int) -> Work:
        """Return room for a pool, a list and vectors of so many numbers."""
        return Work(
            free_P=np.empty(videos, np.bool_),
            can_P=np.empty(videos, np.bool_),
            nearest_P=np.empty(videos),
            left_P=np.empty(videos),
            by_KP=np.empty((places, videos)),
            vectors_PE=np.empty((videos, numbers), np.float32),
            products_P=np.empty(videos, np.float32),
            alike_P=np.empty(videos),
            kept_K=np.empty(places, np.int32),
            list_K=np.empty(places, np.int32),
            chosen_K=np.empty(places, np.int64),
            value_K=np.empty(places),
        )


def compose(pool: Pool, rules: Rules) -> Lists:
    """Return the lists of B users: see `lists.compose`."""
    (_, videos), (users, places) = pool.tokens_BP.shape, pool.promoted_BK.shape
    found = Lists.empty(users, places)
    whole = Pool(
        tokens_BP=np.ascontiguousarray(pool.tokens_BP),
        worth_BP=np.ascontiguousarray(pool.worth_BP),
        promoted_BK=np.ascontiguousarray(pool.promoted_BK),
        draws_BK2=np.ascontiguousarray(pool.draws_BK2),
    )
    _compose(whole, rules, Work.room(videos, places, rules.vectors_VE.shape[1]), found)
    return found


@kernel(reorder=True)
def _products(vectors_PE: Any, best: Any, products_P: Any) -> None:
    """Multiply all vectors of a pool with one of them; whole numbers, so exact in any order."""
    for at in range(len(vectors_PE)):
        total = np.float32(0)
        for place in range(vectors_PE.shape[1]):
            total += vectors_PE[at, place] * vectors_PE[best, place]
        products_P[at] = total


@kernel()
def _likeness(rules: Any, tokens_P: Any, best: Any, vectors_PE: Any, products_P: Any, alike_P: Any) -> None:
    """Compare all videos of a pool with one of them."""
    groups, mine = rules.groups_VG.shape[1], tokens_P[best]
    if groups == 0:
        _products(vectors_PE, best, products_P)
        for at in range(len(tokens_P)):
            alike_P[at] = np.float64(products_P[at]) * rules.one_over_V[tokens_P[at]] * rules.one_over_V[mine]
        return
    for at in range(len(tokens_P)):
        equal = 0
        for column in range(groups):
            code = rules.groups_VG[mine, column]
            if code >= 0 and code == rules.groups_VG[tokens_P[at], column]:
                equal += 1
        alike_P[at] = equal / groups


@kernel()
def _full(rules: Any, token: Any, list_K: Any, length: Any, but: Any) -> Any:
    """Return whether a cap holds a video back from a list, in which the place `but` does not count."""
    for column in range(len(rules.caps_D)):
        code = rules.codes_VD[token, column]
        if code < 0:
            continue
        count = 0
        for place in range(length):
            if place != but and rules.codes_VD[list_K[place], column] == code:
                count += 1
        if count >= rules.caps_D[column]:
            return True
    return False


@kernel()
def _place_of(tokens_P: Any, token: Any) -> Any:
    """Return the place of a token in a pool, -1 for none."""
    for place in range(len(tokens_P)):
        if tokens_P[place] == token:
            return place
    return -1


@kernel()
def _hold_back(rules: Any, tokens_P: Any, can_P: Any, list_K: Any, length: Any) -> None:
    """Take out of reach what the caps that the newest video of a list fills hold back."""
    newest = list_K[length - 1]
    for column in range(len(rules.caps_D)):
        code = rules.codes_VD[newest, column]
        if code < 0:
            continue
        count = 0
        for place in range(length):
            if rules.codes_VD[list_K[place], column] == code:
                count += 1
        if count < rules.caps_D[column]:
            continue
        for at in range(len(tokens_P)):
            if rules.codes_VD[tokens_P[at], column] == code:
                can_P[at] = False


@kernel()
def _go_on(method: Any, alike_P: Any, best: Any, step: Any, nearest_P: Any, left_P: Any, by_KP: Any) -> None:
    """Go on after a video was chosen that the others of the pool are so much like."""
    if method == MMR:
        for at in range(len(alike_P)):
            nearest_P[at] = max(nearest_P[at], alike_P[at])
        return
    deviation = math.sqrt(left_P[best])
    for at in range(len(alike_P)):
        explained = 0.0
        for before in range(step):
            explained += by_KP[before, best] * by_KP[before, at]
        factor = ((1 - RIDGE) * alike_P[at] - explained) / deviation
        by_KP[step, at] = factor
        left_P[at] = max(left_P[at] - factor * factor, RIDGE / 2)


@kernel()
def _best(rules: Any, worth_P: Any, can_P: Any, nearest_P: Any, left_P: Any) -> Any:
    """Return the place and the value of the best video in reach, -1 for none."""
    best, most = -1, -np.inf
    for at in range(len(worth_P)):
        if not can_P[at]:
            continue
        value = worth_P[at]
        if rules.method == MMR:
            value = worth_P[at] - rules.weight * nearest_P[at]
        elif rules.method == DPP:
            value = worth_P[at] * left_P[at]
        if best < 0 or value > most:
            best, most = at, value
        if rules.method == PLAIN:
            break  # the pool falls by score
    return best, most


@kernel()
def _explore(
    rules: Any, tokens_P: Any, free_P: Any, draws_2: Any, lists: Any, user: Any, place: Any, length: Any
) -> None:
    """Draw whether a place explores, and which of the videos beyond the list that fit it."""
    list_K, count = lists.tokens_BK[user], 0
    draw = draws_2[0] < rules.explore
    for at in range(len(tokens_P)):
        if free_P[at] and not _full(rules, tokens_P[at], list_K, length, place):
            count += 1
            if not draw:
                break  # one is enough to know that it could have explored
    if count == 0:
        return
    if not draw:
        lists.propensity_BK[user, place] = 1 - rules.explore
        return
    nth = np.int64(draws_2[1] * count)
    for at in range(len(tokens_P)):
        if free_P[at] and not _full(rules, tokens_P[at], list_K, length, place):
            if nth == 0:
                list_K[place] = tokens_P[at]
                lists.pick_BK[user, place] = at
                lists.source_BK[user, place] = EXPLORED
                lists.value_BK[user, place] = np.nan
                lists.propensity_BK[user, place] = rules.explore / count
                free_P[at] = False
                return
            nth -= 1


@kernel()
def _begin(rules: Any, tokens_P: Any, work: Any) -> None:
    """Put all videos of a pool in reach."""
    for at in range(len(tokens_P)):
        work.free_P[at] = work.can_P[at] = tokens_P[at] > 0
        work.nearest_P[at], work.left_P[at] = 0.0, 1.0
        for place in range(work.vectors_PE.shape[1]):
            work.vectors_PE[at, place] = rules.vectors_VE[tokens_P[at], place]


@kernel()
def _promoted(rules: Any, tokens_P: Any, promoted_K: Any, work: Any) -> Any:
    """Keep the promoted videos that no cap holds back; return how many these are."""
    length = 0
    for place in range(len(promoted_K)):
        token = promoted_K[place]
        work.kept_K[place] = 0
        if token == 0 or _full(rules, token, work.list_K, length, -1):
            continue
        work.kept_K[place] = work.list_K[length] = token
        length += 1
        at = _place_of(tokens_P, token)
        if at >= 0:
            work.free_P[at] = work.can_P[at] = False
        _hold_back(rules, tokens_P, work.can_P, work.list_K, length)
    return length


@kernel()
def _greedy(rules: Any, tokens_P: Any, worth_P: Any, length: Any, work: Any) -> Any:
    """Choose videos for the other places; return how many."""
    steps = 0
    while length < len(work.list_K):
        best, value = _best(rules, worth_P, work.can_P, work.nearest_P, work.left_P)
        if best < 0:
            break
        work.chosen_K[steps], work.value_K[steps] = best, value
        work.free_P[best] = work.can_P[best] = False
        work.list_K[length] = tokens_P[best]
        length += 1
        _hold_back(rules, tokens_P, work.can_P, work.list_K, length)
        if rules.method != PLAIN and length < len(work.list_K):
            _likeness(rules, tokens_P, best, work.vectors_PE, work.products_P, work.alike_P)
            _go_on(rules.method, work.alike_P, best, steps, work.nearest_P, work.left_P, work.by_KP)
        steps += 1
    return steps


@kernel()
def _merge(tokens_P: Any, steps: Any, work: Any, lists: Any, user: Any) -> Any:
    """Write the list: promoted videos at their places, chosen ones in order in between, gaps closed."""
    end, step = 0, 0
    for place in range(len(work.kept_K)):
        if work.kept_K[place] > 0:
            lists.tokens_BK[user, end] = work.kept_K[place]
            lists.pick_BK[user, end] = _place_of(tokens_P, work.kept_K[place])
            lists.source_BK[user, end] = PROMOTED
            end += 1
        elif step < steps:
            lists.tokens_BK[user, end] = tokens_P[work.chosen_K[step]]
            lists.pick_BK[user, end] = work.chosen_K[step]
            lists.value_BK[user, end] = work.value_K[step]
            end += 1
            step += 1
    return end


@kernel()
def _compose(pool: Any, rules: Any, work: Any, lists: Any) -> None:
    for user in range(len(pool.promoted_BK)):
        tokens_P, promoted_K = pool.tokens_BP[user], pool.promoted_BK[user]
        _begin(rules, tokens_P, work)
        kept = _promoted(rules, tokens_P, promoted_K, work)
        lists.dropped_B[user] = (promoted_K > 0).sum() - kept
        end = _merge(tokens_P, _greedy(rules, tokens_P, pool.worth_BP[user], kept, work), work, lists, user)
        lists.capped_B[user] = end < len(promoted_K) and work.free_P.any()
        if pool.draws_BK2.shape[2] > 0:
            for place in range(end):
                if lists.source_BK[user, place] == MODEL:
                    _explore(rules, tokens_P, work.free_P, pool.draws_BK2[user, place], lists, user, place, end)
