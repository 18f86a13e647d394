#!/usr/bin/env bash
# fetch.sh CACHE [NAME]: the foreign implementations, each in a root file system of its own, from the Debian
# mirror that this machine uses. What is there already stays; the names carry suite and contents.
set -euo pipefail
. "$(dirname "$(realpath "$0")")/../debian.sh"
cache=${1:?folder} only=${2:-}
mkdir -p "$cache"
mirror=$(debian_mirror)

# root NAME SUITE PACKAGES
root() {
  local name=$1 start=$SECONDS
  [[ ! -e $cache/$name && ${only:-$name} == "$name" ]] || return 0
  rm -rf "$cache/$name.new"
  mmdebstrap --quiet --variant=apt --include="$3" --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Retries "3"' "$2" "$cache/$name.new" "$mirror"
  rm -rf "$cache/$name.new"/var/{cache/apt,lib/apt/lists}
  mv "$cache/$name.new" "$cache/$name"
  echo "$name: fetched in $((SECONDS - start)) s"
}

plugins=libcharon-extra-plugins,libstrongswan-standard-plugins,libstrongswan-extra-plugins
root bookworm-strongswan bookworm strongswan-charon,strongswan-swanctl,$plugins &
one=$!
root sid-strongswan sid charon-systemd,strongswan-swanctl,$plugins
root bookworm-libreswan bookworm libreswan,libnss3-tools
wait $one
root trixie-libreswan trixie libreswan,libnss3-tools
