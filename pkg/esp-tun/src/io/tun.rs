use std::fs::{self, File};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use espalier_dataplane_core::FrozenTun;
use nix::net::if_::if_nametoindex;
use tracing::{debug, info, warn};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::{Offload, PacketIo};
use crate::error::Error;
use crate::several::Several;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// Packets that may wait for the TX thread: room for the bursts of many pods.
const QUEUE_LEN: u32 = 2000;

/// A TUN device (`IFF_TUN | IFF_NO_PI | IFF_VNET_HDR`, not persistent): it goes with its last descriptor, and its routes with it. Its
/// packets are behind virtio headers where the kernel has TCP segmentation for TUN devices, which all have had since Linux 2.6.27.
#[derive(Debug)]
pub struct Tun {
    file: File,
    offload: Offload,
}

impl Tun {
    /// Makes the device in the calling thread's network namespace and brings it up with `mtu` bytes.
    ///
    /// # Errors
    /// [`Error::TunMissing`], [`Error::TunDenied`], [`Error::TunBusy`], [`Error::Tun`].
    pub fn open(name: &str, mtu: u16) -> Result<Self, Error> {
        Ok(Self::open_queues(name, mtu, 1)?.into_first())
    }

    /// [`Tun::open`], with so many queues (`IFF_MULTI_QUEUE`); with fewer where the kernel refuses, and with one where the device is
    /// there already, which keeps the mode that it was made with.
    ///
    /// # Errors
    /// Those of [`Tun::open`].
    pub fn open_queues(name: &str, mtu: u16, queues: usize) -> Result<Several<Self>, Error> {
        // One with several queues would let another process have one, too, and give it a part of the packets.
        let there = if_nametoindex(name).is_ok();
        let explain = |cause: io::Error| match cause.raw_os_error() {
            Some(nix::libc::EINVAL) if there => Error::TunBusy(name.to_owned()),
            _ => explain(name, mtu, cause),
        };
        if !Path::new(CLONE_DEVICE).exists() {
            return Err(Error::TunMissing);
        }
        if Path::new("/sys/class/net").join(name).exists()
            && !Path::new("/sys/class/net")
                .join(name)
                .join("tun_flags")
                .exists()
        {
            return Err(Error::TunBusy(name.to_owned()));
        }
        if there && queues > 1 {
            warn!(device = name, "the TUN device is there already: one queue");
        }
        let queues = if there { 1 } else { queues };
        let (device, offload) = build_queues(name, mtu, queues).map_err(explain)?;
        let more = further(&device, queues - 1);
        // Needs CAP_NET_ADMIN of the initial user namespace; a rootless data plane does with the kernel's default.
        if let Err(error) = device.set_tx_queue_len(QUEUE_LEN) {
            debug!(%error, "the TUN's queue keeps its default length");
        }
        tune(name);
        device.enabled(true).map_err(explain)?;
        let queues = 1 + more.len();
        info!(device = name, mtu, ?offload, queues, "TUN device is up");
        let open = |device: &SyncDevice| {
            device.set_nonblocking(true)?;
            Ok(Self::of(device.as_fd().try_clone_to_owned()?, offload))
        };
        let more: io::Result<_> = more.iter().map(open).collect();
        let first = open(&device).map_err(explain)?;
        Ok(Several::first_of(first, more.map_err(explain)?))
    }

    /// The device that another process made, by its descriptor, with the packets that wait in it.
    #[must_use]
    pub fn resume(descriptor: OwnedFd, told: FrozenTun) -> Self {
        let offload = match told {
            FrozenTun::Plain => Offload::None,
            FrozenTun::Tcp => Offload::Tcp,
            FrozenTun::TcpUdp => Offload::TcpUdp,
        };
        Self::of(descriptor, offload)
    }

    fn of(descriptor: OwnedFd, offload: Offload) -> Self {
        Self {
            file: descriptor.into(),
            offload,
        }
    }
}

impl PacketIo for Tun {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(|_| ())
    }

    fn send_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(parts).map(|_| ())
    }

    fn offload(&self) -> Offload {
        self.offload
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The device with its first queue, ready for further ones if those are wanted and the kernel has them.
fn build_queues(name: &str, mtu: u16, queues: usize) -> io::Result<(SyncDevice, Offload)> {
    if queues <= 1 {
        return build(name, mtu, false);
    }
    match build(name, mtu, true) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {
            warn!(%error, device = name, "the kernel has TUN devices of one queue only");
            build(name, mtu, false)
        }
        built => built,
    }
}

/// As many further queues of the device as the kernel gives, up to `count`.
fn further(device: &SyncDevice, count: usize) -> Vec<SyncDevice> {
    let mut queues = Vec::new();
    while queues.len() < count {
        match device.try_clone() {
            Ok(queue) => queues.push(queue),
            Err(error) => {
                let got = 1 + queues.len();
                warn!(%error, got, "the TUN device has fewer queues than wanted");
                break;
            }
        }
    }
    queues
}

/// With offloads if the kernel has them for TUN devices.
fn build(name: &str, mtu: u16, several: bool) -> io::Result<(SyncDevice, Offload)> {
    let builder = |offload| {
        let builder = DeviceBuilder::new().layer(Layer::L3).name(name).mtu(mtu);
        builder.enable(false).with(|linux| {
            linux.offload(offload).multi_queue(several);
        })
    };
    match builder(true).build_sync() {
        Ok(device) if device.udp_gso() => Ok((device, Offload::TcpUdp)),
        Ok(device) => Ok((device, Offload::Tcp)),
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {
            debug!(%error, "a TUN device with offloads cannot be made");
            Ok((builder(false).build_sync()?, Offload::None))
        }
        Err(error) => Err(error),
    }
}

/// Best effort: `/proc/sys` may be read-only, and a kernel without IPv6 has no such files.
fn tune(name: &str) {
    let settings = [
        // While a pair changes between clear and encrypted its directions may use different devices for a moment: a strict
        // reverse-path check would drop these packets. What a peer may send is checked by S5 already.
        (format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "2"),
        // No link-local address: nobody is there to be solicited.
        (format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1"),
    ];
    for (path, value) in settings {
        if let Err(error) = fs::write(&path, value) {
            debug!(path, value, %error, "not set");
        }
    }
}

fn explain(name: &str, mtu: u16, cause: io::Error) -> Error {
    use nix::errno::Errno;
    match cause.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => Error::TunMissing,
        Some(Errno::EPERM | Errno::EACCES) => Error::TunDenied(name.to_owned()),
        Some(Errno::EBUSY | Errno::EEXIST) => Error::TunBusy(name.to_owned()),
        _ => Error::Tun {
            device: name.to_owned(),
            mtu,
            cause,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_named_with_a_remedy() {
        let said = |errno: i32| {
            explain("espalier.tun", 1408, io::Error::from_raw_os_error(errno)).to_string()
        };
        assert!(said(nix::libc::ENODEV).contains("modprobe tun"));
        assert!(said(nix::libc::EPERM).contains("CAP_NET_ADMIN"));
        assert!(said(nix::libc::EBUSY).contains("--tun"));
        let other = said(nix::libc::EINVAL);
        assert!(
            other.contains("espalier.tun") && other.contains("1408"),
            "{other}"
        );
    }
}
