#!/bin/sh
# Compiles the kernels of features and sorting into $NUMBA_CACHE_DIR while an image is built, by a job of the size from
# which a run uses them (100,000 users, 4 million rows). They fit the processor that builds the image; see
# docs/operations.md for when a container compiles again.
set -eu
# numba compares each source's time of change, and layers of an image keep whole seconds only.
find "$(dirname "$0")/../lib" -path '*/genrec_batch/*.py' -exec sh -c '
    for file; do touch --date "@$(stat --format %Y "$file")" "$file"; done' sh {} +
work=$(mktemp -d)
cd "$work"
genrec-batch sample events.parquet --users 100000 --events-per-user 41 --quiet
genrec-batch model init model --preset tiny --catalog-from events.parquet --quiet
genrec-batch score events.parquet recs.parquet --model model --device cpu --precision fp32 --top-k 1 --quiet
rm -rf "$work"
chmod -R a+rX "$NUMBA_CACHE_DIR"
