#!/usr/bin/env bash
# Builds the extensions with address and undefined-behaviour sanitizers in a scratch copy, and there runs a short pass of
# every fuzz target and tests/core without `slow`. Any report ends it. Linux with gcc; `PYTHON` names the interpreter.
# Further arguments replace the fixed part: tests/fuzz/sanitized.sh python -m tests.fuzz script --runs 50000
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/pilot-sanitized.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

git ls-files -z -co --exclude-standard | tar --null -T - -c | tar -x -C "$scratch"
# Translated already where a build has been made here: only the C compiler runs again.
cp -p pilot/_fast/*.c "$scratch/pilot/_fast/" 2>/dev/null || true
cd "$scratch"
PILOT_SANITIZE=1 "$python" setup.py -q build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; }

LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export LD_PRELOAD
# Python frees little at its end, so leaks are counted by the tests instead. malloc is Python's own way to the C heap:
# with it every bytes object lies between red zones.
export PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:abort_on_error=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
if [ $# -gt 0 ]; then
  "$@"
  exit
fi
"$python" -c 'import pilot._fast.seal as m, os; assert m.__file__.startswith(os.getcwd()), m.__file__'
"$python" -m tests.fuzz all --runs 400 --seed 3 &
fuzzing=$!
"$python" -m pytest -q -p no:cacheprovider -m 'not slow' tests/core || { kill "$fuzzing"; exit 1; }
wait "$fuzzing"
