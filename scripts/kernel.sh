#!/usr/bin/env bash
# kernel.sh test|matrix [ARGUMENT…]: the real binaries over the IPsec of real kernels; arguments choose (see
# `espalier-e2e-kernel run --help`). docs/kernel-tests.md.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:?test or matrix}
shift
cache=${XDG_CACHE_HOME:-$HOME/.cache}/espalier-interop
binaries=(espalier-agent espalier-dataplane espalier-cni espalier-cli)
build() {
  # The gateway of the cases `external_gateway…`.
  scripts/interop/fetch.sh "$cache" bookworm-strongswan
  cargo build --locked --quiet -p espalier-e2e-kernel $(printf -- '-p %s ' "${binaries[@]}")
}

case $part in
  test)
    scripts/packages.sh kernel
    build
    # The tests of e2e/ are cases, too.
    mesh=$(cargo test --locked --quiet -p espalier-e2e --test mesh --no-run --message-format=json |
      grep -oE '"executable":"[^"]+"' | cut -d'"' -f4)
    exec target/debug/espalier-e2e-kernel run --strongswan "$cache/bookworm-strongswan" --mesh "$mesh" "$@"
    ;;
  matrix)
    scripts/packages.sh kernel-matrix
    build
    exec target/debug/espalier-e2e-kernel run --strongswan "$cache/bookworm-strongswan" --core --out target/kernel-matrix \
      --kernel uml-bookworm --kernel uml-trixie --kernel uml-sid --kernel qemu-sid "$@"
    ;;
  *) sed -n 2,3p "$0" >&2 && exit 2 ;;
esac
