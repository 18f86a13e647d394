#!/usr/bin/env bash
# Our IKE engine against foreign ones; arguments choose (see `espalier-interop run --help`). docs/interop.md.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/espalier-interop
scripts/packages.sh interop
scripts/interop/fetch.sh "$cache"
kernel=$(scripts/kernel/fetch.sh uml bookworm)
cargo build --locked --quiet -p espalier-interop
exec target/debug/espalier-interop run --cache "$cache" --kernel "$kernel" --boot scripts/kernel/boot.sh "$@"
