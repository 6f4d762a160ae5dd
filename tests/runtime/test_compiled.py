"""`compiled`: kernels that do not load are named, with what computes instead."""

from __future__ import annotations

import pytest

from genrec_batch.core.errors import RetryError
from genrec_batch.runtime import compiled


def broken():
    raise ImportError("Numba needs NumPy 1.0 or less")


def test_kernels_that_do_not_load_are_warned_of(caplog):
    assert not compiled.loads(broken, "NumPy sorts the events")
    assert caplog.messages == [
        "numba is installed but does not load (Numba needs NumPy 1.0 or less); NumPy sorts the events, more slowly"
    ]


def test_nothing_is_said_where_numba_is_not_installed(monkeypatch, caplog):
    monkeypatch.setattr(compiled, "find_spec", lambda _: None)
    assert not compiled.loads(broken, "NumPy sorts the events")
    assert not caplog.messages


def test_another_error_is_not_taken_for_a_missing_package():
    def no_room():
        raise RetryError("no room")

    with pytest.raises(RetryError):
        compiled.loads(no_room, "NumPy sorts the events")
