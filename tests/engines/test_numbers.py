"""Nothing that is not a number leaves an engine: NaN, infinity, and items lost to them are an error with the rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from genrec_batch.core.arrays import Batch, Masks, Ranked
from genrec_batch.engines import numbers

TOKENS = 8  # padding, unknown and six items


def batch():
    seen_BX = np.array([[0, 0, 0], [2, 3, 3], [7, 6, 5]], np.int32)
    dense_BF = np.zeros((3, 1024), np.float32)
    return Batch(dense_BF=dense_BF, tokens_BS=seen_BX, lengths_B=np.full(3, 3, np.int32), seen_BX=seen_BX)


def ranked(tokens_BK):
    tokens_BK = np.array(tokens_BK, np.int32)
    log_prob_BK = np.where(tokens_BK == 0, -np.inf, -1).astype(np.float32)
    return Ranked(tokens_BK=tokens_BK, log_prob_BK=log_prob_BK, heads_BKH=np.zeros((*tokens_BK.shape, 4), np.float32))


WHOLE = [[2, 3, 4, 5], [4, 5, 6, 7], [2, 3, 4, 0]]  # the last user has seen the three other items


def test_whole_lists_pass_and_so_do_lists_that_end_with_their_items():
    numbers.check(batch(), ranked(WHOLE), tokens=TOKENS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["log_prob_BK", "heads_BKH"])
def test_a_row_that_is_not_a_number_is_named(name, value):
    found = ranked(WHOLE)
    getattr(found, name)[1, 2] = value
    with pytest.raises(numbers.NotNumbersError) as error:
        numbers.check(batch(), found, tokens=TOKENS, key="batch", first=10)
    assert (error.value.key, error.value.rows_R.tolist(), error.value.exit_code) == ("batch", [11], 5)


def test_items_lost_to_nan_are_a_fault_unless_the_items_are_not_known():
    lost = ranked([WHOLE[0], [4, 5, 6, 0], [0, 0, 0, 0]])
    with pytest.raises(numbers.NotNumbersError) as error:
        numbers.check(batch(), lost, tokens=TOKENS)
    assert error.value.rows_R.tolist() == [1, 2]
    numbers.check(batch(), lost, tokens=None)
    given = replace(batch(), candidates_BC=np.array([[2], [4], [0]], np.int32))
    numbers.check(given, lost, tokens=TOKENS)


def test_items_that_a_mask_bans_are_not_lost():
    found = ranked([[2, 3, 6, 7], [4, 5, 0, 0], [0, 0, 0, 0]])
    banned_MV = np.zeros((4, TOKENS), np.bool_)
    banned_MV[0, 4:6] = banned_MV[1, [3, 6, 7]] = banned_MV[2, 2:] = True  # 3 was seen too, and counts once
    masked = replace(batch(), masks=Masks.of(banned_MV, [0, 1, 2]))
    numbers.check(masked, found, tokens=TOKENS)
    with pytest.raises(numbers.NotNumbersError) as error:
        numbers.check(replace(masked, masks=Masks.of(banned_MV, [0, 3, 2])), found, tokens=TOKENS)
    assert error.value.rows_R.tolist() == [1]


def test_the_largest_input_of_the_first_row_is_named():
    extreme = batch()
    extreme.dense_BF[2, 503] = 1e20
    found = ranked(WHOLE)
    found.log_prob_BK[2, 0] = np.nan
    with pytest.raises(numbers.NotNumbersError, match=r"feature 503 \(duration_max_newest_5\) = 1e\+20"):
        numbers.check(extreme, found, tokens=TOKENS)
    with pytest.raises(numbers.NotNumbersError, match="no input of theirs is large, so weights of the model are"):
        numbers.check(batch(), found, tokens=TOKENS)
