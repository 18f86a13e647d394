#!/usr/bin/env bash
# kind-image.sh NAME: makes a node image for kind in Docker, with nothing from a registry: Debian 12, kind's own entrypoint and units
# (Debian 13's source package of kind), Kubernetes of kubernetes.sh, and one image that stands for all of the control plane's.
# Needs root, Docker, the network; some minutes, and 10 to 25 more where Kubernetes is not built yet.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/debian.sh"
name=${1:?name of the image to make}
# What the kubelet, containerd and kind's entrypoint call, and etcd.
packages=systemd,conntrack,iptables,nftables,iproute2,ethtool,mount,kmod,socat,jq,procps,ca-certificates
packages+=,containerd,runc,containernetworking-plugins,etcd-server,busybox-static
# Those that kind's own image has.
plugins=(host-local loopback portmap ptp)

# In the node: prints its arguments, the extensions of iptables, and the libraries that these load.
WITH_LIBRARIES='
  set -- "$@" /usr/lib/*/xtables/*.so
  printf "%s\n" "$@"
  ldd "$@" | grep -Eo "/[^ :]+[.]so[.0-9]*" | sort -u'

say() { printf '%4d s  %s\n' "$SECONDS" "$*" >&2; }

# kind_files FOLDER: what kind's own node image has beyond a distribution.
kind_files() {
  local work=$1/kind.source options
  mkdir "$work"
  suite_options trixie "$work"
  sed -i 's/^deb /deb-src /' "$work/sources.list"
  (cd "$work" && apt-get "${options[@]}" update && apt-get "${options[@]}" source --tar-only kind) > "$work/log" 2>&1 ||
    { tail -n 5 "$work/log" >&2; echo "the source package of kind could not be had from Debian 13's mirror" >&2; return 1; }
  tar xf "$work"/kind_*.orig.tar.* -C "$1/node" --strip-components 4 --no-overwrite-dir --no-same-owner --wildcards '*/images/base/files/*'
}

# units ROOT: systemd starts what kind's image starts, and nothing else.
units() {
  local root=$1 etc=$1/etc/systemd/system
  rm -f "$root"/lib/systemd/system/multi-user.target.wants/* "$etc"/*.wants/* "$root"/lib/systemd/system/local-fs.target.wants/* \
    "$root"/lib/systemd/system/sockets.target.wants/*{udev,initctl}* "$root"/lib/systemd/system/basic.target.wants/* \
    "$root"/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service
  ln -s /usr/lib/systemd/systemd "$root/sbin/init"
  # They are of the whole machine.
  rm -f "$root"/usr/lib/sysctl.d/*
  echo "ReadKMsg=no" >> "$root/etc/systemd/journald.conf"
  sed -i 's|/usr/local/bin/containerd|/usr/bin/containerd|' "$etc/containerd.service"
  cat > "$etc/images.service" <<'U'
[Unit]
Description=images of the control plane
After=containerd.service
Requires=containerd.service
Before=kubelet.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/ctr -n k8s.io images import /kind/images.tar

[Install]
WantedBy=multi-user.target
U
  # This kubelet takes the last mount of a controller for its root; the entrypoint has made some, lest systemd remove the folders.
  cat > "$etc/kubelet.service.d/12-one-mount.conf" <<'U'
[Service]
ExecStartPre=-/bin/sh -c "umount -q /sys/fs/cgroup/*/kubelet /sys/fs/cgroup/*/kubelet.slice"
U
  chroot "$root" systemctl -q enable containerd kubelet undo-mount-hacks images
  chroot "$root" systemctl -q mask systemd-binfmt
}

# node ROOT KUBERNETES VERSION: a Debian becomes a node of kind.
node() {
  local root=$1 kubernetes=$2 plugin
  chmod 755 "$root"/kind/bin/* "$root/usr/local/bin/entrypoint"
  cp "$kubernetes"/{kubeadm,kubelet,kubectl} "$root/usr/bin/"
  echo "v$3" > "$root/kind/version"
  mkdir -p "$root"/{opt/cni/bin,etc/kubernetes/manifests,var/lib/kubelet}
  for plugin in "${plugins[@]}"; do cp "$root/usr/lib/cni/$plugin" "$root/opt/cni/bin/"; done
  units "$root"
  # kind has the kubelet of this version use cgroupfs. Docker in a container may lack CAP_SYS_RESOURCE.
  sed -i -e 's|^  sandbox_image = .*|  sandbox_image = "k8s.gcr.io/pause:3.2"|' -e 's/SystemdCgroup = true/SystemdCgroup = false/' \
    -e 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' \
    "$root/etc/containerd/config.toml"
  chroot "$root" ctr oci spec | jq '.hooks.createContainer += [{path: "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
    > "$root/etc/containerd/cri-base.json"
}

# control_plane ROOT KUBERNETES FOLDER: programs of the control plane and of kube-proxy with what they load.
control_plane() {
  local root=$1 kubernetes=$2 to=$3 path
  local programs=(/usr/bin/etcd /usr/sbin/conntrack /usr/sbin/xtables-nft-multi)
  mkdir -p "$to"/{usr/local/bin,usr/sbin,bin,etc,tmp,run,www}
  cp "$kubernetes"/kube-{apiserver,controller-manager,scheduler,proxy} "$to/usr/local/bin/"
  while read -r path; do
    mkdir -p "$to$(dirname "$path")"
    cp -L "$root$path" "$to$path"
  done < <(chroot "$root" bash -c "$WITH_LIBRARIES" - "${programs[@]}")
  for path in iptables ip6tables iptables-save ip6tables-save iptables-restore ip6tables-restore; do
    ln -s xtables-nft-multi "$to/usr/sbin/$path"
  done
  cp "$root/bin/busybox" "$to/bin/"
  for path in sh sleep; do ln -s busybox "$to/bin/$path"; done
  echo ok | tee "$to/www/health" > "$to/www/ready"
  # The pause container, and CoreDNS: it answers the probes and resolves nothing.
  cat > "$to/stand-in" <<'S'
#!/bin/sh
if [ "${1:-}" = -conf ]; then
  busybox httpd -p 8080 -h /www
  busybox httpd -p 8181 -h /www
fi
exec sleep 2147483647
S
  chmod 755 "$to/stand-in"
}

[[ $(id -u) == 0 ]] || { echo "a Debian is unpacked here with its owners: run this as root" >&2; exit 1; }
docker info > /dev/null 2>&1 || { echo "Docker does not answer: install and start it (\`docker info\` says what is wrong)" >&2; exit 1; }
"$here/packages.sh" kind-image >&2
kubernetes=$("$here/kubernetes.sh" kubeadm)
version=$("$kubernetes/kubeadm" version -o short)
version=${version#v}
# The names that kubeadm looks for. What has one of them in Docker already is somebody's.
mapfile -t references < <("$kubernetes/kubeadm" config images list --kubernetes-version "v$version" 2> /dev/null)
for reference in "${references[@]}"; do
  if docker image inspect "$reference" > /dev/null 2>&1; then
    echo "Docker has an image $reference, which this would replace: remove it (\`docker rmi\`), or make the node image elsewhere" >&2
    exit 1
  fi
done
work=$(mktemp -d)
made=()
trap 'rm -rf "$work"; ((${#made[@]} == 0)) || docker rmi "${made[@]}" > /dev/null 2>&1' EXIT
say "Debian 12 with what a node needs"
mmdebstrap --quiet --mode=root --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' --include="$packages" bookworm \
  "$work/node" "$(debian_mirror)" > "$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
say "kind's own files"
kind_files "$work"
node "$work/node" "$kubernetes" "$version"
say "images of the control plane"
mkdir "$work/control"
control_plane "$work/node" "$kubernetes" "$work/control"
made=("${references[@]}")
tar -C "$work/control" -c . | docker import --change 'ENTRYPOINT ["/stand-in"]' \
  --change 'ENV PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin' - "${references[0]}" > /dev/null
for reference in "${references[@]:1}"; do docker tag "${references[0]}" "$reference"; done
docker save -o "$work/node/kind/images.tar" "${references[@]}"
docker rmi "${references[@]}" > /dev/null
made=()
say "the image of the node"
tar -C "$work/node" -c . | docker import --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' --change 'ENV container=docker' \
  --change 'STOPSIGNAL SIGRTMIN+3' - "$name" > /dev/null
say "$name: Kubernetes $version"
