"""Records by bucket, and by user and time: compiled and NumPy twins give the same bytes, whatever the record holds."""

from __future__ import annotations

import numpy as np
import pytest

from genrec_batch import ordering

KINDS = {
    "narrow": [("time_us", "<i8"), ("user", "<i4"), ("video", "<i4")],
    "wide": [("session_id", "<i8"), ("time_us", "<i8"), ("user", "<i4"), ("video", "<i4"), ("x", "<f4"), ("y", "<f4")],
}


def records_of(total_N, kind, times, seed, start=7):
    """Records of users start.. in random order, `video` saying where each stood."""
    random = np.random.default_rng(seed)
    user_R = np.repeat(np.arange(len(total_N)), total_N)
    random.shuffle(user_R)
    records = np.zeros(len(user_R), np.dtype(KINDS[kind]))
    records["user"], records["video"] = user_R + start, np.arange(len(user_R))
    records["time_us"] = random.integers(0, times, len(user_R))
    return records


@pytest.fixture(params=["numpy", "numba"])
def twin(request):
    if request.param == "numpy":
        return None
    assert ordering.kernels() is not None, "numba is in the development extra"
    return ordering.kernels()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [1, 5, 10**9, 2**62])
@pytest.mark.parametrize("most", [3, 40, 300])
def test_by_user_and_time_is_what_python_sorts(twin, kind, times, most):
    for seed in range(5):
        total_N = np.random.default_rng(seed).integers(0, most, 20)
        records = records_of(total_N, kind, times, seed)
        got = ordering.by_user_and_time(records, 7, total_N, twin)
        rows = sorted(range(len(records)), key=lambda r: (records["user"][r], records["time_us"][r], r))
        assert (got == records[rows]).all(), (twin, seed)


def test_by_bucket_keeps_the_input_order(twin):
    total_N = np.random.default_rng(1).integers(0, 30, 50)
    for buckets in (1, 7, 300):
        records = records_of(total_N, "wide", 100, 3, start=0)
        of_user = (np.arange(50) * buckets // 50).astype(np.uint16)
        got, counts = ordering.by_bucket(records, of_user, buckets, twin)
        rows = sorted(range(len(records)), key=lambda r: (of_user[records["user"][r]], r))
        assert (got == records[rows]).all(), (twin, buckets)
        assert counts.tolist() == np.bincount(of_user[records["user"]], minlength=buckets).tolist()


@pytest.mark.parametrize("change", ["one more", "one less", "another user", "nobody of these"])
def test_records_that_were_not_counted_are_noticed(twin, change):
    total_N = np.array([3, 0, 4])
    records = records_of(total_N, "narrow", 9, 1)
    if change == "one more":
        records = np.concatenate([records, records[:1]])
    elif change == "one less":
        records = records[1:]
    else:
        records["user"][0] = 8 if change == "another user" else 99
    assert ordering.by_user_and_time(records, 7, total_N, twin) is None, twin
