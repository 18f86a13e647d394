#!/usr/bin/env bash
# boot.sh KERNEL SCRIPT: runs SCRIPT as what init starts in a guest kernel of fetch.sh, Debian's user-mode Linux: an ordinary
# process with one CPU, in which the kernel's IPsec is there whatever the machine's own kernel has. It sees this machine's
# files. Fails when the guest did not come to its end. GUEST_MEMORY=1G.
set -euo pipefail
kernel=$(realpath "$1") script=$(realpath "$2")
version=$(ls "$kernel/modules")
folder=$(mktemp -d) memory=
trap 'rm -rf "$folder" $memory' EXIT
# The guest's memory is a file: in memory where that can be had, not on a disk. (The guest has a /dev of its own.)
if [[ $(stat -f -c %T /dev/shm 2>/dev/null) == tmpfs ]]; then memory=$(mktemp -d -p /dev/shm); fi
mkdir -p /lib/modules
cat > "$folder/init" <<INIT
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs run /run; mount -t tmpfs modules /lib/modules
mkdir /lib/modules/$version; mount --bind $kernel/modules/$version /lib/modules/$version
while read -r module; do
  modprobe -q \$module
done < $(dirname "$(realpath "$0")")/modules
ip link set lo up
bash $script; echo "guest-exit: \$?"
sync; echo o > /proc/sysrq-trigger; sleep 10
INIT
chmod +x "$folder/init"
TMPDIR=${memory:-$folder} "$kernel/linux.uml" root=/dev/root rootfstype=hostfs rw mem="${GUEST_MEMORY:-768M}" init="$folder/init" \
  quiet con=null con0=null,fd:1 </dev/null >"$folder/log" 2>&1 &
guest=$!
trap 'kill "$guest" 2>/dev/null || true; exit 1' TERM INT
# What the guest says, without what its kernel always says.
tail -n +1 -F --pid="$guest" "$folder/log" 2>/dev/null |
  grep --line-buffered -vE 'SELinux|mmapper_init|ubd device|sysrq: |reboot: |^$' || true &
wait "$guest" || true
wait
grep -q '^guest-exit: 0' "$folder/log"
