#!/bin/sh
# Runs the build stage of a Dockerfile in a folder instead of a container, then the installed program:
#   jobs/docker/rehearse.sh cpu [FOLDER]
# It finds a broken COPY, install line or entry point without Docker. The base image and the final stage stay untested.
set -eu
cd "$(dirname "$0")/../.."
root=${2:-$(mktemp -d)}
dockerfile=jobs/docker/$1.Dockerfile
mkdir -p "$root/src" "$root/opt"
echo "rehearsing $dockerfile in $root"
# The instructions of the first stage, one a line; /src and /opt become folders below $root.
sed -e :a -e '/\\$/N; s/\\\n *//; ta' "$dockerfile" | sed -n '/^FROM .* AS build/,/^FROM/p' |
    sed -e "s#\\([ '=]\\)/src#\\1$root/src#g" -e "s#\\([ '=]\\)/opt/#\\1$root/opt/#g" >"$root/stage"
while read -r instruction arguments; do
    case $instruction in
    COPY)
        # shellcheck disable=SC2086 # words of the Dockerfile
        set -- $arguments
        for target in "$@"; do :; done
        mkdir -p "$target"
        while [ $# -gt 1 ]; do
            if [ -d "$1" ]; then cp -R "$1/." "$target"; else cp "$1" "$target"; fi
            shift
        done
        ;;
    RUN) sh -euc "$arguments" ;;
    ENV)
        # shellcheck disable=SC2086,SC2163 # NAME=value words of the Dockerfile
        export $arguments
        ;;
    *) ;; # FROM and comments
    esac
done <"$root/stage"
export PATH="$root/opt/genrec-batch/start:$root/opt/genrec-batch/bin:$PATH" NUMBA_CACHE_DIR="$root/numba"
cd "$root"
du -sh opt/genrec-batch
genrec-batch sample events.parquet --users 50
genrec-batch model init model --preset tiny --catalog-from events.parquet
genrec-batch score events.parquet recs.parquet --model model --device cpu --quiet
genrec-batch sample many.parquet --users 100000 --events-per-user 41 --quiet
genrec-batch features many.parquet features --model model --quiet
find opt/genrec-batch/kernels -name '*.nbc' -printf '%f\n' | sort >compiled # by the build
find numba -name '*.nbc' -printf '%f\n' | sort | diff compiled - # and none by the run
nightly.sh 2>&1 | grep GENREC_JOB_ROOT # it is in the image and starts
echo "rehearsed: $root"
