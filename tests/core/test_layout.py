"""The layout: 1024 slots with unique names, at the places of the published table."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from genrec_batch.core import layout

RANGES = [  # first slot, slot after the last, block, and words that each of its names has
    (0, 20, "watch duration", "duration"),
    (20, 40, "watch percentage", "percentage"),
    (40, 60, "interaction flags", "_rate_"),
    (60, 70, "time", "hour"),
    (70, 80, "time", "week"),
    (80, 100, "reserved", "reserved"),
    (100, 200, "device type", "device"),
    (200, 300, "network type", "network"),
    (300, 398, "recommendation source", "source"),
    (398, 400, "reserved", "reserved"),
    (400, 500, "recommendation position", "position"),
    (500, 515, "statistics", "duration"),
    (515, 530, "statistics", "percentage"),
    (530, 560, "statistics", "_share_"),
    (560, 565, "statistics", "gap"),
    (565, 589, "statistics", "hour"),
    (589, 596, "statistics", "weekday"),
    (596, 597, "statistics", "weekend"),
    (597, 598, "statistics", "holiday"),
    (598, 599, "statistics", "watch_s"),
    (599, 600, "statistics", "kept_events"),
    (600, 800, "user profile", "profile"),
    (800, 1000, "videos", "video"),
    (1000, 1020, "sequence", ""),
    (1020, 1024, "reserved", "reserved"),
]


def test_there_are_1024_names_and_no_two_alike():
    names = layout.names()
    assert len(names) == layout.FEATURES == 1024
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert all(name and name == name.lower() and " " not in name for name in names)


def test_describe_goes_slot_by_slot_with_the_same_names():
    assert [slot for slot, _, _ in layout.describe()] == list(range(1024))
    assert [name for _, _, name in layout.describe()] == layout.names()


@pytest.mark.parametrize(("first", "after", "block", "word"), RANGES, ids=str)
def test_each_range_is_its_block(first, after, block, word):
    for slot, its_block, name in layout.describe()[first:after]:
        assert its_block == block, f"slot {slot} {name}"
        assert word in name, f"slot {slot} {name}"


def test_the_ranges_cover_every_slot_once():
    assert [slot for first, after, _, _ in RANGES for slot in range(first, after)] == list(range(1024))


def test_reserved_slots_are_named_by_number():
    reserved = [slot for slot, block, _ in layout.describe() if block == "reserved"]
    assert reserved == [*range(80, 100), 398, 399, *range(1020, 1024)]
    assert all(layout.names()[slot] == f"reserved_{slot}" for slot in reserved)


@pytest.mark.parametrize(
    ("slot", "end"),
    [
        (0, "_r0"),  # the newest event
        (19, "_r19"),
        (43, "liked_rate_all"),  # flag-major: the four windows of one flag are neighbours
        (44, "favorited_rate_newest_1"),
        (59, "followed_creator_rate_all"),
        (101, "mobile_r0"),
        (105, "unknown_r1"),
        (199, "tv_r19"),
        (201, "wifi_r0"),
        (299, "3g_r19"),
        (306, "nearby_r0"),
        (397, "nearby_r13"),
        (499, "_r99"),
        (500, "duration_mean_newest_5"),  # block-major: the five moments over one window are neighbours
        (505, "duration_mean_newest_20"),
        (514, "duration_median_all"),
        (515, "percentage_mean_newest_5"),
        (525, "percentage_mean_all"),
        (530, "complete_share_newest_5"),
        (532, "complete_share_all"),
        (539, "liked_share_newest_5"),
        (559, "reported_share_all"),
        (565, "hour_0_share"),
        (588, "hour_23_share"),
        (799, "_199"),
        (1000, "max_events"),
        (1009, "cold_start"),
    ],
)
def test_order_within_the_blocks(slot, end):
    assert layout.names()[slot].endswith(end)


def test_slots_that_scores_are_read_from():
    names = layout.names()
    assert (layout.LIKE_RATE_ALL, layout.MEAN_PERCENTAGE_ALL, layout.DISTINCT_SHARE) == (43, 525, 1002)
    assert "distinct" in names[layout.DISTINCT_SHARE]


def test_category_lists():
    assert layout.CATEGORIES == {
        "device_type": ("unknown", "mobile", "tablet", "desktop", "tv"),
        "network_type": ("unknown", "wifi", "4g", "5g", "3g"),
        "recommendation_source": ("unknown", "home", "search", "following", "hashtag", "trending", "nearby"),
    }


def test_the_fingerprint_is_the_same_in_another_process():
    code = "from genrec_batch.core import layout; print(layout.fingerprint())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == layout.fingerprint()
    assert len(bytes.fromhex(other)) == 32


def test_another_name_is_another_fingerprint(monkeypatch):
    before, names = layout.fingerprint(), layout.names()
    monkeypatch.setattr(layout, "names", lambda: [*names[:-1], "something_new"])
    assert layout.fingerprint() != before
