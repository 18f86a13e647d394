//! The TX threads of two queues between which a flow is moved again and again, as the kernel may do it.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use espalier_dataplane_core::{Direction, Encapsulation, PeerId, Spi};
use espalier_esp::wire::ecn;

use crate::control::{Control, Ways};
use crate::drops::Drops;
use crate::engine::Shared;
use crate::fixture::{self, pod_packet};
use crate::io::{PacketIo, RawSockets, Stop, Udp, stopper};
use crate::lanes::Lanes;
use crate::rx::{self, Verdict};
use crate::several::Several;
use crate::tables::Tables;
use crate::threads;

/// Only to fail instead of hanging.
const LIMIT: Duration = Duration::from_secs(20);

/// Host 1's peer 2 is whoever has this port on loopback.
fn control(own: u16, remote: u16) -> Control {
    let mut control = Control::new(Ways::all(own));
    let mut peer = fixture::peer(1, 2);
    peer.local = [127, 0, 0, 2].into();
    peer.remote = [127, 0, 0, 1].into();
    control.put_peer(peer).unwrap();
    let mut sa = fixture::sa(2, Direction::Out, 0x1200);
    sa.encapsulation = Encapsulation::Udp {
        local_port: own,
        remote_port: remote,
    };
    control.install_sa(sa, Instant::now()).unwrap();
    let active = Some(Spi(0x1200));
    control
        .switch_outbound(&PeerId("node-2".into()), active)
        .unwrap();
    control
}

fn shared(wire: &UdpSocket) -> (Shared, Vec<UnixDatagram>) {
    let udp = Udp::bind_several(0, 2).unwrap();
    let remote = wire.local_addr().unwrap().port();
    let control = control(udp.first().port(), remote);
    let (mut queues, mut pods) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (queue, pod) = UnixDatagram::pair().unwrap();
        queue.set_nonblocking(true).unwrap();
        queues.push(Arc::new(queue) as Arc<dyn PacketIo>);
        pods.push(pod);
    }
    let shared = Shared {
        tables: ArcSwap::from_pointee(control.tables()),
        drops: Drops::default(),
        raw: RawSockets::none("not here"),
        tun: Several::of(queues).unwrap(),
        udp,
        lanes: Some(Lanes::patient(2, LIMIT)),
        relay: None,
        report: Box::new(|report| panic!("{report:?}")),
    };
    (shared, pods)
}

/// A packet of one flow with a number for its payload.
fn numbered(number: u32) -> Vec<u8> {
    let mut packet = pod_packet("10.244.1.2", "10.244.2.3");
    let payload = packet.len() - 4;
    packet[payload..].copy_from_slice(&number.to_be_bytes());
    packet
}

/// The pod packet that is next on the wire.
fn opened(wire: &UdpSocket, tables: &Tables) -> Vec<u8> {
    let mut buffer = [0; 256];
    let length = wire.recv(&mut buffer).unwrap();
    let datagram = &mut buffer[..length];
    match rx::judge(tables, datagram, ecn::NOT_ECT, Instant::now()) {
        Verdict::Packet(place, _) => datagram[place].to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flow_that_changes_its_queue_keeps_its_order() {
    let wire = UdpSocket::bind("127.0.0.1:0").unwrap();
    wire.set_read_timeout(Some(LIMIT)).unwrap();
    let (shared, pods) = shared(&wire);
    let (_, two) = fixture::hosts();
    let tables = two.tables();
    let (stopper, stop) = stopper().unwrap();
    std::thread::scope(|scope| {
        // Dropped by a panic, too: the threads end.
        let _stopper = stopper;
        for queue in 0..2 {
            let (shared, stop): (&Shared, &Stop) = (&shared, &stop);
            scope.spawn(move || threads::transmit(shared, queue, stop));
        }
        // The flow is known before it moves.
        pods[0].send(&numbered(0)).unwrap();
        assert_eq!(opened(&wire, &tables), numbered(0));
        let mut next = 1..;
        for round in 0..1000 {
            // Some packets on one queue, then some on the other, which may begin before the first ones are sealed. No more than a
            // socket pair takes.
            let (first, then) = (round % 2, 1 - round % 2);
            let numbers: Vec<u32> = next.by_ref().take(12).collect();
            for (at, number) in numbers.iter().enumerate() {
                let queue = if at < 6 { first } else { then };
                pods[queue].send(&numbered(*number)).unwrap();
            }
            for number in numbers {
                assert_eq!(opened(&wire, &tables), numbered(number), "packet {number}");
            }
        }
    });
    assert_eq!(shared.drops.dump(), []);
}
