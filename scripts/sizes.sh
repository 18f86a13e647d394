#!/usr/bin/env bash
# A Rust file over 600 lines is two files.
set -euo pipefail
long=$(find . \( -name target -o -name '.*' ! -name . \) -prune -o -name '*.rs' -exec wc -l {} + |
  awk '$2 != "total" && $1 > 600 {print "  " $2 ": " $1 " lines"}')
if [[ -n $long ]]; then
  printf 'over 600 lines, to be split:\n%s\n' "$long" >&2
  exit 1
fi
