#!/usr/bin/env bash
# Builds the programs that users get, static (glibc), for this machine's processor; prints their folder. static.sh [release|dev]
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-release}
packages=(espalier-agent espalier-dataplane espalier-cni espalier-controller espalier-cli)
# A target of its own keeps the flag from build scripts and procedural macros, which cannot be static.
target=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile "$profile" --target "$target" "${packages[@]/#/-p}" >&2
folder=$profile
if [[ $profile == dev ]]; then folder=debug; fi
echo "${CARGO_TARGET_DIR:-target}/$target/$folder"
