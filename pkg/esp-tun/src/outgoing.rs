//! What takes packets out of a queue of the TUN device, and sends them. Whoever holds it has the queue for itself, so packets keep
//! their order whichever thread does the work.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use espalier_esp::offload::Large;
use parking_lot::Mutex;
use tracing::trace;

use crate::drops::Reason;
use crate::engine::Shared;
use crate::io::{PacketIo, RawSender, Stop};
use crate::send::{Sender, Singles};
use crate::several::Several;
use crate::tx::{self, Batch, Lost, Outbox};

/// Nothing is left in it between two holders.
pub(crate) struct Outgoing {
    buffer: Box<[u8]>,
    outbox: Outbox,
    single: Singles,
}

impl Outgoing {
    /// One for each queue of the device.
    pub(crate) fn of(tun: &Several<Arc<dyn PacketIo>>) -> Several<Mutex<Self>> {
        let headroom = tun.first().offload().headroom();
        tun.make_each(|_| {
            Mutex::new(Self {
                buffer: vec![0; headroom + 65_535].into(),
                outbox: Outbox::new(),
                single: Singles::new(),
            })
        })
    }

    /// Passes on what is in the queue until `most` bytes were read: how many, and why there are no more, unless that is the limit or the end
    /// of the threads. `raw` is the thread's own.
    pub(crate) fn pass(
        &mut self,
        shared: &Shared,
        queue: usize,
        stop: &Stop,
        raw: &mut RawSender,
        most: usize,
    ) -> (usize, Option<io::Error>) {
        let tun = shared.tun.get(queue);
        let lanes = shared.lanes.as_ref();
        let mut sender = Sender {
            shared,
            udp: shared.udp.get(queue),
            raw,
            stop,
            single: &mut self.single,
        };
        let (mut bytes, mut error) = (0, None);
        while bytes < most && error.is_none() && !stop.is_stopped() {
            lanes.inspect(|lanes| lanes.begin(queue));
            match tun.recv(&mut self.buffer) {
                Ok(len) => {
                    let packet = self.buffer.get(..len).unwrap_or_default();
                    forward(shared, queue, packet, &mut self.outbox, &mut sender);
                    bytes += len;
                }
                Err(found) => error = Some(found),
            }
        }
        sender.send_rest(&mut self.outbox);
        lanes.inspect(|lanes| lanes.rest(queue));
        (bytes, error)
    }
}

fn forward(
    shared: &Shared,
    queue: usize,
    bytes: &[u8],
    outbox: &mut Outbox,
    sender: &mut Sender<'_>,
) {
    let sealed = match Large::parse(shared.offload(), bytes) {
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
