#!/usr/bin/env bash
# Makes the container image without a registry or a Docker: an OCI archive, which `ctr -n k8s.io images import` takes.
#   image.sh [--profile release|dev] [--binaries FOLDER] OUT.tar REFERENCE
# The binaries are static, built for this machine's processor; with --binaries those in FOLDER are taken as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=release binaries=

usage() { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while (($#)); do
  case $1 in
    --profile) profile=${2:?release or dev}; shift 2 ;;
    --binaries) binaries=${2:?folder}; shift 2 ;;
    -*) usage ;;
    *) break ;;
  esac
done
(($# == 2)) || usage
out=$1 reference=$2

[[ -n $binaries ]] || binaries=$(scripts/static.sh "$profile")
stripped=$(mktemp -d)
trap 'rm -rf "$stripped"' EXIT
for name in espalier espalier-agent espalier-cni espalier-controller espalier-dataplane; do
  [[ -e $binaries/$name ]] || continue
  strip -o "$stripped/$name" "$binaries/$name"
  if readelf -l "$stripped/$name" | grep -q INTERP; then
    echo "$binaries/$name is not static: an image of nothing else cannot run it; build it with -C target-feature=+crt-static" >&2
    exit 1
  fi
done
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
python3 scripts/oci.py --output "$out" --reference "$reference" --version "$version" "$stripped"/*
