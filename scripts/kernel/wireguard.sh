#!/usr/bin/env bash
# wireguard.sh [SUITE]: prints a folder with wireguard-go of a Debian suite (bookworm) and wg, which are fetched once and not
# installed. wg is bookworm's always: it runs on older systems, too.
set -euo pipefail
. "$(dirname "$(realpath "$0")")/../debian.sh"
suite=${1:-bookworm}
name=wireguard-go
[[ $suite == bookworm ]] || name=wireguard-$suite
if in_cache "$name"; then
  echo "$found"
  exit
fi

work=$(mktemp -d -p "$cache" fetch.XXXXXX)
trap 'rm -rf "$work"' EXIT
suite_options bookworm "$work/apt"
(cd "$work" && apt-get "${options[@]}" download wireguard-tools > /dev/null)
suite_options "$suite" "$work/apt"
(cd "$work" && apt-get "${options[@]}" download wireguard-go > /dev/null)
for package in "$work"/*.deb; do dpkg -x "$package" "$work/root"; done
version=$(dpkg-deb -f "$(find "$work" -maxdepth 1 -name 'wireguard-go_*.deb')" Version)
mkdir "$work/new"
cp "$work/root/usr/bin/wireguard-go" "$work/root/usr/bin/wg" "$work/new/"
target=$cache/$name-${version//[^A-Za-z0-9.+~-]/_}
mv "$work/new" "$target"
echo "$target"
