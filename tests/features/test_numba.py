"""Compiled features (`runtime.jit`, `simd`, `simd_sort`): the bits of NumPy for any user, and runs without numba.

Also tests `numba.fill`, `numba.pass1_columns`, `numba.pass2_users`, `numba.pass3_order`, `numba.pass4_rows`,
`runtime.simd` and `runtime.simd_sort`.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from genrec_batch import features
from genrec_batch.core import layout
from tests.features.test_features import Built, built, differences, of_package, of_twin
from tests.logs import START, Log, busy_log, floats, log_of, logs

EXAMPLES = settings(max_examples=300, deadline=None, derandomize=True)
PACKAGE = Path(features.__file__).parent
SAMPLE = PACKAGE.parent.parent / "sample_data" / "events.parquet"
KERNELS = sorted(PACKAGE.glob("numba/pass*.py"))


def with_numba() -> None:
    pytest.importorskip("numba", reason="the extra `fast` is not installed")


def assert_same_bits(of_log: Built) -> None:
    expected, got = of_log.features("numpy"), of_log.features("numba")
    names = layout.names()
    unlike = [
        f"user {user}, slot {slot} {names[slot]}: {got[user, slot]!r}, expected {expected[user, slot]!r}"
        for user, slot in np.argwhere(got != expected)
    ]
    assert not unlike, "\n".join(unlike[:20])


@EXAMPLES
@given(log=logs())
def test_any_log_gives_the_bits_of_numpy(log: Log) -> None:
    with_numba()
    assert_same_bits(built(log))


@settings(EXAMPLES, max_examples=100)
@given(log=logs())
def test_any_log_equals_the_row_wise_twin(log: Log) -> None:
    with_numba()
    got, expected = of_package(log, "numba"), of_twin(log)
    for user, vector in got.items():
        assert not differences(vector, expected[user])


@pytest.mark.parametrize("max_events", [1, 5, 6, 50, 64, 300, 2000])
def test_users_with_one_and_with_thousands_of_events(max_events: int) -> None:
    with_numba()
    lengths = [2500, 1, 2, 5, 6, 20, 21, 64, 65, 130, 254, 255, 256, 261, 275, 276, 600, 1999]
    assert_same_bits(built(busy_log(seed=3, events_per_user=lengths, max_events=max_events)))


def test_hundreds_of_users_are_computed_in_several_chunks() -> None:
    with_numba()
    lengths = [1 + user * 7919 % 61 for user in range(1300)]
    assert_same_bits(built(busy_log(seed=4, events_per_user=lengths)))


@pytest.mark.parametrize("listed", [True, False], ids=["lists", "hashed"])
def test_side_tables(listed: bool) -> None:
    with_numba()
    log = busy_log(seed=5, events_per_user=[300, 40, 7, 5, 1], videos=60, max_events=200)
    users = [{"user_id": user, "age": 20 + user, "vip": user % 2 == 0} for user in (2, 0, 7)]
    videos = [
        {"video_id": video, "author_id": video % 9, "category": f"c{video % 4}", "length_s": 9.5 * video}
        for video in range(0, 60, 2)
    ]
    if listed:
        users = [{**row, "profile": floats(200, seed=i)} for i, row in enumerate(users)]
        videos = [{**row, "embedding": floats(200, seed=i)} for i, row in enumerate(videos)]
    assert_same_bits(built(log_of(log.events, users=users, videos=videos, max_events=200)))


@pytest.mark.parametrize(
    "missing",
    ["watch_duration", "watch_percentage", "session_id", "time_of_day", "day_of_week", "is_weekend", "is_holiday",
     "recommendation_position", "device_type"],
)  # fmt: skip
def test_a_log_without_a_column(missing: str) -> None:
    with_numba()
    log = busy_log(seed=6, events_per_user=[60, 3, 21])
    assert_same_bits(built(log_of([{k: v for k, v in row.items() if k != missing} for row in log.events])))


def test_a_log_with_the_three_required_columns_only() -> None:
    with_numba()
    log = busy_log(seed=7, events_per_user=[60, 3])
    assert_same_bits(built(log_of([{k: row[k] for k in ("user_id", "video_id", "timestamp")} for row in log.events])))


def test_nobody_and_nobody_with_events() -> None:
    with_numba()
    log = busy_log(seed=8, events_per_user=[3, 4])
    some = built(log_of(log.events, users=[{"user_id": 9, "age": 4}, {"user_id": 10, "age": 5}]))
    assert_same_bits(some)
    assert_same_bits(replace(some, histories=some.histories.slice(2, 4)))
    assert_same_bits(replace(some, histories=some.histories.slice(1, 1)))


def test_the_means_of_the_videos_own_vectors() -> None:
    with_numba()
    log = busy_log(seed=12, events_per_user=[70, 3, 1, 33, 50, 8], videos=60)
    rows = [{"video_id": v, "video_vector": None if v % 5 == 0 else floats(512, seed=v)} for v in range(0, 60, 2)]
    of_log = built(log_of(log.events, videos=rows))
    assert of_log.videos is not None
    assert of_log.videos.dense_RD is not None
    means_NV, has_N = features.video_vectors(of_log.histories, of_log.videos) or (None, None)
    got_NV, got_N = features.video_vectors(of_log.histories, of_log.videos, kernel="numba") or (None, None)
    np.testing.assert_array_equal(got_NV, means_NV)
    np.testing.assert_array_equal(got_N, has_N)


# What a result must not depend on


def of_users(of_log: Built, rows: list[int]) -> Built:
    return replace(of_log, histories=of_log.histories.take(np.array(rows)))


def test_a_user_does_not_depend_on_the_others() -> None:
    with_numba()
    videos = [{"video_id": v, "embedding": floats(200, seed=v), "category": v % 3, "author_id": v} for v in range(90)]
    log = busy_log(seed=9, events_per_user=[70, 3, 1, 33, 50, 8, 400, 2, 2, 9, 21, 5, 6, 7, 8, 9, 10, 11], videos=99)
    of_log = built(log_of(log.events, videos=videos, max_events=400))
    together = of_log.features("numba")
    order = [5, 17, 0, 6, 6, 3, 16, 1, 2, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    np.testing.assert_array_equal(of_users(of_log, order).features("numba"), together[order])
    for user in range(len(together)):
        np.testing.assert_array_equal(of_users(of_log, [user]).features("numba"), together[user : user + 1])


def test_threads_do_not_meet() -> None:
    with_numba()
    of_log = built(busy_log(seed=10, events_per_user=[1 + user % 50 for user in range(400)]))
    expected = of_log.features("numpy")
    cuts = [(start, start + 50) for start in range(0, 400, 50)]
    some = [replace(of_log, histories=of_log.histories.slice(*cut)) for cut in cuts]
    with ThreadPoolExecutor(4) as pool:
        for cut, got in zip(cuts * 3, pool.map(lambda users: users.features("numba"), some * 3), strict=True):
            np.testing.assert_array_equal(got, expected[slice(*cut)])


def test_inputs_may_be_read_only() -> None:
    with_numba()
    of_log = built(busy_log(seed=13, events_per_user=[30, 4]))
    histories = of_log.histories
    for values in (*histories.numbers.values(), *histories.flags.values(), histories.time_us_E):
        values.flags.writeable = False
    assert_same_bits(of_log)


def test_times_of_any_century() -> None:
    with_numba()
    of_log = built(busy_log(seed=17, events_per_user=[40] * 30))
    year_us = 31_556_952_000_000
    for years in (-2_000, -143, -142, -141, -57, -1, 40, 86, 87, 88, 200, 20_000):
        moved = replace(of_log.histories, time_us_E=of_log.histories.time_us_E + years * year_us)
        for name in ("time_of_day", "day_of_week", "is_weekend"):
            numbers, flags = ({k: v for k, v in all_.items() if k != name} for all_ in (moved.numbers, moved.flags))
            assert_same_bits(replace(of_log, histories=replace(moved, numbers=numbers, flags=flags)))


def test_the_last_and_first_microseconds_of_hours() -> None:
    with_numba()
    of_log = built(log_of([{"user_id": 1, "video_id": 1, "timestamp": START}]))
    hour_us = 3_600_000_000
    for first in (-1_000_000, -1, 0, 490_000, 1_200_000):
        around = (first + np.arange(2_000))[:, None] * hour_us + np.array([-2, -1, 0, 1, 2])
        moved = replace(
            of_log.histories.take(np.zeros(around.size, np.int64)),
            time_us_E=around.reshape(-1),
            as_of_us_N=np.full(around.size, 2**60),
        )
        assert_same_bits(replace(of_log, histories=moved))


def test_numbers_beyond_all_reason() -> None:
    with_numba()
    of_log = built(busy_log(seed=18, events_per_user=[40] * 5))
    numbers = dict(of_log.histories.numbers)
    for name, values in {
        "recommendation_position": [1e300, 3.5e38, -1e300, 5e-324],
        "time_of_day": [1e30, -1e30, 2.0**53, 24.0, -0.25],
        "day_of_week": [-1e30, 7.0, 1e18, -1.0],
        "watch_duration": [1e30, -1e30, 5e-324],
    }.items():
        numbers[name] = numbers[name].copy()
        numbers[name][::7] = np.resize(values, len(numbers[name][::7]))
    assert_same_bits(replace(of_log, histories=replace(of_log.histories, numbers=numbers)))


# Which kernel a job takes


def test_long_jobs_take_numba_and_short_ones_numpy() -> None:
    with_numba()
    assert features.kernel_name(features.COMPILED_FROM - 1) == "numpy"
    assert features.kernel_name(features.COMPILED_FROM) == "numba"


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_short_job_does_not_load_numba() -> None:
    code = "import sys; from genrec_batch import features; features.kernel_name(99); print('numba' in sys.modules)"
    assert python(code).strip() == "False"


def test_without_numba_a_job_works_and_says_numpy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from genrec_batch import features; print(features.kernel_name(10**9))\n"
        "from genrec_batch.core.options import HistoryConfig\n"
        "from genrec_batch.scoring.write_features import write_features\n"
        f"found = write_features(HistoryConfig(), {str(SAMPLE)!r}, {str(tmp_path / 'out.parquet')!r})\n"
        "print(found['status'])"
    )
    assert {"numpy", "ok"} <= set(python(code).split())


def test_a_numba_that_does_not_load_is_reported_once_and_replaced_by_numpy(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 1.0 or less')\n")
    code = "from genrec_batch import features; print(features.kernel_name(10**9))"
    said = python(code, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert "numpy" in said.splitlines()
    assert "numba is installed but does not load (Numba needs NumPy 1.0 or less)" in said


def test_where_no_folder_can_be_written_kernels_are_compiled_again_with_a_warning() -> None:
    with_numba()
    code = (
        "from numba.core import caching; caching.CacheImpl._locator_classes = []\n"
        "from genrec_batch import features; print(features.kernel_name(10**9))"
    )
    said = python(code)
    assert "numba" in said.splitlines()
    assert "set NUMBA_CACHE_DIR to a folder that can be written" in said


# How the kernels are written


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_a_kernel_file_stands_alone(path: Path) -> None:
    """numba renews what it kept of a kernel when the kernel's own file changes: nothing else may decide its code."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    tools = {"genrec_batch.runtime.jit", "genrec_batch.runtime.simd", "genrec_batch.runtime.simd_sort"}
    assert {node.module for node in nodes} <= {"__future__", "typing", "genrec_batch.core.arrays"} | tools
    types = {alias.name for node in nodes if node.module == "genrec_batch.core.arrays" for alias in node.names}
    assert types <= {"F32", "F64", "I8", "I32", "I64", "U8", "U64"}


def test_the_kernel_files_are_found() -> None:
    assert len(KERNELS) == 4


def test_kernels_agree_on_the_key_and_the_fields_of_null() -> None:
    with_numba()
    from genrec_batch.features.numba import pass1_columns, pass2_users, pass3_order

    assert pass1_columns.NOTHING == pass3_order.NOTHING == pass2_users.NOTHING
    assert pass1_columns.NULL == pass2_users.NULL
