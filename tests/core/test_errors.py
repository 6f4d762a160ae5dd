"""Errors: an exit code for each kind of failure, what a disk's refusal means to a user, and the nearest names."""

from __future__ import annotations

import errno

import pytest

from genrec_batch.core import errors


def test_each_kind_of_failure_has_the_exit_code_that_schedulers_know():
    codes = {name: kind.exit_code for name, kind in vars(errors).items() if name.endswith("Error")}
    assert codes == {
        "GenrecError": 2,
        "ConfigError": 2,
        "InputError": 3,
        "ModelError": 4,
        "EngineError": 5,
        "GateError": 6,
        "RetryError": 75,
        "DeviceMemoryError": 75,
        "NothingToScoreError": 99,
        "TerminalGoneError": 129,
    }


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_may_be_tried_again_and_names_the_file(number):
    error = errors.refused(OSError(number, "no room"), "recs.parquet", errors.ModelError)
    assert isinstance(error, errors.RetryError)
    assert str(error).startswith("recs.parquet: ")


def test_another_refusal_is_of_the_kind_that_the_caller_names():
    error = errors.refused(OSError(errno.EACCES, "Permission denied"), "model/", errors.ModelError)
    assert isinstance(error, errors.ModelError)
    assert "Permission denied" in str(error)


def test_the_nearest_names_are_suggested_and_nothing_where_none_is_alike():
    assert errors.nearest("user_ids", ["user_id", "video_id"]) == " Did you mean 'user_id'?"
    assert errors.nearest("colour", ["user_id", "video_id"]) == ""
