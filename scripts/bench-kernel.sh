#!/usr/bin/env bash
# The benchmark of the kernel data plane; arguments choose (see `espalier-bench-kernel run --help`). docs/performance.md.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/packages.sh kernel
kernel=$(scripts/kernel/fetch.sh uml bookworm)
wireguard=$(scripts/kernel/wireguard.sh)
cargo build --locked --release -p espalier-agent -p espalier-dataplane -p espalier-cni -p espalier-cli -p espalier-bench-kernel
exec target/release/espalier-bench-kernel run --kernel "$kernel" --wireguard "$wireguard" "$@"
