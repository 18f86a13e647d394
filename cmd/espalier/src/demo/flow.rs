//! Sequenced UDP flows between pods: every packet has a number, so every lost one is known.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};

use super::packet::{Marker, Packet};
use super::pod::Pod;

/// The port on which pods receive.
pub(super) const PORT: u16 = 7000;
/// How long a packet may be under way before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a sender looks at its schedule, and receivers at whether to end.
const TICK: Duration = Duration::from_millis(1);
const LOOK: Duration = Duration::from_millis(50);

/// What is to be sent.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    /// Names of the nodes.
    pub(super) from_node: String,
    pub(super) to_node: String,
    pub(super) to: Ipv4Addr,
    /// Packets per second.
    pub(super) rate: u32,
}

/// One direction between two pods.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) spec: Spec,
    sent: AtomicU64,
    arrived: Mutex<Arrived>,
}

#[derive(Debug, Default)]
struct Arrived {
    /// One bit per number.
    numbers: Vec<u64>,
    count: u64,
}

/// How far each flow was at a moment, in order of [`Traffic::flows`].
#[derive(Clone, Debug)]
pub(super) struct Mark(Vec<u64>);

/// What was lost between two marks.
#[derive(Clone, Debug, Default)]
pub(super) struct Loss {
    pub(super) sent: u64,
    pub(super) lost: u64,
    /// One line per flow that lost something.
    pub(super) details: Vec<String>,
}

/// All flows, running until dropped.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) flows: Arc<Vec<Flow>>,
    begin: Instant,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Answers pings and takes note of arriving flow packets, in one pod, until dropped.
