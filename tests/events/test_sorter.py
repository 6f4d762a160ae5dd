"""Sorters (`sorter_choice`, `sorter_numba`, `order_numba`): both return the same bytes, whatever the record."""

from __future__ import annotations

import numpy as np
import pytest

from genrec_batch.core.errors import InputError
from genrec_batch.events import histories, sorter_choice, sorter_numba
from genrec_batch.events.records import RecordType
from genrec_batch.events.sorter import NUMPY
from genrec_batch.events.sorter_numba import NumbaSorter

KINDS = {
    "narrow": [("time_us", "<i8"), ("user", "<i4"), ("video", "<i4")],
    "wide": [
        ("session_id", "<i8"),
        ("time_us", "<i8"),
        ("user", "<i4"),
        ("video", "<i4"),
        ("x", "<f4"),
        ("y", "<f4"),
        ("liked", "i1"),
        ("device_type", "i1"),
        ("filler", "u1", (6,)),
    ],
}


def records_of(total_N, kind, times, seed, start=7):
    """Records of users start.. in random order, `video` is the place of each."""
    random = np.random.default_rng(seed)
    user_R = np.repeat(np.arange(len(total_N)), total_N)
    random.shuffle(user_R)
    records = np.zeros(len(user_R), np.dtype(KINDS[kind]))
    records["user"], records["video"] = user_R + start, np.arange(len(user_R))
    spread = random.integers(0, times, len(user_R)) if times else 2 ** random.integers(0, 50, len(user_R))
    records["time_us"] = spread
    for name in set(records.dtype.names) & {"session_id", "x", "y", "liked", "device_type"}:
        records[name] = random.integers(-1, 2, len(user_R))
    return records


@pytest.fixture(params=[NUMPY, NumbaSorter()], ids=["numpy", "numba"])
def sorter(request):
    return request.param


def test_large_logs_get_the_compiled_sorter_and_small_ones_do_not_wait_for_it():
    assert sorter_choice.for_log(sorter_choice.COMPILED_FROM - 1) is NUMPY
    assert isinstance(sorter_choice.for_log(sorter_choice.COMPILED_FROM), NumbaSorter)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [0, 1, 5, 40, 10**9, 2**62])  # 0: most of them close together
@pytest.mark.parametrize("most", [3, 40, 300])
def test_newest_is_what_python_sorts(sorter, kind, times, most):
    for seed in range(5):
        total_N = np.random.default_rng(seed).integers(0, most, 20)
        records = records_of(total_N, kind, times, seed)
        rows = sorted(range(len(records)), key=lambda r: (records["user"][r], records["time_us"][r], r))
        ends = np.cumsum(total_N)
        for keep in (1, 30, 1000):
            kept = [r for end, n in zip(ends, total_N, strict=True) for r in rows[end - min(n, keep) : end]]
            targets = {
                name: np.empty(len(kept), records.dtype[name]) for name in records.dtype.names if name != "filler"
            }
            wide = {name: np.empty(len(kept)) for name in records.dtype.names if name == "x"}
            video_R = np.empty(len(records), np.int32)
            chunks = np.array_split(records, 3)
            assert sorter.newest(
                chunks, records.dtype, start=7, total_N=total_N, keep=keep, targets=targets | wide, video_R=video_R
            )
            assert video_R.tolist() == records["video"][rows].tolist(), seed
            for name, got in (targets | wide).items():
                np.testing.assert_array_equal(got, records[name][kept], f"{seed} {name}")


@pytest.mark.parametrize("late", [False, True])
def test_records_that_are_grouped_by_tiles_come_out_the_same(monkeypatch, late):
    """Tiles are sorted one after the other; where a record comes `late` in its chunk, everything is sorted at once."""
    monkeypatch.setattr(sorter_numba, "TILE_BYTES", 700)
    total_N = np.random.default_rng(4).integers(0, 30, 60)
    records = records_of(total_N, "wide", 10**9, 5)
    cuts = NumbaSorter().tiles(total_N, records.dtype)
    assert len(cuts) > 10
    tile_R = np.searchsorted(cuts, records["user"] - 7, "right")
    chunks = []
    for some in np.array_split(np.arange(len(records)), 4):
        rows = some[np.argsort(tile_R[some], kind="stable")]
        chunks.append(records[np.roll(rows, -1) if late else rows])
    found = []
    for sorter in (NUMPY, NumbaSorter()):
        kept = int(np.minimum(total_N, 9).sum())
        targets = {name: np.zeros(kept, records.dtype[name]) for name in ("video", "time_us", "x", "liked")}
        video_R = np.zeros(len(records), np.int32)
        assert sorter.newest(chunks, records.dtype, start=7, total_N=total_N, keep=9, targets=targets, video_R=video_R)
        found.append([*targets.values(), video_R])
    for plain, compiled in zip(*found, strict=True):
        np.testing.assert_array_equal(compiled, plain)


def test_places_by_bucket_keep_the_input_order(sorter):
    total_N = np.random.default_rng(1).integers(0, 30, 50)
    for buckets in (1, 7, 300):
        user_R = records_of(total_N, "wide", 100, 3, start=0)["user"].copy()
        of_user = (np.arange(50) * buckets // 50).astype(np.uint16)
        place_R, counts = sorter.places_by_bucket(user_R, of_user, buckets)
        rows = sorted(range(len(user_R)), key=lambda r: (of_user[user_R[r]], r))
        assert np.argsort(place_R).tolist() == rows, buckets
        assert counts.tolist() == np.bincount(of_user[user_R], minlength=buckets).tolist()


@pytest.mark.parametrize("change", ["one more", "one less", "another user", "nobody of these"])
def test_records_that_were_not_counted_are_noticed(sorter, change):
    total_N = np.array([3, 0, 4])
    records = records_of(total_N, "narrow", 9, 1)
    if change == "one more":
        records = np.concatenate([records, records[:1]])
    elif change == "one less":
        records = records[1:]
    else:
        records["user"][0] = 8 if change == "another user" else 99
    targets = {"time_us": np.empty(7, np.int64)}
    assert not sorter.newest([records], records.dtype, start=7, total_N=total_N, keep=9, targets=targets, video_R=None)


def test_users_without_any_record(sorter):
    """A bucket of users that only `--users` names."""
    kind = np.dtype(KINDS["narrow"])
    none = {"video": np.empty(0, np.int32)}
    given = {"start": 0, "total_N": np.zeros(5, np.int64), "keep": 3, "targets": none, "video_R": np.empty(0, np.int32)}
    assert sorter.newest([], kind, **given)


def test_a_video_that_the_first_look_did_not_see_is_a_changed_input(sorter):
    record = RecordType.of(("user_id", "video_id", "timestamp"), {})
    records = np.zeros(4, record.kind)
    records["video"], records["time_us"] = [0, -1, 1, 0], range(4)
    videos = histories.VideoRows(token_V=np.array([5, 6], np.int32), row_V=np.array([-1, -1], np.int32))
    with pytest.raises(InputError, match="INPUT changed"):
        histories.build(
            [records], record, start=0, total_N=np.array([4]), videos=videos, user_row_N=np.array([-1], np.int32),
            as_of_us=9, max_events=50, seen_limit=9, sorter=sorter,
        )  # fmt: skip
