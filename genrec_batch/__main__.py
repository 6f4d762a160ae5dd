"""`genrec-batch` and `python -m genrec_batch`: the command line, which Ctrl-C ends in one line from its start on."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from genrec_batch import cli

        cli.main()
    except KeyboardInterrupt:  # before a command has begun
        sys.stderr.write("interrupted before anything began\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
