#!/usr/bin/env bash
# wireguard.sh: prints a folder with Debian's wireguard-go and wg, which are fetched once and not installed.
set -euo pipefail
. "$(dirname "$(realpath "$0")")/../debian.sh"
if in_cache wireguard-go; then
  echo "$found"
  exit
fi

work=$(mktemp -d -p "$cache" fetch.XXXXXX)
trap 'rm -rf "$work"' EXIT
suite_options bookworm "$work/apt"
(cd "$work" && apt-get "${options[@]}" download wireguard-go wireguard-tools > /dev/null)
for package in "$work"/*.deb; do dpkg -x "$package" "$work/root"; done
version=$(dpkg-deb -f "$(find "$work" -maxdepth 1 -name 'wireguard-go_*.deb')" Version)
mkdir "$work/new"
cp "$work/root/usr/bin/wireguard-go" "$work/root/usr/bin/wg" "$work/new/"
target=$cache/wireguard-go-${version//[^A-Za-z0-9.+~-]/_}
mv "$work/new" "$target"
echo "$target"
