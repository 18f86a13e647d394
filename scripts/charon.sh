#!/usr/bin/env bash
# Builds strongSwan's charon with the load-tester plugin from the source package of Debian sid and prints the folder that it
# is installed in. Needs the network once: the folder under the user's cache is used again; remove it to build the newest.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
patch=$here/benches/ike/charon/load-tester.patch
cache=${XDG_CACHE_HOME:-$HOME/.cache}
stamp=built-$(cat "$patch" "$0" | sha256sum | cut -c1-12)

newest() {
  local folder found=
  while read -r folder; do
    [[ -e $folder/$stamp ]] && found=$folder
  done < <(find "$cache" -maxdepth 1 -name 'espalier-strongswan-*' 2>/dev/null | sort -V)
  [[ -n $found ]] && echo "$found"
}

# apt options for the source packages of sid from the mirror that this machine uses already; its own apt stays as it is.
source_options() {
  local work=$1 mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Label: Debian' | sort -u | head -n 1)
  if [[ -z $mirror ]]; then
    echo "expected a Debian mirror in this machine's apt configuration; run apt-get update there, or build on Debian" >&2
    return 1
  fi
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/sources.list"
  options=("-oDir::Etc::sourcelist=$work/sources.list" -oDir::Etc::sourceparts=- "-oDir::State::Lists=$work/lists"
    "-oDir::Cache=$work/cache" -oAcquire::Check-Valid-Until=false -oAPT::Sandbox::User=root)
}

# Only what the handshakes of the benchmark need, optimised as Debian does it.
build() {
  local source=$1 prefix=$2
  cd "$source"
  patch -p1 <"$patch"
  ./configure --prefix="$prefix" --with-piddir=/run/charon --disable-defaults --enable-silent-rules \
    --enable-charon --enable-ikev2 --enable-load-tester --enable-kernel-netlink --enable-socket-default \
    --enable-vici --enable-swanctl --enable-openssl --enable-ml --enable-sha3 --enable-nonce --enable-random \
    --enable-hmac --enable-kdf --enable-gcm --enable-pem --enable-pkcs1 --enable-pkcs8 --enable-x509 --enable-pubkey \
    --enable-constraints CFLAGS="-O2 -g0"
  make -j"$(nproc)"
  make install
}

newest && exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
source_options "$work"
apt-get "${options[@]}" -q update >"$work/apt.log" 2>&1 &&
  apt-get "${options[@]}" -q source --download-only strongswan >>"$work/apt.log" 2>&1 || {
  cat "$work/apt.log" >&2
  echo "the source package of strongSwan could not be had from Debian sid" >&2
  exit 1
}
version=$(sed -n 's/^Version: //p' strongswan_*.dsc | head -n 1)
prefix=$cache/espalier-strongswan-$version
dpkg-source --no-check -x strongswan_*.dsc source >>"$work/apt.log" 2>&1
echo "building strongSwan $version, some minutes" >&2
rm -rf "$prefix"
mkdir -p "$prefix"
if ! (set -e; build "$work/source" "$prefix") >"$prefix/build.log" 2>&1; then
  tail -n 40 "$prefix/build.log" >&2
  echo "strongSwan $version does not build; the whole log is in $prefix/build.log" >&2
  exit 1
fi
touch "$prefix/$stamp"
echo "$prefix"
