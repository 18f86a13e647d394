#!/usr/bin/env bash
# The benchmark of the userspace data plane; arguments choose (see `espalier-bench-dataplane --help`). docs/performance.md.
# WITHOUT=rust leaves out the counterparts that cargo would have to build (some minutes, once).
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/packages.sh bench
wireguard=$(scripts/kernel/wireguard.sh sid)
tools=()
if [[ ${WITHOUT:-} != rust ]]; then
  [[ -x target/tools/bin/boringtun-cli ]] || cargo install --quiet --locked --root target/tools boringtun-cli
  [[ -x target/tools/bin/gotatun ]] || cargo install --quiet --locked --root target/tools gotatun-cli
  tools=(--tools target/tools/bin)
else
  set -- --only plain-veth,plain-vxlan,espalier-vxlan-udp,espalier-ipip-udp,espalier-vxlan-raw,wireguard-go "$@"
fi
cargo build --locked --release -p espalier-dataplane -p espalier-bench-dataplane
exec target/release/espalier-bench-dataplane --wireguard "$wireguard" "${tools[@]}" "$@"
