//! The loops of the threads: read until nothing is there, then wait.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use espalier_dataplane_core::Event;
use espalier_ike::Path;
use espalier_ike_io::nat_t;
use tracing::{debug, trace};

use crate::drops::Reason;
use crate::engine::{Report, Shared};
use crate::error::Error;
use crate::io::{Interest, Stop};
use crate::rx::{self, Verdict};
use crate::tx;

/// TUN device → UDP port.
pub(crate) fn transmit(shared: &Shared, stop: &Stop) {
    let mut buffer = vec![0; tx::BUFFER_LEN];
    while !stop.is_stopped() {
        match shared.tun.recv(&mut buffer[tx::PACKET_AT..][..65_535]) {
            Ok(len) => forward(shared, stop, &mut buffer, len),
            Err(error) if retry("TUN device", stop, shared.tun.as_fd(), &error) => {}
            Err(error) => return end(shared, stop, "TUN device", error),
        }
    }
}

fn forward(shared: &Shared, stop: &Stop, buffer: &mut [u8], len: usize) {
    let sealed = tx::seal(&shared.tables.load(), buffer, len, Instant::now())
        .and_then(|sealed| send(shared, stop, sealed.from, sealed.to, sealed.datagram));
    if let Err(reason) = sealed {
        trace!(reason = reason.name(), len, "pod packet dropped");
        shared.drops.count(reason);
    }
}

/// Sends, waiting while the socket is full: a burst is delayed and not cut, also when the threads are told to end.
fn send(
    shared: &Shared,
    stop: &Stop,
    from: IpAddr,
    to: SocketAddr,
    datagram: &[u8],
) -> Result<(), Reason> {
    loop {
        match shared.udp.send(from, to, datagram) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                stop.wait_or_finish(shared.udp.as_fd(), Interest::Writable)
                    .map_err(|_| Reason::SendFailed)?;
            }
            Err(error) => {
                debug!(%from, %to, %error, "datagram not sent");
                return Err(Reason::SendFailed);
            }
        }
    }
}

/// UDP port → TUN device, or the agent for IKE.
pub(crate) fn receive(shared: &Shared, stop: &Stop) {
    let mut buffer = vec![0; 65_535];
    let mut receiver = shared.udp.receiver();
    while !stop.is_stopped() {
        match receiver.recv(&mut buffer) {
            Ok((len, path)) => deliver(shared, &mut buffer[..len], path),
            Err(error) if retry("UDP socket", stop, shared.udp.as_fd(), &error) => {}
            Err(error) => return end(shared, stop, "UDP socket", error),
        }
    }
}

fn deliver(shared: &Shared, datagram: &mut [u8], path: Option<Path>) {
    let tables = shared.tables.load();
    let event = match rx::judge(&tables, datagram, Instant::now()) {
        Verdict::Keepalive => None,
        Verdict::Ike(message) => {
            relay(shared, message, path);
            None
        }
        Verdict::Packet(packet, event) => {
            if let Err(error) = shared.tun.send(packet) {
                debug!(%error, len = packet.len(), "pod packet not written");
                shared.drops.count(Reason::TunFailed);
            }
            event
        }
        Verdict::Drop(reason, event) => {
            trace!(reason = reason.name(), ?path, "datagram dropped");
            shared.drops.count(reason);
            event
        }
    };
    event.into_iter().for_each(|event| announce(shared, event));
}

fn announce(shared: &Shared, event: Event) {
    debug!(?event, "first authenticated packet");
    (shared.report)(Report::Event(event));
}

fn relay(shared: &Shared, message: &[u8], path: Option<Path>) {
    let relayed = shared
        .relay
        .as_ref()
        .zip(path)
        .is_some_and(|(relay, path)| relay.forward(&path, message));
    if !relayed {
        shared.drops.count(Reason::IkeRelay);
    }
}

/// Agent → UDP port.
pub(crate) fn relay_out(shared: &Shared, stop: &Stop) {
    let Some(relay) = &shared.relay else { return };
    if let Err(error) = relay.set_nonblocking() {
        return end(shared, stop, "IKE relay socket", error);
    }
    while !stop.is_stopped() {
        match relay.recv() {
            Ok((Path { local, remote }, message)) => {
                if send(shared, stop, local.ip(), remote, &nat_t::mark(&message)).is_err() {
                    shared.drops.count(Reason::IkeRelay);
                }
            }
            Err(error) if retry("IKE relay socket", stop, relay.as_fd(), &error) => {}
            Err(error) => return end(shared, stop, "IKE relay socket", error),
        }
    }
}

/// Whether to read again after an error, once there is something. Errors that the network causes come and go; those of the
/// descriptor itself stay.
fn retry(what: &'static str, stop: &Stop, fd: BorrowedFd<'_>, error: &io::Error) -> bool {
    use nix::libc::{EBADF, EBADFD, EFAULT, EINVAL, EIO, ENODEV, ENOTSOCK, ENXIO};
    match error.raw_os_error() {
        Some(EBADF | EBADFD | EFAULT | EINVAL | EIO | ENODEV | ENOTSOCK | ENXIO) => false,
        _ if error.kind() == ErrorKind::WouldBlock => stop.wait(fd, Interest::Readable).is_ok(),
        _ => {
            debug!(what, %error, "reading failed, going on");
            true
        }
    }
}

/// The end of a thread: asked for, or to be reported.
fn end(shared: &Shared, stop: &Stop, what: &'static str, cause: io::Error) {
    if !stop.is_stopped() {
        (shared.report)(Report::Failed(Error::Broken { what, cause }));
    }
}
