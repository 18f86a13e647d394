#!/usr/bin/env bash
# boot.sh KERNEL SCRIPT [FILE…]: runs SCRIPT as what init starts in a guest kernel of fetch.sh, whose IPsec is there whatever
# the machine's own kernel has. Fails when the guest did not come to its end. GUEST_MEMORY=1G.
#
# User-mode Linux is an ordinary process with one CPU and sees this machine's files. A guest of qemu has two CPUs, emulated, and
# sees the FILEs and SCRIPT's folder at their own paths; what is in that folder in the end comes back.
set -euo pipefail
kernel=$(realpath "$1") script=$(realpath "$2")
shift 2
here=$(dirname "$(realpath "$0")")
version=$(ls "$kernel/modules")
folder=$(mktemp -d) memory=
trap 'rm -rf "$folder" $memory' EXIT
# The memory of user-mode Linux is a file: in memory where that can be had, not on a disk. (The guest has a /dev of its own.)
if [[ $(stat -f -c %T /dev/shm 2>/dev/null) == tmpfs ]]; then memory=$(mktemp -d -p /dev/shm); fi

# init MODULES…: what both kinds of guests do.
init() {
  cat <<INIT
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs run /run
$1
for module in $(tr '\n' ' ' < "$here/modules"); do modprobe -q \$module; done
ip link set lo up
bash $script; echo "guest-exit: \$?"
$2
sync; echo o > /proc/sysrq-trigger; sleep 10
INIT
}

uml() {
  mkdir -p /lib/modules
  init "mount -t tmpfs modules /lib/modules
mkdir /lib/modules/$version; mount --bind $kernel/modules/$version /lib/modules/$version" "" > "$folder/init"
  chmod +x "$folder/init"
  TMPDIR=${memory:-$folder} exec "$kernel/linux.uml" root=/dev/root rootfstype=hostfs rw mem="${GUEST_MEMORY:-768M}" \
    init="$folder/init" quiet con=null con0=null,fd:1
}

# The files are put behind the suite's root file system, which a second archive may add to. The disk is for what comes back.
qemu() {
  local file root=$folder/root
  mkdir -p "$root/tmp"
  for file in "$@" "$(dirname "$script")"; do
    mkdir -p "$root/$(dirname "$file")"
    cp -rL "$file" "$root/$file"
    [[ ! -x $file || -d $file ]] || strip -g "$root/$file" 2>/dev/null || true
  done
  init "mount -t devtmpfs dev /dev; modprobe -q virtio_pci; modprobe -q virtio_blk" \
    "tar -C / -cf /dev/vda $(dirname "${script#/}")" > "$root/init"
  chmod +x "$root/init"
  (cd "$root" && find . -print0 | cpio --null --quiet -o -H newc) | gzip -1 | cat "$kernel/root.cpio.gz" - > "$folder/initrd"
  truncate -s 256M "$folder/disk"
  exec qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "${GUEST_MEMORY:-2G}" -kernel "$kernel/vmlinuz" \
    -initrd "$folder/initrd" -append "console=ttyS0 quiet panic=-1 rdinit=/init" -nographic -vga none -nic none -no-reboot \
    -drive "file=$folder/disk,format=raw,if=virtio"
}

if [[ -e $kernel/vmlinuz ]]; then kind=qemu; else kind=uml; fi
"$kind" "$@" </dev/null >"$folder/log" 2>&1 &
guest=$!
trap 'kill "$guest" 2>/dev/null || true; exit 1' TERM INT
# What the guest says, without what its kernel always says.
tail -n +1 -F --pid="$guest" "$folder/log" 2>/dev/null |
  grep --line-buffered -vE 'SELinux|mmapper_init|ubd device|sysrq: |reboot: |SeaBIOS|Booting from ROM|^\s*$' || true &
wait "$guest" || true
wait
if [[ $kind == qemu ]]; then tar -C / -xf "$folder/disk" || true; fi
tr -d '\r' < "$folder/log" | grep -q '^guest-exit: 0'