#[derive(Debug)]
pub(super) struct Responder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    /// Starts every flow: `plan` holds each with the pod that sends it.
    pub(super) fn start(plan: Vec<(&Pod, Spec)>, pods: &[&Pod], marker: Marker) -> Result<Self> {
        let mut by_pod: BTreeMap<&str, (&Pod, Vec<usize>)> = BTreeMap::new();
        let mut flows = Vec::new();
        for (pod, spec) in plan {
            let own = by_pod.entry(&pod.name).or_insert((pod, Vec::new()));
            own.1.push(flows.len());
            flows.push(Flow::new(spec));
        }
        let mut traffic = Self {
            flows: Arc::new(flows),
            begin: Instant::now(),
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        for pod in pods {
            let flows = Arc::clone(&traffic.flows);
            traffic.receive(pod, marker, flows)?;
        }
        traffic.begin = Instant::now();
        for (pod, own) in by_pod.into_values() {
            traffic.send(pod, marker, own)?;
        }
        Ok(traffic)
    }

    /// Where all flows are now.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.flows.iter().map(Flow::sent).collect())
    }

    /// What was sent from `from` until now and did not arrive, of the flows that `counts` picks. Waits for stragglers.
    pub(super) fn lost_since(&self, from: &Mark, counts: impl Fn(&Spec) -> bool) -> Loss {
        let to = self.mark();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let loss = self.loss(from, &to, &counts);
            if loss.lost == 0 || Instant::now() > deadline {
                return loss;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The same without waiting: also what is still under way.
    pub(super) fn not_arrived_since(&self, from: &Mark, counts: impl Fn(&Spec) -> bool) -> u64 {
        self.loss(from, &self.mark(), &counts).lost
    }

    /// Packets of all flows so far.
    pub(super) fn sent(&self) -> u64 {
        self.flows.iter().map(Flow::sent).sum()
    }

    /// Names the flows of which nothing arrived after `from`.
    pub(super) fn silent_since(&self, from: &Mark) -> Vec<String> {
        let flows = self.flows.iter().zip(&from.0);
        let silent = flows.filter(|(flow, from)| flow.arrived().none_from(**from));
        silent.map(|(flow, _)| flow.spec.name()).collect()
    }

    /// Packets per second of each flow, averaged since the start.
    pub(super) fn rates(&self) -> impl Iterator<Item = (&Spec, f64)> {
        let seconds = self.begin.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)]
        let rate = move |flow: &Flow| flow.sent() as f64 / seconds;
        self.flows.iter().map(move |flow| (&flow.spec, rate(flow)))
    }

    fn loss(&self, from: &Mark, to: &Mark, counts: &impl Fn(&Spec) -> bool) -> Loss {
        let mut total = Loss::default();
        let ranges = from.0.iter().zip(&to.0);
        for (flow, (from, to)) in self.flows.iter().zip(ranges) {
            if !counts(&flow.spec) {
                continue;
            }
            let missing = flow.arrived().missing(*from, *to);
            total.sent += to - from;
            total.lost += missing.0;
            if let Some((first, last)) = missing.1 {
                let at = |number: u64| (number - from) * 1000 / u64::from(flow.spec.rate);
                total.details.push(format!(
                    "{}: {} of {} lost, the first about {} ms, the last about {} ms after the begin",
                    flow.spec.name(),
                    missing.0,
                    to - from,
                    at(first),
                    at(last)
                ));
            }
        }
        total
    }

    fn receive(&mut self, pod: &Pod, marker: Marker, flows: Arc<Vec<Flow>>) -> Result<()> {
        let thread = receive(pod, marker, flows, Arc::clone(&self.stop))?;
        self.threads.push(thread);
        Ok(())
    }

    fn send(&mut self, pod: &Pod, marker: Marker, own: Vec<usize>) -> Result<()> {
        let socket = socket(pod, 0)?;
        let (flows, stop) = (Arc::clone(&self.flows), Arc::clone(&self.stop));
        self.threads.push(std::thread::spawn(move || {
            let begin = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                for (id, flow) in own.iter().filter_map(|id| Some((*id, flows.get(*id)?))) {
                    flow.send_due(&socket, marker, id, begin.elapsed());
                }
                std::thread::sleep(TICK);
            }
        }));
        Ok(())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Responder {
    /// Starts one in a pod that has no flows.
    pub(super) fn start(pod: &Pod, marker: Marker) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = receive(pod, marker, Arc::default(), Arc::clone(&stop))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Spec {
    pub(super) fn name(&self) -> String {
        format!("{} → {}", self.from_node, self.to_node)
    }

    pub(super) fn touches(&self, node: &str) -> bool {
        self.from_node == node || self.to_node == node
    }
}

impl Flow {
    fn new(spec: Spec) -> Self {
        Self {
            spec,
            sent: AtomicU64::new(0),
            arrived: Mutex::default(),
        }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the schedule asks for; after a pause of the machine it catches up at four times the rate, not in one
    /// burst. A packet that the kernel does not take counts as sent, and so as lost.
    fn send_due(&self, socket: &UdpSocket, marker: Marker, id: usize, elapsed: Duration) {
        let due = u128::from(self.spec.rate) * elapsed.as_micros() / 1_000_000;
        let at_once = self.spec.rate.div_ceil(250);
        for _ in 0..at_once {
            let number = self.sent.load(Ordering::Relaxed);
            if u128::from(number) >= due {
                return;
            }
            self.sent.store(number + 1, Ordering::Release);
            let packet = Packet::Flow { id, number }.encode(marker);
            let _ = socket.send_to(&packet, (self.spec.to, PORT));
        }
    }
}

impl Arrived {
    fn add(&mut self, number: u64) {
        let Ok(word) = usize::try_from(number / 64) else {
            return;
        };
        if word >= self.numbers.len() {
            self.numbers.resize(word + 1, 0);
        }
        if let Some(bits) = self.numbers.get_mut(word) {
            self.count += u64::from(*bits & (1 << (number % 64)) == 0);
            *bits |= 1 << (number % 64);
        }
    }

    fn has(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok();
        let bits = word.and_then(|word| self.numbers.get(word));
        bits.is_some_and(|bits| bits & (1 << (number % 64)) != 0)
    }

    /// How many of `from..to` are missing, with the first and the last of them.
    fn missing(&self, from: u64, to: u64) -> (u64, Option<(u64, u64)>) {
        let missing = (from..to).filter(|number| !self.has(*number));
        missing.fold((0, None), |(count, range), number| {
            let first = range.map_or(number, |(first, _)| first);
            (count + 1, Some((first, number)))
        })
    }

    fn none_from(&self, from: u64) -> bool {
        let end = u64::try_from(self.numbers.len()).unwrap_or(u64::MAX) * 64;
        !(from..end).any(|number| self.has(number))
    }
}

/// A socket in the pod, with room for what arrives while the machine is busy elsewhere.
pub(super) fn socket(pod: &Pod, port: u16) -> Result<UdpSocket> {
    let socket = pod
        .netns
        .run(|| UdpSocket::bind((pod.address, port)))?
        .with_context(|| format!("opening port {port} in {}", pod.name))?;
    let room = 8 << 20;
    if setsockopt(&socket, RcvBufForce, &room).is_err() {
        setsockopt(&socket, RcvBuf, &room).context("setting the receive buffer")?;
    }
    Ok(socket)
}

/// Sends `count` numbered packets to an address from which nothing is expected.
pub(super) fn send_into_the_void(
    pod: &Pod,
    to: Ipv4Addr,
    count: u64,
    marker: Marker,
) -> Result<()> {
    let socket = socket(pod, 0)?;
    for number in 0..count {
        let packet = Packet::Flow {
            id: usize::MAX,
            number,
        };
        // The host may well answer that there is no way.
        let _ = socket.send_to(&packet.encode(marker), (to, PORT));
        std::thread::sleep(TICK);
    }
    Ok(())
}

fn receive(
    pod: &Pod,
    marker: Marker,
    flows: Arc<Vec<Flow>>,
    stop: Arc<AtomicBool>,
) -> Result<JoinHandle<()>> {
    let socket = socket(pod, PORT)?;
    socket.set_read_timeout(Some(LOOK))?;
    let own = pod.address;
    Ok(std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let packet = buffer
                .get(..length)
                .and_then(|bytes| Packet::decode(bytes, marker));
            match packet {
                Some(Packet::Flow { id, number }) => note_arrival(&flows, id, number, own),
                Some(Packet::Ping { number }) => {
                    let _ = socket.send_to(&Packet::Pong { number }.encode(marker), from);
                }
                _ => {}
            }
        }
    }))
}

