#!/usr/bin/env bash
# e2e.sh [kind] [ARGUMENT…]: Espalier on a real Kubernetes cluster, in namespaces of this machine or on kind; arguments choose
# (see `espalier-e2e-k8s run --help`). docs/e2e.md. Needs root. ESPALIER_IMAGE=FILE takes a ready image of scripts/image.sh,
# ESPALIER_PROFILE=dev builds one that is not optimised, ESPALIER_HELM=4 uses Helm 4. ESPALIER_KUBERNETES=FOLDER takes the programs of
# another release (kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, kubelet, kubectl).
set -euo pipefail
cd "$(dirname "$0")/.."
on=namespaces
# enter control|gateway|wire|NODE [COMMAND…]: into the cluster of a run with --keep.
if [[ ${1:-} == enter ]]; then
  place=${2:?control, gateway, wire or a node}
  shift 2
  pid=$(pgrep -n -f '^[^ ]*espalier-e2e-k8s inside') || { echo "no cluster is up: \`make e2e ONLY=--keep\` leaves it up" >&2; exit 1; }
  exec nsenter -t "$pid" -m -p -- env KUBECONFIG=/mnt/pki/admin.kubeconfig "PATH=$PATH:${ESPALIER_KUBERNETES:-$(scripts/kubernetes.sh)}" \
    nsenter --net="/run/netns/$place" "${@:-bash}"
fi
if [[ ${1:-} == kind ]]; then
  on=kind
  shift
fi
out=target/e2e
if [[ $(id -u) != 0 ]]; then
  echo "a cluster needs root: run this as root, as in \`sudo make e2e\`" >&2
  exit 1
fi
mkdir -p "$out"
arguments=(--on "$on" --out "$out")
if [[ $on == kind ]]; then
  for program in docker kind kubectl; do
    command -v "$program" > /dev/null && continue
    echo "make e2e-kind needs $program, which is not here: install Docker, kind and kubectl, or run \`make e2e\`, which needs none" >&2
    exit 1
  done
  scripts/packages.sh e2e-kind
  if [[ -n ${ESPALIER_KIND_IMAGE:-} ]]; then
    docker image inspect "$ESPALIER_KIND_IMAGE" > /dev/null 2>&1 || scripts/kind-image.sh "$ESPALIER_KIND_IMAGE"
    arguments+=(--kind-image "$ESPALIER_KIND_IMAGE")
  fi
else
  scripts/packages.sh e2e
  kubernetes=${ESPALIER_KUBERNETES:-$(scripts/kubernetes.sh)}
  arguments+=(--kubernetes "$kubernetes")
fi
. scripts/chart/tools.sh
helm=$(helm_of "${ESPALIER_HELM:-3}")/helm
# What the node image that is made here has is as old.
release=${ESPALIER_KIND_IMAGE:+Kubernetes v1.20.2}
if [[ $on != kind ]]; then release=$("$kubernetes/kubelet" --version); fi
if [[ ${ESPALIER_HELM:-3} == 4 && $release == *" v1.2"[0-4].* ]]; then
  # Kubernetes before 1.25 does not know the CRDs' rules, and refuses them where they are applied on its side.
  printf '#!/bin/sh\ncase $1 in install | upgrade) set -- "$@" --server-side=false ;; esac\nexec "%s" "$@"\n' "$(realpath "$helm")" > "$out/helm"
  chmod +x "$out/helm"
  helm=$out/helm
fi
arguments+=(--helm "$helm")
image=${ESPALIER_IMAGE:-}
if [[ -z $image ]]; then
  image=$out/espalier.tar
  profile=${ESPALIER_PROFILE:-release}
  scripts/packages.sh image
  scripts/image.sh --profile "$profile" "$image" espalier.dev/espalier:e2e
  # Built for the image just now.
  arguments+=(--cli "$(scripts/static.sh "$profile")/espalier")
else
  cargo build --locked --quiet -p espalier-cli
  arguments+=(--cli target/debug/espalier)
fi
arguments+=(--image "$image")
cargo build --locked --quiet -p espalier-e2e-k8s
if promtool=$(promtool_of); then arguments+=(--promtool "$promtool"); fi
exec target/debug/espalier-e2e-k8s run "${arguments[@]}" "$@"
