#!/usr/bin/env bash
# The benchmark of the CNI plugin; arguments choose (see `espalier-bench-cni --help`). docs/cni.md.
# The plugin is built as for the image; agent and data plane are started once.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/packages.sh bench-cni
plugin=$(scripts/static.sh release espalier-cni)/espalier-cni
cargo build --locked --release -p espalier-agent -p espalier-dataplane -p espalier-bench-cni
exec "${CARGO_TARGET_DIR:-target}/release/espalier-bench-cni" --plugin "$plugin" "$@"