/// A packet that arrives at another pod than it was sent to has not arrived.
fn note_arrival(flows: &[Flow], id: usize, number: u64, own: Ipv4Addr) {
    if let Some(flow) = flows.get(id)
        && flow.spec.to == own
    {
        flow.arrived().add(number);
    }
}

/// Pings every one of `to` once from `pod`; names those that did not answer in time.
pub(super) fn ping(pod: &Pod, to: &[Ipv4Addr], marker: Marker) -> Result<Vec<Ipv4Addr>> {
    let socket = socket(pod, 0)?;
    socket.set_read_timeout(Some(LOOK))?;
    for (number, address) in (0..).zip(to) {
        socket
            .send_to(&Packet::Ping { number }.encode(marker), (*address, PORT))
            .with_context(|| format!("{} pings {address}", pod.name))?;
    }
    let mut missing: BTreeMap<u64, Ipv4Addr> = (0..).zip(to.iter().copied()).collect();
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    while !missing.is_empty() && Instant::now() < deadline {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let packet = buffer
            .get(..length)
            .and_then(|bytes| Packet::decode(bytes, marker));
        if let Some(Packet::Pong { number }) = packet
            && missing.get(&number).copied().map(at_port) == Some(from)
        {
            missing.remove(&number);
        }
    }
    Ok(missing.into_values().collect())
}

fn at_port(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(address, PORT))
}

