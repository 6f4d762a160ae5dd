"""`genrec-batch` and `python -m genrec_batch`: the command line; Ctrl-C ends it in one line from the very start.

Owns: signals before a command installs its handlers, and after it is done. Must not know: the commands.
"""

import os
import signal
import sys


def _exit_at_once(number: int, frame: object) -> None:
    """Exit without an exception, which half-imported modules would print as a traceback."""
    del number, frame
    sys.stderr.write("interrupted before anything began\n")
    sys.stderr.flush()
    os._exit(130)


def main() -> None:
    """Run the command line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the parent process closed it
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (open as long as the process lives)
            setattr(sys, name, stream)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's `&` ignores it
        signal.signal(signal.SIGINT, _exit_at_once)
    from genrec_batch.cli import app
    from genrec_batch.runtime import leftovers

    try:
        app.main()
    except SystemExit as left:
        if left.code:
            raise
        # All is done and printed: a signal must not turn it into a failure, and freeing gigabytes would take time.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        leftovers.remove()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
