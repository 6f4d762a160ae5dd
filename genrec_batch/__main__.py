"""`python -m genrec_batch`: the same command line as `genrec-batch`."""

from genrec_batch.cli import main

if __name__ == "__main__":
    main()
