#!/usr/bin/env bash
# Builds the programs that users get, or some of them, static (glibc), for this machine's processor; prints their folder.
# static.sh [release|dev [PACKAGE…]]
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-release}
shift || true
(($#)) || set -- espalier-agent espalier-dataplane espalier-cni espalier-controller espalier-cli
# A target of its own keeps the flag from build scripts and procedural macros, which cannot be static.
target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-C target-feature=+crt-static"
options=(--locked --profile "$profile" --target "$target")
packages=()
for package in "$@"; do [[ $package == espalier-cni ]] || packages+=(-p "$package"); done
if ((${#packages[@]})); then cargo build "${options[@]}" "${packages[@]}" >&2; fi
# A process for each pod that starts or ends: at a fixed address it need not correct ten thousand pointers first (docs/cni.md).
if [[ " $* " == *" espalier-cni "* ]]; then
  cargo rustc "${options[@]}" -p espalier-cni --bin espalier-cni -- -C relocation-model=static >&2
fi
folder=$profile
if [[ $profile == dev ]]; then folder=debug; fi
echo "${CARGO_TARGET_DIR:-target}/$target/$folder"
