#!/usr/bin/env bash
# fetch.sh CACHE: the guest kernel and the foreign implementations, each in a root file system of its own, from the Debian
# mirror that this machine uses. What is there already stays; the names carry suite and contents.
set -euo pipefail
cache=${1:?folder}
mkdir -p "$cache"
sources=/etc/apt/sources.list.d/debian.sources
if [[ -e $sources ]]; then
  mirror=$(awk '/^URIs:/ {print $2; exit}' "$sources")
else
  mirror=$(awk '$1 == "deb" {for (i = 2; i <= NF; i++) if ($i ~ /^[a-z]+:\/\//) {print $i; exit}}' /etc/apt/sources.list)
fi
[[ -n $mirror ]] || { echo "no Debian mirror in the configuration of apt" >&2; exit 1; }

# root NAME SUITE PACKAGES
root() {
  local name=$1 start=$SECONDS
  [[ ! -e $cache/$name ]] || return 0
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
if [[ ! -e $cache/uml ]]; then
  # A folder of lists of its own: the machine's apt is left as it is.
  new=$cache/uml.new
  rm -rf "$new"
  mkdir -p "$new"/{lists/partial,archives/partial}
  echo "deb $mirror bookworm main" > "$new/sources.list"
  options=(-q -o Dir::Etc::sourcelist="$new/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::Lists="$new/lists"
    -o Dir::Cache="$new" -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update > /dev/null
  (cd "$new" && apt-get "${options[@]}" download user-mode-linux > /dev/null && dpkg -x user-mode-linux_*.deb root)
  mv "$new/root" "$cache/uml"
  rm -rf "$new"
fi