/// Waits until something arrived on every flow.
pub(super) fn await_all(traffic: &Traffic, from: &Mark, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let silent = traffic.silent_since(from);
        if silent.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "expected packets on every flow, found none on: {}",
                silent.join(", ")
            );
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::new_marker;
    use super::*;
    use espalier_testnet::{Netns, VethEnd, isolated, veth};

    /// Two pods on one cable.
    fn two_pods() -> [Pod; 2] {
        let [a, b] = [1, 2].map(|number| {
            let name = format!("pod-{number}");
            Pod {
                netns: Netns::new(&name).unwrap(),
                container_id: String::new(),
                address: Ipv4Addr::new(10, 244, 0, number),
                name,
            }
        });
        let end = |pod: &'static str, netns| VethEnd { netns, name: pod };
        veth(end("eth0", &a.netns), end("eth0", &b.netns), 1500).unwrap();
        for pod in [&a, &b] {
            let add = || espalier_testnet::address("eth0", pod.address.into(), 24);
            pod.netns.run(add).unwrap().unwrap();
        }
        [a, b]
    }

    fn spec(to: &Pod) -> Spec {
        Spec {
            from_node: "a".into(),
            to_node: "b".into(),
            to: to.address,
            rate: 1000,
        }
    }

    #[test]
    fn what_is_cut_off_is_lost_and_nothing_else() {
        isolated(
            "demo::flow::tests::what_is_cut_off_is_lost_and_nothing_else",
            || {
                let [a, b] = two_pods();
                let traffic =
                    Traffic::start(vec![(&a, spec(&b))], &[&a, &b], new_marker()).unwrap();
                let begin = traffic.mark();
                await_all(&traffic, &begin, PATIENCE).unwrap();
                // The very first packets may go while the neighbour is being resolved.
                let warm = traffic.mark();
                await_all(&traffic, &warm, PATIENCE).unwrap();
                let loss = traffic.lost_since(&warm, |_| true);
                assert_eq!(loss.lost, 0, "{loss:?}");
                assert!(loss.sent > 0);

                let all = [b.address, Ipv4Addr::new(10, 244, 0, 9)];
                assert_eq!(ping(&a, &all, *b"a foreign marker").unwrap(), all);

                let mut cut = std::process::Command::new("ip");
                b.netns
                    .output(cut.args(["link", "set", "eth0", "down"]))
                    .unwrap();
                let gone = traffic.mark();
                while traffic.sent() < gone.0[0] + 10 {
                    std::thread::yield_now();
                }
                let loss = traffic.lost_since(&gone, |spec| spec.touches("b"));
                assert_eq!(loss.details.len(), 1, "{loss:?}");
                assert!(loss.lost >= 10 && loss.lost <= loss.sent);
                assert_eq!(traffic.lost_since(&gone, |spec| spec.touches("c")).sent, 0);
            },
        );
    }

    #[test]
    fn pods_answer_pings() {
        isolated("demo::flow::tests::pods_answer_pings", || {
            let [a, b] = two_pods();
            let marker = new_marker();
            let _responder = Responder::start(&b, marker).unwrap();
            let nobody = Ipv4Addr::new(10, 244, 0, 9);
            let silent = ping(&a, &[b.address, nobody], marker).unwrap();
            assert_eq!(silent, [nobody]);
        });
    }

    #[test]
    fn missing_numbers_are_found() {
        let mut arrived = Arrived::default();
        for number in (0..200).filter(|number| ![3, 64, 190].contains(number)) {
            arrived.add(number);
            arrived.add(number);
        }
        assert_eq!(arrived.count, 197);
        assert_eq!(arrived.missing(0, 200), (3, Some((3, 190))));
        assert_eq!(arrived.missing(4, 64), (0, None));
        assert_eq!(arrived.missing(199, 202), (2, Some((200, 201))));
        assert!(!arrived.none_from(199));
        assert!(arrived.none_from(200));
    }
}
