#!/usr/bin/env bash
# cargo deny, installed into the folder $1 when it is missing.
set -euo pipefail
tools=${1:?folder for tools}
deny=$(command -v cargo-deny || true)
if [[ -z $deny ]]; then
  deny=$tools/bin/cargo-deny
  [[ -x $deny ]] || cargo install --locked --quiet --root "$tools" cargo-deny
fi
"$deny" --log-level error check bans licenses sources
# Advisories need the public advisory database. Where it cannot be fetched, that is said, not passed over.
if ! "$deny" --log-level error check advisories 2>/tmp/espalier-advisories.$$; then
  if grep -qiE 'failed to (fetch|clone|open|acquire)|unable to (fetch|clone)|could not|git' /tmp/espalier-advisories.$$; then
    echo "NOT CHECKED: security advisories (the advisory database cannot be fetched from this machine)"
  else
    cat /tmp/espalier-advisories.$$ >&2
    rm -f /tmp/espalier-advisories.$$
    exit 1
  fi
fi
rm -f /tmp/espalier-advisories.$$
