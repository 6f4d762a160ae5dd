#!/usr/bin/env bash
# What needs a GPU, in one go on a machine that has one:
#
#   TORCH_PYTHON=python3 TENSORRT_PYTHON=python3.10 tests/gpu.sh tests end-to-end
#
# `tests` are those marked gpu. `end-to-end` is the benchmark of docs/benchmarks/end-to-end-h200.md (10 million users,
# some 15 GB of disk, minutes an engine), after a small run that compiles and builds. Each variable names an interpreter
# with that engine's packages, pytest and polars; an engine without its variable is left out.
# GENREC_BATCH_TENSORRT_INCLUDE names TensorRT's headers, for the plugin. OUT is a folder for results, WORK one for logs,
# LIMIT the seconds of each step.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
out=${OUT:-gpu_results} work=${WORK:-$(mktemp -d)} failed=0
if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then
  echo "PYTHONDONTWRITEBYTECODE is set: every start would compile all sources anew, for seconds; unset it" >&2
  exit 2
fi
mkdir -p "$out"

run() { # name, command...
  local began=$SECONDS
  timeout "${LIMIT:-600}" "${@:2}" || { failed=1 && echo "== $1: FAILED"; }
  echo "== $1: $((SECONDS - began)) s"
}

marked() { # interpreter, file
  "$1" -c 'import numpy.testing, pytest' || exit 2 # a packed NumPy may lack what its own testing imports
  run "$2" "$1" -m pytest -q -W ignore -m gpu --noconftest -p no:cacheprovider -o addopts=--import-mode=importlib "$2"
}

end_to_end() { # interpreter, engine
  local bench=(tests/benchmarks/bench_end_to_end.py --engine "$2" --kinds 5-50)
  run "$2, small" "$1" "${bench[@]}" --users 200000 --rounds 1 --folder "$work/small"
  run "$2" "$1" "${bench[@]}" --users "${USERS:-10000000}" --rounds "${ROUNDS:-1}" --warm --folder "$work/large" \
    --json "$out/end_to_end_$2.json"
}

for what in "${@:-usage}"; do
  case $what in
    tests)
      for file in tests/engines/cuda/test_engine.py tests/engines/torch/test_engine.py; do
        [ -z "${TORCH_PYTHON:-}" ] || marked "$TORCH_PYTHON" "$file"
      done
      for file in tests/engines/tensorrt/test_engine.py tests/engines/test_gpu_decoding.py; do
        [ -z "${TENSORRT_PYTHON:-}" ] || marked "$TENSORRT_PYTHON" "$file"
      done
      ;;
    end-to-end)
      [ -z "${TORCH_PYTHON:-}" ] || end_to_end "$TORCH_PYTHON" torch
      [ -z "${TENSORRT_PYTHON:-}" ] || end_to_end "$TENSORRT_PYTHON" tensorrt
      ;;
    *)
      echo "usage: tests/gpu.sh tests|end-to-end ..." >&2
      exit 2
      ;;
  esac
done
exit "$failed"
