#!/usr/bin/env bash
# live-metrics.sh AGENT: starts this espalier-agent on the loopback device of a network namespace of its own, with one node and a
# policy, and prints its /metrics. Needs root, or user namespaces that anyone may make.
set -euo pipefail
agent=$(realpath "${1:?the agent}")
if [[ ${2:-} != inside ]]; then
  user=()
  [[ $(id -u) == 0 ]] || user=(--user --map-root-user)
  exec unshare "${user[@]}" --net --mount -- "$0" "$agent" inside
fi
work=$(mktemp -d) pid=
trap '[[ -z $pid ]] || kill "$pid" 2>/dev/null || true; rm -rf "$work"' EXIT
ip link set lo up
mkdir "$work"/{manifests,run,state}
cat > "$work/manifests/mesh.yaml" <<'M'
apiVersion: v1
kind: Node
metadata: {name: a}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 127.0.0.1}]}
---
apiVersion: espalier.dev/v1alpha1
kind: EncryptionPolicy
metadata: {name: default}
spec: {mode: Required, clusterCIDRs: [10.244.0.0/16]}
M
"$agent" --node a --manifests "$work/manifests" --run-dir "$work/run" --state-dir "$work/state" \
  --http 127.0.0.1:9808 > "$work/log" 2>&1 &
pid=$!
for _ in {1..100}; do
  if exec 3<> /dev/tcp/127.0.0.1/9808; then
    printf 'GET /metrics HTTP/1.0\r\nHost: a\r\n\r\n' >&3
    page=$(tr -d '\r' <&3)
    exec 3>&-
    # Until the policy was read.
    if grep -q '^espalier_policy_mode{mode="Required"} 1' <<< "$page"; then
      sed '1,/^$/d' <<< "$page"
      exit
    fi
  fi 2> /dev/null
  sleep 0.1
done
tail -n 20 "$work/log" >&2
echo "the agent did not serve /metrics with the policy's mode within 10 s" >&2
exit 1
