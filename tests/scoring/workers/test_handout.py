"""`handout`: who gets which part, and what becomes of the parts of a lost worker."""

from __future__ import annotations

import random

from genrec_batch.scoring.workers.handout import MOST, Handout


def test_a_worker_gets_its_share_of_what_is_left_and_no_more():
    handout = Handout([[0], [1], [2], [3], [4], [5]], 2)
    assert [handout.take("a") for _ in range(4)] == [(0,), (1,), (2,), None]
    assert [handout.take("b") for _ in range(3)] == [(3,), (4,), None]
    for number in (0, 1, 2):
        handout.done("a", number)
    assert [handout.take("a"), handout.take("a"), handout.left] == [(5,), None, 3]


def test_parts_of_a_lost_worker_are_given_alone_and_last():
    handout = Handout([[0, 1], [2], [3]], 1)
    assert [handout.take("a"), handout.take("a")] == [(0, 1), (2,)]
    handout.done("a", 0)
    handout.lost("a", "killed")
    assert [handout.take("b"), handout.take("b"), handout.held("b")] == [(3,), None, {3}]
    handout.done("b", 3)
    assert [handout.take("b"), handout.take("b")] == [(1,), None]
    assert handout.take("c") == (2,)
    handout.done("b", 1)
    handout.done("c", 2)
    assert (handout.left, handout.left_out) == (0, {})


def test_a_part_that_fails_again_and_again_is_left_out():
    handout = Handout([[0], [1]], 1)
    for number in range(MOST):
        while (group := handout.take("a")) is not None and 1 not in group:
            handout.done("a", group[0])
        handout.lost("a", f"end {number}")
    assert (handout.left, handout.left_out) == (0, {1: f"end {MOST - 1}"})
    assert "1 in all; the others are written and stay in there" in handout.failures("there")
    assert handout.failures("there").endswith("part 1: end 2")


def test_every_part_is_done_once_whoever_is_lost():
    draw = random.Random(3)
    for _ in range(200):
        groups = [list(range(start, start + 3)) for start in range(0, 30, 3)]
        handout, done, left = Handout(groups, 3), [], {}
        while handout.left:
            worker = draw.randrange(3)
            if draw.random() < 0.05:
                handout.lost(worker, "killed")
            elif draw.random() < 0.5:
                handout.take(worker)
            elif held := handout.held(worker):
                number = draw.choice(sorted(held))
                handout.done(worker, number)
                done.append(number)
            left = handout.left_out
        assert sorted([*done, *left]) == list(range(30))
