use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use tracing::{debug, info};
use tun_rs::{DeviceBuilder, Layer};

use super::PacketIo;
use crate::error::Error;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// Packets that may wait for the TX thread: room for the bursts of many pods.
const QUEUE_LEN: u32 = 2000;

/// A TUN device (`IFF_TUN | IFF_NO_PI`, not persistent): it goes with its last descriptor, and its routes with it.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Makes the device in the calling thread's network namespace and brings it up with `mtu` bytes.
    ///
    /// # Errors
    /// [`Error::TunMissing`], [`Error::TunDenied`], [`Error::TunBusy`], [`Error::Tun`].
    pub fn open(name: &str, mtu: u16) -> Result<Self, Error> {
        let explain = |cause| explain(name, mtu, cause);
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
        let builder = DeviceBuilder::new()
            .layer(Layer::L3)
            .name(name)
            .mtu(mtu)
            .enable(false);
        let device = builder.build_sync().map_err(explain)?;
        device.set_nonblocking(true).map_err(explain)?;
        // Needs CAP_NET_ADMIN of the initial user namespace; a rootless data plane does with the kernel's default.
        if let Err(error) = device.set_tx_queue_len(QUEUE_LEN) {
            debug!(%error, "the TUN's queue keeps its default length");
        }
        tune(name);
        device.enabled(true).map_err(explain)?;
        info!(device = name, mtu, "TUN device is up");
        let descriptor = device.as_fd().try_clone_to_owned().map_err(explain)?;
        Ok(Self::resume(descriptor))
    }

    /// The device that another process made, by its descriptor, with the packets that wait in it.
    #[must_use]
    pub fn resume(descriptor: OwnedFd) -> Self {
        Self(descriptor.into())
    }
}

impl PacketIo for Tun {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.0).write(packet).map(|_| ())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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
