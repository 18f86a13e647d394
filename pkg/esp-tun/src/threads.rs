//! The loops of the threads: read until nothing is there, then wait.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use espalier_dataplane_core::Event;
use espalier_ike::Path;
use espalier_ike_io::nat_t;
use tracing::{debug, trace};

use crate::drops::Reason;
use crate::engine::{Report, Shared};
use crate::error::Error;
use crate::inbox::Inbox;
use crate::io::{Interest, MOST, Patience, RawSender, Received, Stop, is_ready};
use crate::rx::{self, Verdict};
use crate::send;

/// Bytes out of the device after which the RX thread receives again: what one system call sends, and a large packet more.
const ANSWERS: usize = 65_536;

/// A queue of the TUN device → UDP port or raw sockets.
pub(crate) fn transmit(shared: &Shared, queue: usize, stop: &Stop) {
    let tun = shared.tun.get(queue);
    let (mut patience, mut raw) = (Patience::default(), RawSender::default());
    while !stop.is_stopped() {
        let mut outgoing = shared.outgoing.get(queue).lock();
        let (bytes, end_of_queue) = outgoing.pass(shared, queue, stop, &mut raw, usize::MAX);
        drop(outgoing);
        if bytes > 0 {
            patience.renew();
        }
        let Some(error) = end_of_queue else { continue };
        if !patience.lasts(&error) && !retry("TUN device", stop, tun.as_fd(), &error) {
            return end(shared, stop, "TUN device", error);
        }
    }
}

/// A socket of the UDP port → TUN device, or the agent for IKE.
pub(crate) fn receive(shared: &Shared, socket: usize, stop: &Stop) {
    let udp = shared.udp.get(socket);
    let mut receiver = udp.receiver();
    let source = Source {
        what: "UDP socket",
        fd: udp.as_fd(),
        queue: socket,
    };
    let inbox = Inbox::new(shared.offload());
    receive_from(shared, &source, inbox, stop, |inbox| {
        let received = receiver.recv(inbox.free())?;
        take(shared, inbox, &received);
        Ok(())
    });
}

/// A raw socket → TUN device.
pub(crate) fn receive_raw(shared: &Shared, socket: usize, stop: &Stop) {
    let Some(raw) = shared.raw.iter().nth(socket) else {
        return;
    };
    let mut receiver = raw.receiver();
    let source = Source {
        what: "raw socket",
        fd: raw.as_fd(),
        queue: socket,
    };
    let inbox = Inbox::of_slots(MOST, shared.offload());
    receive_from(shared, &source, inbox, stop, |inbox| {
        let received = receiver.recv(inbox.free())?;
        let (tables, now) = (shared.tables.load(), Instant::now());
        inbox.take_slots(received, |packet, received| {
            let verdict = rx::judge_raw(&tables, raw.is_v4(), packet, received.ecn, now);
            follow(shared, verdict, packet, None)
        });
        Ok(())
    });
}

/// Where a thread receives.
struct Source<'s> {
    what: &'static str,
    fd: BorrowedFd<'s>,
    /// Of the device, for flows that were seen on none.
    queue: usize,
}

/// Fills the inbox as long as something is there, and writes it out then.
fn receive_from(
    shared: &Shared,
    source: &Source<'_>,
    mut inbox: Inbox,
    stop: &Stop,
    mut fill: impl FnMut(&mut Inbox) -> io::Result<()>,
) {
    let (mut patience, mut raw) = (Patience::default(), RawSender::default());
    shared.lanes.as_ref().inspect(|l| l.wait_for_beginning());
    while !stop.is_stopped() {
        match fill(&mut inbox) {
            Ok(()) => {
                patience.renew();
                if inbox.is_full() {
                    deliver(shared, source.queue, &mut inbox);
                }
            }
            Err(error) => {
                deliver(shared, source.queue, &mut inbox);
                answer(shared, stop, &mut raw);
                if patience.lasts(&error) {
                    continue;
                }
                if !retry(source.what, stop, source.fd, &error) {
                    return end(shared, stop, source.what, error);
                }
            }
        }
    }
    deliver(shared, source.queue, &mut inbox);
}

/// Judges what was received; pod packets stay in the inbox.
fn take(shared: &Shared, inbox: &mut Inbox, received: &Received) {
    let (tables, now) = (shared.tables.load(), Instant::now());
    inbox.take(received, |datagram| {
        let verdict = rx::judge(&tables, datagram, received.ecn, now);
        follow(shared, verdict, datagram, received.path)
    });
}

/// Does what was judged; where the pod packet stands, if there is one.
fn follow(
    shared: &Shared,
    verdict: Verdict,
    datagram: &[u8],
    path: Option<Path>,
) -> Option<Range<usize>> {
    let (place, event) = match verdict {
        Verdict::Keepalive => (None, None),
        Verdict::Ike => {
            let message = datagram.get(nat_t::NON_ESP_MARKER.len()..);
            relay(shared, message.unwrap_or_default(), path);
            (None, None)
        }
        Verdict::Packet(place, event) => (Some(place), event),
        Verdict::Drop(reason, event) => {
            trace!(reason = reason.name(), ?path, "datagram dropped");
            shared.drops.count(reason);
            (None, event)
        }
    };
    event.into_iter().for_each(|event| announce(shared, event));
    place
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

/// What was delivered is often answered before the write returns: by this host's kernel, or by a pod that was waiting on this core. Sent
/// from here, the answer need not wait until the TX thread is awake (50 µs in a virtual machine, a fifth of a ping).
fn answer(shared: &Shared, stop: &Stop, raw: &mut RawSender) {
    // With several queues another thread may have the flow.
    if shared.lanes.is_some() {
        return;
    }
    // Nobody receives while this thread waits for room.
    let udp = shared.udp.first().as_fd();
    let mut sockets = std::iter::once(udp).chain(shared.raw.iter().map(AsFd::as_fd));
    if is_ready(shared.tun.first().as_fd(), Interest::Readable)
        && sockets.all(|socket| is_ready(socket, Interest::Writable))
        && let Some(mut outgoing) = shared.outgoing.first().try_lock()
    {
        // An error is the TX thread's to see.
        let _ = outgoing.pass(shared, 0, stop, raw, ANSWERS);
    }
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
                let sent = send::waiting(udp.as_fd(), stop, || {
                    udp.send(local.ip(), remote, &datagram)
                });
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
