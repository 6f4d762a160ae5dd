"""`genrec-batch` and `python -m genrec_batch`: the command line, which Ctrl-C ends in one line from its start on.

Owns: signals before a command has its own handlers, and after it is done. Must not know: the commands.
"""

import os
import signal
import sys


def _before_anything(number: int, frame: object) -> None:
    """End here and now: an exception would have to find its way out of half-imported modules, which tell of it."""
    del number, frame
    sys.stderr.write("interrupted before anything began\n")
    sys.stderr.flush()
    os._exit(130)


def main() -> None:
    """Run the command line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this: nobody listens
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (open as long as the process lives)
            setattr(sys, name, stream)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell's `&` has it ignored
        signal.signal(signal.SIGINT, _before_anything)
    from genrec_batch.cli import app

    try:
        app.main()
    except SystemExit as left:
        if left.code:
            raise
        # Done and said: a signal must not make it a failure, and nobody waits for gigabytes to be freed one by one.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
