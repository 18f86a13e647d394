#!/usr/bin/env bash
# Builds Kubernetes (kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, kubelet, kubectl) from Debian 12's
# source package, which carries its vendor tree, and prints the folder of the programs. Takes 10 to 25 minutes and the network,
# once: the folder is kept under the user's cache; remove it to build again. Progress and time go to standard error.
# kubernetes.sh kubeadm: with that program, too, for the node image of kind.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/debian.sh"
programs=(kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl)
if [[ ${1:-} == kubeadm ]]; then programs+=(kubeadm); fi
go=/usr/lib/go-1.19/bin
cache=${XDG_CACHE_HOME:-$HOME/.cache}
# Of what this script makes of the source: a cache of an earlier one is not taken.
revision=3

say() { printf '%4d s  %s\n' "$SECONDS" "$*" >&2; }

# complete FOLDER: all programs are there; one that was being copied has another name.
complete() {
  local program
  for program in "${programs[@]}"; do [[ -x $1/$program ]] || return 1; done
}

newest() {
  local folder
  while read -r folder; do
    if complete "$folder"; then echo "$folder" && return; fi
  done < <(find "$cache" -maxdepth 1 -name "espalier-kubernetes-r$revision-*" ! -name '*.new' 2>/dev/null | sort -rV)
  return 1
}

# download FOLDER: the source package of Debian 12; this machine's apt stays as it is.
download() {
  local work=$1 mirror options
  mirror=$(debian_mirror)
  mkdir -p "$work"/apt/{lists/partial,archives/partial}
  echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm main" > "$work/apt/sources.list"
  options=(-q -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::Lists="$work/apt/lists"
    -o Dir::Cache="$work/apt" -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3 -o APT::Sandbox::User=root)
  cd "$work"
  apt-get "${options[@]}" update && apt-get "${options[@]}" source --download-only kubernetes
}

# mend SOURCE: the reflect2 that it carries does not know the maps of Go 1.18 and newer: an API server with it dies at the first custom
# resource. Debian's own is newer.
mend() {
  local theirs=/usr/share/gocode/src/github.com/modern-go/reflect2 ours=$1/vendor/github.com/modern-go/reflect2
  rm "$ours"/*.go
  find "$theirs" -maxdepth 1 \( -name '*.go' -o -name '*.s' \) ! -name '*_test.go' -exec cp {} "$ours" \;
  # Compares addresses to tell a zero value. With a newer Go they are one for all, and an API server refuses empty strings in custom
  # resources, as if they were null.
  local types=$1/vendor/github.com/go-openapi/validate/type.go
  sed -i 's/if data == nil || reflect.DeepEqual(reflect.Zero(.*)), reflect.ValueOf(data)) {/if data == nil {/' "$types"
  ! grep -n 'reflect.Zero' "$types"
}

# build SOURCE VERSION PROGRAM…: with nothing from the network.
build() {
  cd "$1"
  export PATH=$go:$PATH GOPROXY=off GOFLAGS=-mod=vendor GOTOOLCHAIN=local
  export KUBE_GIT_VERSION=v$2 KUBE_GIT_TREE_STATE=clean KUBE_GIT_COMMIT=debian KUBE_GIT_MAJOR=${2%%.*}
  KUBE_GIT_MINOR=$(cut -d. -f2 <<< "$2")
  export KUBE_GIT_MINOR
  # All programs without cgo: with it, nearly everything would be compiled a second time for kubelet alone.
  export KUBE_STATIC_OVERRIDES=kubelet
  shift 2
  make WHAT="${*/#/cmd/}" KUBE_BUILD_PLATFORMS="linux/$("$go/go" env GOARCH)"
}

# progress PID: a line each minute for as long as it lives, so that a CI job is not taken for dead.
progress() {
  while sleep 60 && kill -0 "$1" 2>/dev/null; do say "still building"; done
}

# kubernetes.sh cached: is there one that an earlier run has built?
if [[ ${1:-} == cached ]]; then
  newest > /dev/null
  exit
fi
newest && exit
"$here/packages.sh" e2e-build >&2
mkdir -p "$cache"
# One build at a time: who waited finds it done.
exec 9> "$cache/espalier-kubernetes.lock"
flock 9
newest && exit
work=$(mktemp -d "$cache/espalier-kubernetes-work.XXXXXX")
log=$work/log
waiter=
trap '[[ -z $waiter ]] || kill "$waiter" 2>/dev/null || true; chmod -R u+w "$work"; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
say "fetching the source package of Kubernetes"
if ! (download "$work") > "$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "the source package of Kubernetes could not be had from Debian 12's mirror" >&2
  exit 1
fi
# Debian's version may be 1.20.5+really1.20.2-1.
version=$(sed -nE 's/^Version: (.*really)?([0-9.]+).*/\2/p' "$work"/kubernetes_*.dsc | head -n 1)
mkdir "$work/source"
tar xf "$work"/kubernetes_*.orig.tar.* -C "$work/source" --strip-components 1
mend "$work/source"
folder=$cache/espalier-kubernetes-r$revision-$version
# An earlier run may have had less to build.
lacking=()
for program in "${programs[@]}"; do [[ -x $folder/$program ]] || lacking+=("$program"); done
say "building ${lacking[*]} of Kubernetes $version with $("$go/go" version | cut -d' ' -f3), up to 25 minutes"
# Its `sleep` outlives it: it must not hold what this script prints to.
progress $$ > /dev/null 9>&- &
waiter=$!
if ! (build "$work/source" "$version" "${lacking[@]}") >> "$log" 2>&1 9>&-; then
  tail -n 40 "$log" >&2
  cp "$log" "$cache/espalier-kubernetes.log"
  echo "Kubernetes $version does not build; the whole log is $cache/espalier-kubernetes.log" >&2
  exit 1
fi
# Each is there whole or not at all; clusters that run with the others go on.
mkdir -p "$folder"
for program in "${lacking[@]}"; do
  cp "$work/source/_output/local/bin/linux/$("$go/go" env GOARCH)/$program" "$folder/$program.new"
  mv "$folder/$program.new" "$folder/$program"
done
complete "$folder"
say "built Kubernetes $version"
echo "$folder"
