#!/usr/bin/env bash
# Makes sure that what a part needs from the system is there: `packages.sh PART`, of the parts below. As root on Debian it
# installs what is missing; otherwise it names it and fails.
set -euo pipefail

declare -A tools=(
  [build]="cc:gcc make:make"
  [demo]="ip:iproute2 unshare:util-linux"
  [interop]="cc:gcc ip:iproute2 unshare:util-linux modprobe:kmod tcpdump:tcpdump ping:iputils-ping openssl:openssl mmdebstrap:mmdebstrap"
  [kernel]="cc:gcc ip:iproute2 ethtool:ethtool unshare:util-linux modprobe:kmod ping:iputils-ping mmdebstrap:mmdebstrap"
  [kernel-matrix]="cc:gcc ip:iproute2 ethtool:ethtool unshare:util-linux modprobe:kmod ping:iputils-ping patchelf:patchelf mmdebstrap:mmdebstrap cpio:cpio xz:xz-utils qemu-system-x86_64:qemu-system-x86"
  [bench]="cc:gcc make:make ip:iproute2 unshare:util-linux dpkg-source:dpkg-dev pkg-config:pkg-config"
  [bench-cni]="cc:gcc ip:iproute2 unshare:util-linux /usr/lib/cni/ptp:containernetworking-plugins iptables:iptables"
  [e2e-build]="cc:gcc make:make dpkg-source:dpkg-dev rsync:rsync jq:jq flock:util-linux /usr/lib/go-1.19/bin/go:golang-1.19-go"
  [e2e]="cc:gcc curl:curl ip:iproute2 unshare:util-linux openssl:openssl etcd:etcd-server containerd:containerd runc:runc iptables:iptables conntrack:conntrack ethtool:ethtool socat:socat busybox:busybox-static /usr/lib/cni/bridge:containernetworking-plugins"
  [test]="cc:gcc make:make ip:iproute2 nft:nftables ethtool:ethtool unshare:util-linux python3:python3"
  [e2e-kind]="cc:gcc curl:curl ip:iproute2 ethtool:ethtool busybox:busybox-static"
  [kind-image]="mmdebstrap:mmdebstrap dpkg-source:dpkg-dev jq:jq"
  [chart]="python3:python3"
  [image]="cc:gcc strip:binutils python3:python3"
)
# What tests use where it is there and otherwise do without.
declare -A wanted=(
  [test]="iptables:iptables /usr/lib/cni/portmap:containernetworking-plugins podman:podman crun:crun busybox:busybox-static"
)
part=${1:?part}
missing=()
for pair in ${tools[$part]}; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
# gcc alone does not bring the C library's headers.
if [[ $part != demo && ! -e /usr/include/stdio.h ]]; then missing+=(libc6-dev); fi
if [[ $part == bench && ! -e /usr/include/openssl/evp.h ]]; then missing+=(libssl-dev); fi
if [[ $part == e2e-build && ! -e /usr/share/gocode/src/github.com/modern-go/reflect2 ]]; then
  missing+=(golang-github-modern-go-reflect2-dev)
fi
# An implementation of ESP that is not ours reads what is on the wire.
if [[ $part == kernel* ]] && ! /usr/bin/python3 -c 'import scapy, cryptography' 2>/dev/null; then
  missing+=(python3-scapy python3-cryptography)
fi
# For checks of the chart.
if [[ $part == test || $part == chart ]] && ! python3 -c 'import ensurepip' 2>/dev/null; then missing+=(python3-venv); fi
left_out=()
for pair in ${wanted[$part]:-}; do
  command -v "${pair%%:*}" >/dev/null || left_out+=("${pair##*:}")
done
if ((${#left_out[@]})); then
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    missing+=("${left_out[@]}")
  else
    echo "without ${left_out[*]} (Debian's names) some tests are skipped" >&2
  fi
fi
if ((${#missing[@]})); then
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]} (Debian's names); install them and try again" >&2
    exit 1
  fi
  echo "installing ${missing[*]}"
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi
if ! command -v cargo >/dev/null; then
  echo "cargo is missing: install Rust 1.95 or newer (Debian 12's own is too old), for example with rustup" >&2
  exit 1
fi
if [[ $part == test ]]; then
  for component in clippy fmt; do
    cargo "$component" --version >/dev/null 2>&1 && continue
    if ! command -v rustup >/dev/null; then
      echo "cargo $component is missing: install Rust's ${component/#fmt/rustfmt} component and try again" >&2
      exit 1
    fi
    rustup component add "${component/#fmt/rustfmt}"
  done
fi
