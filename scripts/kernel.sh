#!/usr/bin/env bash
# kernel.sh test|matrix|kubernetes [ARGUMENT…]: the real binaries over the IPsec of real kernels; arguments choose (see
# `espalier-e2e-kernel run --help`). docs/kernel-tests.md.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:?test, matrix or kubernetes}
shift
cache=${XDG_CACHE_HOME:-$HOME/.cache}/espalier-interop
# Of the cases `external_gateway…`.
gateway=(--strongswan "$cache/bookworm-strongswan")
binaries=(espalier-agent espalier-dataplane espalier-cni espalier-cli)
build() {
  scripts/interop/fetch.sh "$cache" bookworm-strongswan
  cargo build --locked --quiet -p espalier-e2e-kernel $(printf -- '-p %s ' "${binaries[@]}")
}
# program PACKAGE TEST: builds a test program, prints where it is.
program() {
  cargo test --locked --quiet -p "$1" --test "$2" --no-run --message-format=json |
    grep -oE '"executable":"[^"]+"' | grep "/$2-" | cut -d'"' -f4
}
# Tests of crates that need a kernel with IPsec.
of_crates() {
  tests=(
    --tests "xfrm=$(program espalier-xfrm kernel)"
    --tests "overlay=$(program espalier-overlay xfrm)"
    --tests "dataplane=$(program espalier-dataplane kernel)"
  )
}

case $part in
  test)
    scripts/packages.sh kernel
    build
    of_crates
    # The tests of e2e/ are cases, too.
    tests+=(--tests "mesh=$(program espalier-e2e mesh)")
    exec target/debug/espalier-e2e-kernel run "${gateway[@]}" "${tests[@]}" "$@"
    ;;
  matrix)
    scripts/packages.sh kernel-matrix
    build
    of_crates
    if [[ " $* " != *" --kernel "* ]]; then
      set -- --kernel uml-bookworm --kernel uml-trixie --kernel uml-sid --kernel qemu-sid "$@"
    fi
    exec target/debug/espalier-e2e-kernel run "${gateway[@]}" "${tests[@]}" --core --out target/kernel-matrix "$@"
    ;;
  kubernetes)
    scripts/packages.sh kernel
    scripts/packages.sh e2e
    programs=$(scripts/kubernetes.sh)
    binaries+=(espalier-controller)
    build
    . scripts/chart/tools.sh
    # What an admin installs, for this server.
    manifests=target/kernel-manifests
    mkdir -p $manifests
    cp -r deploy/crds $manifests/
    "$(helm_of 3)/helm" template espalier charts/espalier --namespace espalier-system --kube-version 1.20.2 \
      --set 'policy.clusterCIDRs={10.244.0.0/16}' >$manifests/espalier.yaml
    export GUEST_MEMORY=2G
    exec target/debug/espalier-e2e-kernel run --out target/kernel-kubernetes --kubernetes "$programs" --manifests $manifests \
      --case kubernetes_toggles --case kubernetes_api_server_away "$@"
    ;;
  *) sed -n 2,3p "$0" >&2 && exit 2 ;;
esac
