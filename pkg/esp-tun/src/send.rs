//! Batches on their way into the UDP socket or a raw one.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use tracing::debug;

use crate::drops::Reason;
use crate::engine::Shared;
use crate::io::{Interest, RawSender, Stop, Udp};
use crate::tx::{Batch, Outbox, To};

/// After this a path that did not take several datagrams at once is tried again: its device or its MTU may be another.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Peers to which single datagrams are sent, and until when. No more than there are peers.
pub(crate) type Singles = HashMap<SocketAddr, Instant>;

/// Sends batches by one call each, or one datagram by one on paths that cannot.
pub(crate) struct Sender<'s> {
    pub(crate) shared: &'s Shared,
    pub(crate) udp: &'s Udp,
    pub(crate) raw: &'s mut RawSender,
    pub(crate) stop: &'s Stop,
    pub(crate) single: &'s mut Singles,
}

impl Sender<'_> {
    /// Sends what waits.
    pub(crate) fn send_rest(&mut self, outbox: &mut Outbox) {
        if let Some(batch) = outbox.take() {
            self.send(&batch);
        }
    }

    /// Sends a batch, and counts what was not sent.
    pub(crate) fn send(&mut self, batch: &Batch<'_>) {
        match batch.to {
            To::Udp(to) => self.send_udp(to, batch),
            To::Raw(to) => self.send_raw(to, batch),
        }
    }

    fn send_udp(&mut self, to: SocketAddr, batch: &Batch<'_>) {
        if batch.count() > 1 && self.is_single(to) {
            return self.send_singly(to, batch);
        }
        match self.call(to, batch) {
            Ok(()) => {}
            Err(error) if batch.count() > 1 && is_about_several(&error) => {
                debug!(%to, %error, "this path takes one datagram at a time");
                self.single.insert(to, Instant::now() + TRY_AGAIN);
                self.send_singly(to, batch);
            }
            Err(error) => self.lose(batch, &error),
        }
    }

    fn send_singly(&self, to: SocketAddr, batch: &Batch<'_>) {
        for bytes in batch.bytes.chunks(batch.segment.max(1)) {
            let segment = bytes.len();
            let single = Batch {
                segment,
                bytes,
                ..*batch
            };
            if let Err(error) = self.call(to, &single) {
                self.lose(&single, &error);
            }
        }
    }

    /// As many datagrams by one call as the socket takes: it stops before one that is refused, which is lost alone.
    fn send_raw(&mut self, to: IpAddr, batch: &Batch<'_>) {
        let Ok(raw) = self.shared.raw.towards(to) else {
            return self.lose(batch, &ErrorKind::Unsupported.into());
        };
        let (sender, stop, mut rest) = (&mut self.raw, self.stop, *batch);
        while !rest.bytes.is_empty() {
            let mut sent = 0;
            let done = waiting(raw.as_fd(), stop, || {
                sent = sender.send(raw, to, &rest)?;
                Ok(())
            });
            let count = match &done {
                // Told to end, and the socket is still full.
                Err(error) if error.kind() == ErrorKind::WouldBlock => rest.count(),
                _ => sent.max(1),
            };
            let (first, after) = rest.split_at(count);
            if let Err(error) = done {
                lose(self.shared, &first, &error);
            }
            rest = after;
        }
    }

    fn is_single(&mut self, to: SocketAddr) -> bool {
        if self.single.is_empty() {
            return false;
        }
        let until = self.single.get(&to).copied();
        let over = until.is_some_and(|until| until <= Instant::now());
        if over {
            self.single.remove(&to);
        }
        until.is_some() && !over
    }

    fn call(&self, to: SocketAddr, batch: &Batch<'_>) -> io::Result<()> {
        let udp = self.udp;
        waiting(udp.as_fd(), self.stop, || udp.send_all(to, batch))
    }

    fn lose(&self, batch: &Batch<'_>, error: &io::Error) {
        lose(self.shared, batch, error);
    }
}

fn lose(shared: &Shared, batch: &Batch<'_>, error: &io::Error) {
    debug!(from = %batch.from, to = ?batch.to, %error, "datagrams not sent");
    let drops = &shared.drops;
    drops.count_all(Reason::SendFailed, batch.count());
}

/// Calls again while the socket is full: a burst is delayed and not cut, also when the threads are told to end.
pub(crate) fn waiting(
    socket: BorrowedFd<'_>,
    stop: &Stop,
    mut send: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    loop {
        match send() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                stop.wait_or_finish(socket, Interest::Writable)
                    .map_err(|_| error)?;
            }
            sent => return sent,
        }
    }
}

/// `EIO`: the device computes no checksums; `EINVAL` and, since Linux 6.14, `EMSGSIZE`: a datagram is larger than the path's MTU.
/// One datagram alone is sent in both cases.
fn is_about_several(error: &io::Error) -> bool {
    use nix::libc::{EINVAL, EIO, EMSGSIZE};
    matches!(error.raw_os_error(), Some(EIO | EINVAL | EMSGSIZE))
}
