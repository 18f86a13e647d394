//! Which thread sends, and in which order: a flow that is moved between two queues again and again, as the kernel may do it; answers.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use espalier_dataplane_core::{Direction, Encapsulation, Event, PeerId, Spi};
use espalier_esp::wire::ecn;

use crate::control::{Control, Ways};
use crate::drops::Drops;
use crate::engine::{Report, Shared};
use crate::fixture::{self, pod_packet};
use crate::io::{PacketIo, RawSockets, Stop, Udp, stopper};
use crate::lanes::Lanes;
use crate::outgoing::Outgoing;
use crate::path_tests::seal;
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
    for (direction, spi) in [(Direction::In, 0x2100), (Direction::Out, 0x1200)] {
        let mut sa = fixture::sa(2, direction, spi);
        sa.encapsulation = Encapsulation::Udp {
            local_port: own,
            remote_port: remote,
        };
        control.install_sa(sa, Instant::now()).unwrap();
    }
    let active = Some(Spi(0x1200));
    control
        .switch_outbound(&PeerId("node-2".into()), active)
        .unwrap();
    control
}

/// The peer's socket.
fn wire() -> UdpSocket {
    let wire = UdpSocket::bind("127.0.0.1:0").unwrap();
    wire.set_read_timeout(Some(LIMIT)).unwrap();
    wire
}

/// And the pods' side of its device.
fn one_queue(wire: &UdpSocket) -> (Shared, UnixDatagram) {
    let (queue, pod) = UnixDatagram::pair().unwrap();
    queue.set_nonblocking(true).unwrap();
    (shared(wire, Several::one(Arc::new(queue))), pod)
}

fn two_queues(wire: &UdpSocket) -> (Shared, Vec<UnixDatagram>) {
    let (mut queues, mut pods) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (queue, pod) = UnixDatagram::pair().unwrap();
        queue.set_nonblocking(true).unwrap();
        queues.push(Arc::new(queue) as Arc<dyn PacketIo>);
        pods.push(pod);
    }
    (shared(wire, Several::of(queues).unwrap()), pods)
}

fn shared(wire: &UdpSocket, tun: Several<Arc<dyn PacketIo>>) -> Shared {
    let udp = Udp::bind_several(0, tun.count()).unwrap();
    let remote = wire.local_addr().unwrap().port();
    let control = control(udp.first().port(), remote);
    Shared {
        tables: ArcSwap::from_pointee(control.tables()),
        drops: Drops::default(),
        raw: RawSockets::none("not here"),
        outgoing: Outgoing::of(&tun),
        lanes: (tun.count() > 1).then(|| Lanes::patient(tun.count(), LIMIT)),
        tun,
        udp,
        relay: None,
        report: Box::new(|report| {
            let first = matches!(report, Report::Event(Event::FirstPacket { .. }));
            assert!(first, "{report:?}");
        }),
    }
}

/// Of this queue or socket.
type Thread = fn(&Shared, usize, &Stop);

/// Runs `test` beside these threads, which end with it and have dropped nothing.
fn beside(shared: &Shared, threads: &[(usize, Thread)], test: impl FnOnce()) {
    let (stopper, stop) = stopper().unwrap();
    std::thread::scope(|scope| {
        // Dropped by a panic, too: the threads end.
        let _stopper = stopper;
        for (at, thread) in threads {
            let stop = &stop;
            scope.spawn(move || thread(shared, *at, stop));
        }
        test();
    });
    assert_eq!(shared.drops.dump(), []);
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
    let wire = wire();
    let (shared, pods) = two_queues(&wire);
    let tables = fixture::hosts().1.tables();
    beside(
        &shared,
        &[(0, threads::transmit), (1, threads::transmit)],
        || {
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
        },
    );
}

/// What the peer sends to the pod.
fn question() -> Vec<u8> {
    pod_packet("10.244.2.3", "10.244.1.2")
}

fn ask(wire: &UdpSocket, shared: &Shared, tables: &Tables) {
    let to = ("127.0.0.2", shared.udp.first().port());
    let sealed = seal(tables, &question()).unwrap();
    wire.send_to(&sealed, to).unwrap();
}

#[test]
fn an_answer_that_is_there_at_once_needs_no_tx_thread() {
    let wire = wire();
    let (shared, pod) = one_queue(&wire);
    let tables = fixture::hosts().1.tables();
    beside(&shared, &[(0, threads::receive)], || {
        for _ in 0..3 {
            for number in 0..2 {
                pod.send(&numbered(number)).unwrap();
            }
            ask(&wire, &shared, &tables);
            for number in 0..2 {
                assert_eq!(opened(&wire, &tables), numbered(number));
            }
            let mut delivered = [0; 64];
            let len = pod.recv(&mut delivered).unwrap();
            assert_eq!(delivered[..len], question());
        }
    });
}

#[test]
fn packets_keep_their_order_whichever_thread_sends_them() {
    let wire = wire();
    let (shared, pod) = one_queue(&wire);
    let tables = fixture::hosts().1.tables();
    let both: [(usize, Thread); 2] = [(0, threads::transmit), (0, threads::receive)];
    beside(&shared, &both, || {
        let mut next = 0..;
        for _ in 0..1000 {
            let numbers: Vec<u32> = next.by_ref().take(6).collect();
            for number in &numbers {
                ask(&wire, &shared, &tables);
                pod.send(&numbered(*number)).unwrap();
            }
            for number in numbers {
                assert_eq!(opened(&wire, &tables), numbered(number), "packet {number}");
                assert_eq!(pod.recv(&mut [0; 64]).unwrap(), question().len());
            }
        }
    });
}
