#!/usr/bin/env bash
# Everything that tests run. Each part runs even when one before it failed; the last line counts tests and parts.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
passed=0 failed=0 bad=()

# part NAME COMMAND…: counts as one, or as the tests that a runner counted in its output.
part() {
  local name=$1 start=$SECONDS out=$log/part
  shift
  printf '== %s\n' "$name"
  if "$@" 2>&1 | tee "$out"; [[ ${PIPESTATUS[0]} == 0 ]]; then
    count "$out" 1
  else
    count "$out" 0
    bad+=("$name")
  fi
  printf -- '-- %s: %d s\n' "$name" $((SECONDS - start))
}

# Adds up what the runners' closing lines say, those of nextest, of cargo test and of our own. A failed test's own output, which nextest
# shows indented, is not counted again.
count() {
  local out=$1 succeeded=$2 ok not
  ok=$(closing_lines "$out" | grep -oE '[0-9]+ passed' | awk '{sum += $1} END {print sum + 0}')
  not=$(closing_lines "$out" | grep -oE '[0-9]+ failed' | awk '{sum += $1} END {print sum + 0}')
  if ((ok + not == 0)); then ok=$succeeded; fi
  # Failed without a failed test: it did not build, timed out or has no counts.
  if ((!succeeded && not == 0)); then not=1; fi
  passed=$((passed + ok)) failed=$((failed + not))
}

closing_lines() {
  grep -E '^(test result: | *Summary |[0-9]+ passed, [0-9]+ failed$)' "$1"
}

scripts/packages.sh test || exit 1
part "format" make --no-print-directory fmt
part "lints" make --no-print-directory clippy
part "file sizes" make --no-print-directory sizes
part "purity" make --no-print-directory pure
part "tests" make --no-print-directory unit
part "dependencies" make --no-print-directory deny
part "chart" make --no-print-directory chart-test
part "demo" make --no-print-directory demo
part "kernel" make --no-print-directory kernel-test

if ((failed)); then printf 'failed: %s\n' "${bad[*]}"; fi
printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0))
