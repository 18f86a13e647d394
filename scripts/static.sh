#!/usr/bin/env bash
# Builds the programs that users get, or some of them, static, for this machine's processor; prints their folder.
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
folder=$profile
if [[ $profile == dev ]]; then folder=debug; fi
folder=${CARGO_TARGET_DIR:-target}/$target/$folder
# A process for each pod that starts or ends: at a fixed address it need not correct ten thousand pointers first, and with musl, where
# the toolchain has it (`rustup target add …-unknown-linux-musl`), it does not ask the processor about its caches (docs/cni.md).
if [[ " $* " == *" espalier-cni "* ]]; then
  plugin=${target/-gnu/-musl}
  [[ -d $(rustc --print target-libdir --target "$plugin") ]] || plugin=$target
  cargo rustc --locked --profile "$profile" --target "$plugin" -p espalier-cni --bin espalier-cni -- -C relocation-model=static >&2
  if [[ $plugin != "$target" ]]; then
    mkdir -p "$folder"
    cp --remove-destination "${folder/"$target"/"$plugin"}/espalier-cni" "$folder/"
  fi
fi
echo "$folder"
