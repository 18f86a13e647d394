#!/usr/bin/env bash
# Pure crates must not link a runtime, sockets or system calls of their own: time and randomness come in as arguments.
set -euo pipefail
status=0
for crate in peers ike esp ipam; do
  found=$(cargo tree --locked -p "espalier-$crate" -e normal --prefix none | awk '{print $1}' |
    grep -xE 'tokio|mio|socket2|nix|netlink-sys|async-io|rand|getrandom' | sort -u | tr '\n' ' ' || true)
  if [[ -n $found ]]; then
    echo "espalier-$crate is to be pure but links: $found" >&2
    status=1
  fi
done
exit $status
