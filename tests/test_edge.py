"""The CLI's edge under signals that come in twos."""

from __future__ import annotations

import logging
import signal

import pytest
import typer

from genrec_batch import console, edge


class Again(logging.Handler):
    """The second SIGTERM, while the first is being told."""

    def emit(self, record):
        del record
        signal.raise_signal(signal.SIGTERM)


def test_a_second_sigterm_does_not_break_the_first():
    """`timeout` sends SIGTERM to its child and then to its group; the exit code must stay 143."""
    before, again = signal.getsignal(signal.SIGTERM), Again()
    console.LOG.addHandler(again)
    try:
        with pytest.raises(typer.Exit) as left:
            edge.guarded(lambda: signal.raise_signal(signal.SIGTERM), verbose=False)
    finally:
        console.LOG.removeHandler(again)
        signal.signal(signal.SIGTERM, before)
    assert left.value.exit_code == 143
