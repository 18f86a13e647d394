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
# Advisories need the public advisory database. Where it cannot be fetched, that is said, not passed over. Fetching is a step
# of its own, so that no finding can be taken for a failure of the network.
if why=$("$deny" --log-level error fetch db 2>&1); then
  "$deny" --log-level error check --disable-fetch advisories
else
  printf '%s\n' "$why" | grep -iE 'fatal|error' | tail -n 1 || true
  echo '!!! NOT CHECKED: security advisories. The advisory database cannot be fetched from this machine (see above).'
fi
