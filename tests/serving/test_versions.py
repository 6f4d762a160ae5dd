"""`versions`: a version appears whole, numbers are never given again, old ones go, and one writes at a time."""

from __future__ import annotations

import errno

import pytest

from genrec_batch.core.errors import ModelError, RetryError
from genrec_batch.serving import versions


@pytest.fixture
def home(tmp_path):
    return tmp_path / "repository" / "feed"


def placed(home, config="config\n"):
    with versions.changing(home, 0), versions.scratch(home) as folder:
        (folder / "model.py").write_text("front\n")
        return versions.place(home, config, b"warm-up")


def names(home):
    return sorted(each.name for each in home.iterdir())


def test_a_version_appears_with_what_all_share_and_without_leftovers(home):
    assert placed(home) == 1
    assert names(home) == ["1", "config.pbtxt", "warmup"]
    assert (home / "warmup" / "request").read_bytes() == b"warm-up"
    assert placed(home, "other\n") == 2
    assert (home / "config.pbtxt").read_text() == "other\n"


def test_a_number_is_not_given_again_and_only_what_is_new_can_be_withdrawn(home):
    versions.stay(home, placed(home))
    assert placed(home) == 2
    assert (versions.known(home).last, versions.known(home).stays) == (2, 1)
    versions.withdraw(home, 2)
    assert names(home) == ["1", "config.pbtxt", "warmup"]
    assert placed(home) == 3


def test_what_a_killed_writer_left_is_removed_by_the_next(home):
    placed(home)
    (home / versions.SCRATCH).mkdir()
    (home / versions.SCRATCH / "half").write_text("a")
    assert versions.numbers(home) == [1]
    assert placed(home) == 2
    assert names(home) == ["1", "2", "config.pbtxt", "warmup"]


def test_files_that_all_share_are_not_written_again_where_they_are_the_same(home):
    placed(home)
    before = (home / "config.pbtxt").stat().st_mtime_ns, (home / "warmup" / "request").stat().st_mtime_ns
    placed(home)
    assert before == ((home / "config.pbtxt").stat().st_mtime_ns, (home / "warmup" / "request").stat().st_mtime_ns)


def test_old_versions_go_and_those_that_nobody_has_confirmed_do_not_count(home):
    for _ in range(4):
        versions.stay(home, placed(home))
    placed(home)
    assert versions.prune(home, 2) == [1, 2]
    assert versions.numbers(home) == [3, 4, 5]
    assert versions.prune(home, 1) == [3]


def test_a_repository_of_an_earlier_release_keeps_its_versions(home):
    (home / "7").mkdir(parents=True)
    assert versions.known(home) == versions.Known(last=7, stays=7)
    assert placed(home) == 8


def test_of_two_writers_the_second_is_told_to_try_again(home):
    with (
        versions.changing(home, 0),
        pytest.raises(RetryError, match="another process writes"),
        versions.changing(home, 0),
    ):
        pass


def test_a_full_disk_is_told_and_leaves_nothing(home):
    placed(home)
    with pytest.raises(RetryError, match="the disk is full"), versions.changing(home, 0), versions.scratch(home):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(home) == ["1", "config.pbtxt", "warmup"]


def test_a_folder_that_may_not_be_written_is_a_user_s_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"), versions.changing(tmp_path / "file" / "feed", 0):
        pass
