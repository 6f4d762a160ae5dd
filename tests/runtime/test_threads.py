"""Threads: overlapping steps keep their order, pass errors on, and end when they should."""

from __future__ import annotations

import threading
import time
import weakref

import pytest

from genrec_batch.runtime import threads


def seen_one(made, seen):
    for number in made:
        seen.append(number)
        yield from ()


def slow_when_even(number):
    time.sleep(0.02 if number % 2 == 0 else 0)
    return number * number


@pytest.mark.parametrize("workers", [1, 3])
def test_ordered_keeps_the_order_of_its_items(workers):
    assert list(threads.ordered(slow_when_even, range(12), workers=workers, name="t")) == [n * n for n in range(12)]


def test_ordered_runs_no_further_ahead_than_its_workers():
    begun = []
    made = threads.ordered(begun.append, range(100), workers=2, name="t")
    next(made)
    time.sleep(0.05)
    assert len(begun) <= 4
    made.close()
    assert len(begun) <= 4


class Large:
    """Something whose memory matters."""


@pytest.mark.parametrize("way", ["background", "ordered"])
def test_what_was_handed_over_is_not_held_while_the_consumer_works(way):
    made = []

    def one(_=None):
        large = Large()
        made.append(weakref.ref(large))
        return large

    if way == "background":
        found = threads.background(map(one, range(9)), ahead=1, name="t")
    else:
        found = threads.ordered(lambda _: 1, map(one, range(9)), workers=1, name="t")
    for place in range(3):
        next(found)
        end = time.perf_counter() + 5
        while way == "ordered" and sum(each() is not None for each in made) and time.perf_counter() < end:
            time.sleep(0.01)  # until the thread has done its work
        assert made[place]() is None
        assert sum(each() is not None for each in made) <= (1 if way == "background" else 0)
    found.close()


def test_an_error_of_a_thread_comes_out_in_its_place():
    def fails_at_three(number):
        if number == 3:
            raise ValueError("three")
        return number

    got = []
    with pytest.raises(ValueError, match="three"):
        got.extend(threads.ordered(fails_at_three, range(9), workers=2, name="t"))
    assert got in ([], [0, 1, 2])
    made, seen = (
        threads.background(threads.ordered(fails_at_three, range(9), workers=2, name="t"), ahead=2, name="b"),
        [],
    )
    with pytest.raises(ValueError, match="three"):
        seen.extend(seen_one(made, seen))
    assert seen == [0, 1, 2]


def test_background_closes_what_it_reads_when_it_is_left():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    made = threads.background(endless(), ahead=3, name="t")
    assert next(made) == 1
    made.close()
    assert closed.is_set()


def test_work_behind_is_done_in_order_of_need_and_its_error_is_raised():
    done = []
    with threads.behind(workers=1, ahead=2, name="t") as behind:
        for number in range(5):
            behind.submit(lambda number=number: done.append(number))
        behind.wait()
    assert done == [0, 1, 2, 3, 4]

    def fails():
        raise OSError("full")

    with threads.behind(workers=1, ahead=1, name="t") as behind:
        behind.submit(fails)
        with pytest.raises(OSError, match="full"):
            behind.wait()


def test_a_run_that_stands_still_ends_with_what_it_is_at():
    began = time.perf_counter()
    with (
        pytest.raises(threads.StalledError, match=r"no progress for 0.2 s \(--stall-limit\) during: waiting"),
        threads.watched(lambda: 1, limit_s=0.2, doing=lambda: "waiting"),
    ):
        threading.Event().wait(20)
    assert time.perf_counter() - began < 10
    assert threads.StalledError.exit_code == 75


def test_a_run_that_moves_is_left_alone():
    with threads.watched(time.perf_counter_ns, limit_s=0.05, doing=str):
        time.sleep(0.3)
    with threads.watched(lambda: 1, limit_s=0, doing=str):
        time.sleep(0.1)
