#!/usr/bin/env bash
# The benchmark of the CNI plugin; arguments choose (see `espalier-bench-cni --help`). docs/cni.md.
# The plugin is static, as it is in the image; agent and data plane are started once.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/packages.sh bench-cni
target=$(rustc -vV | sed -n 's/^host: //p') out=${CARGO_TARGET_DIR:-target}
RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target "$target" -p espalier-cni
cargo build --locked --release -p espalier-agent -p espalier-dataplane -p espalier-bench-cni
exec "$out/release/espalier-bench-cni" --plugin "$out/$target/release/espalier-cni" "$@"
