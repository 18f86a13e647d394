#!/usr/bin/env bash
# fetch.sh uml|qemu SUITE: prints the folder of a guest kernel of that Debian suite, which boot.sh starts. `uml` is user-mode
# Linux, `qemu` the kernel for clouds with a small root file system of the same suite. What is in the cache is used again, without
# a look at the mirror; remove it to get the newest.
set -euo pipefail
kind=${1:?uml or qemu} suite=${2:?suite}
. "$(dirname "$(realpath "$0")")/../debian.sh"
if in_cache "$kind-$suite"; then
  echo "$found"
  exit
fi

work=$(mktemp -d -p "$cache" fetch.XXXXXX)
trap 'rm -rf "$work"' EXIT
start=$SECONDS
suite_options "$suite" "$work/apt"

# download PACKAGE…: as .deb files in the working folder.
download() {
  (cd "$work" && apt-get "${options[@]}" download "$@" > /dev/null)
}

# The programs of newer suites need their own C library: it lies beside.
uml() {
  download user-mode-linux libc6
  version=$(dpkg-deb -f "$work"/user-mode-linux_*.deb Version)
  dpkg -x "$work"/user-mode-linux_*.deb "$work/root"
  dpkg -x "$work"/libc6_*.deb "$work/libc"
  mkdir "$work/new"
  cp "$work/root/usr/bin/linux.uml" "$work/new/"
  mv "$work/root/usr/lib/uml/modules" "$work/new/modules"
  [[ $suite != $(. /etc/os-release && echo "${VERSION_CODENAME:-}") ]] || return 0
  mv "$(dirname "$(find "$work/libc" -name libc.so.6 | head -n 1)")" "$work/new/libc"
}

# The metapackage names the newest image.
qemu() {
  local packages
  packages=$(apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances linux-image-cloud-amd64 | grep -oE '^linux-(image|binary|modules)-[0-9][^ ]*' | sort -u)
  # shellcheck disable=SC2086  # one word each
  download $packages
  version=$(dpkg-deb -f "$(find "$work" -maxdepth 1 -name 'linux-image-*.deb' | head -n 1)" Version)
  local deb
  for deb in "$work"/linux-*.deb; do dpkg -x "$deb" "$work/root"; done
  mkdir "$work/new"
  cp "$(find "$work/root" -name 'vmlinuz*' | head -n 1)" "$work/new/vmlinuz"
  mv "$(dirname "$(dirname "$(find "$work/root" -type d -path '*/modules/*/kernel' | head -n 1)")")" "$work/new/modules"
}
# What the tests call, with the modules: the beginning of the guest's initial RAM file system. Its iproute2 knows what the
# kernel of its suite can do.
guest_root() {
  local root=$work/rootfs
  mmdebstrap --quiet --variant=extract --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
    --include=base-files,bash,coreutils,grep,iproute2,iputils-ping,kmod,mount,sed,tar,util-linux \
    "$suite" "$root" "$(debian_mirror)" >&2
  rm -rf "$root"/usr/share/{doc,man,locale,i18n,info} "$root"/var/{cache,lib}/apt
  mkdir -p "$root/usr/lib/modules"
  cp -r "$work/new/modules/." "$root/usr/lib/modules/"
  (cd "$root" && find . -print0 | cpio --null --quiet -o -H newc) | gzip -1 > "$work/new/root.cpio.gz"
}

"$kind"
# depmod knows one layout only.
mkdir -p "$work/base/lib"
ln -s ../../new/modules "$work/base/lib/modules"
depmod -b "$work/base" "$(ls "$work/new/modules")" 2> /dev/null
[[ $kind == uml ]] || guest_root
target=$cache/$kind-$suite-${version//[^A-Za-z0-9.+~-]/_}
# The paths in the program are those of the place where it stays.
if [[ -d $work/new/libc ]]; then
  patchelf --set-interpreter "$target/libc/ld-linux-x86-64.so.2" --set-rpath "$target/libc:/lib/x86_64-linux-gnu" "$work/new/linux.uml"
fi
mv "$work/new" "$target"
echo "$kind-$suite: kernel $(ls "$target/modules") fetched in $((SECONDS - start)) s" >&2
echo "$target"
