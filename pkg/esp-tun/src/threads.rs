//! The loops of the threads: read until nothing is there, then wait.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use espalier_dataplane_core::Event;
use espalier_esp::offload::{Large, Offload};
use espalier_ike::Path;
use espalier_ike_io::nat_t;
use tracing::{debug, trace};

use crate::drops::Reason;
use crate::engine::{Report, Shared};
use crate::error::Error;
use crate::inbox::Inbox;
use crate::io::{Interest, Patience, Received, Stop};
use crate::rx::{self, Verdict};
use crate::send::{self, Sender};
use crate::tx::{self, Batch, Lost, Outbox};

/// A queue of the TUN device → UDP port.
pub(crate) fn transmit(shared: &Shared, queue: usize, stop: &Stop) {
    let (tun, offload) = (shared.tun.get(queue), shared.offload());
    let mut buffer = vec![0; offload.headroom() + 65_535];
    let mut sender = Sender::new(shared, shared.udp.get(queue), stop);
    let (mut outbox, mut patience) = (Outbox::new(), Patience::default());
    let lanes = shared.lanes.as_ref();
    while !stop.is_stopped() {
        lanes.inspect(|lanes| lanes.begin(queue));
        match tun.recv(&mut buffer) {
            Ok(len) => {
                let bytes = buffer.get(..len).unwrap_or_default();
                forward(shared, (queue, offload, bytes), &mut outbox, &mut sender);
                patience.renew();
            }
            Err(error) => {
                sender.send_rest(&mut outbox);
                lanes.inspect(|lanes| lanes.rest(queue));
                if patience.lasts(&error) {
                    continue;
                }
                if !retry("TUN device", stop, tun.as_fd(), &error) {
                    return end(shared, stop, "TUN device", error);
                }
            }
        }
    }
    sender.send_rest(&mut outbox);
    lanes.inspect(|lanes| lanes.rest(queue));
}

fn forward(
    shared: &Shared,
    (queue, offload, bytes): (usize, Offload, &[u8]),
    outbox: &mut Outbox,
    sender: &mut Sender<'_>,
) {
    let sealed = match Large::parse(offload, bytes) {
        Ok(large) => {
            if let Some(lanes) = &shared.lanes {
                lanes.settle(large.bytes(), queue, |before| {
                    sender.send_rest(outbox);
                    lanes.wait_for(before, shared.tun.get(before).as_fd());
                });
            }
            let tables = shared.tables.load();
            let send = |batch: Batch<'_>| sender.send(&batch);
            tx::seal(&tables, &large, outbox, Instant::now(), send)
        }
        Err(error) => {
            trace!(%error, "a packet that the device should not have given");
            let (reason, packets) = (Reason::Offload, 1);
            Err(Lost { reason, packets })
        }
    };
    if let Err(Lost { reason, packets }) = sealed {
        trace!(reason = reason.name(), packets, "pod packets dropped");
        shared.drops.count_all(reason, packets);
    }
}

/// A socket of the UDP port → TUN device, or the agent for IKE.
pub(crate) fn receive(shared: &Shared, socket: usize, stop: &Stop) {
    let mut inbox = Inbox::new(shared.offload());
    let udp = shared.udp.get(socket);
    let mut receiver = udp.receiver();
    let mut patience = Patience::default();
    shared.lanes.as_ref().inspect(|l| l.wait_for_beginning());
    while !stop.is_stopped() {
        match receiver.recv(inbox.free()) {
            Ok(received) => {
                take(shared, &mut inbox, &received);
                patience.renew();
                if inbox.is_full() {
                    deliver(shared, socket, &mut inbox);
                }
            }
            Err(error) => {
                deliver(shared, socket, &mut inbox);
                if patience.lasts(&error) {
                    continue;
                }
                if !retry("UDP socket", stop, udp.as_fd(), &error) {
                    return end(shared, stop, "UDP socket", error);
                }
            }
        }
    }
    deliver(shared, socket, &mut inbox);
}

/// Judges what was received; pod packets stay in the inbox.
fn take(shared: &Shared, inbox: &mut Inbox, received: &Received) {
    let (tables, now) = (shared.tables.load(), Instant::now());
    inbox.take(received, |datagram| {
        match rx::judge(&tables, datagram, received.ecn, now) {
            Verdict::Keepalive => None,
            Verdict::Ike => {
                let message = datagram.get(nat_t::NON_ESP_MARKER.len()..);
                relay(shared, message.unwrap_or_default(), received.path);
                None
            }
            Verdict::Packet(place, event) => {
                event.into_iter().for_each(|event| announce(shared, event));
                Some(place)
            }
            Verdict::Drop(reason, event) => {
                trace!(reason = reason.name(), path = ?received.path, "datagram dropped");
                shared.drops.count(reason);
                event.into_iter().for_each(|event| announce(shared, event));
                None
            }
        }
    });
}

fn deliver(shared: &Shared, socket: usize, inbox: &mut Inbox) {
    let headroom = shared.offload().headroom();
    inbox.write_out(|parts, written| {
        let seen = shared.lanes.as_ref().and_then(|lanes| {
            let first = parts.first()?.get(headroom..)?;
            lanes.seen(first)
        });
        let tun = shared.tun.get(seen.unwrap_or(socket));
        if let Err(error) = tun.send_parts(parts) {
            debug!(%error, ?written, "pod packets not written");
            shared.drops.count_all(Reason::TunFailed, written.packets);
        }
    });
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
                let datagram = nat_t::mark(&message);
                let udp = shared.udp.first();
                let sent = send::waiting(udp, stop, || udp.send(local.ip(), remote, &datagram));
                if let Err(error) = sent {
                    debug!(%remote, %error, "IKE message not sent");
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
