//! The network between the nodes, and its clock, which jumps to what is next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use espalier_ike::{Path, Transmit};
use rand::RngExt;

use super::{Net, Packet};

/// What is under way and what is due, each found without looking at every node.
#[derive(Default)]
pub struct Agenda {
    queue: BTreeMap<(Instant, u64), Packet>,
    count: u64,
    due: BTreeSet<(Instant, usize)>,
    due_at: Vec<Option<Instant>>,
}

impl Agenda {
    /// A node's next timer is at `at`.
    pub fn set(&mut self, node: usize, at: Option<Instant>) {
        if self.due_at.len() <= node {
            self.due_at.resize(node + 1, None);
        }
        let before = std::mem::replace(&mut self.due_at[node], at);
        if before != at {
            before.map(|at| self.due.remove(&(at, node)));
            at.map(|at| self.due.insert((at, node)));
        }
    }

    fn next_packet(&self) -> Option<(Instant, u64)> {
        self.queue.keys().next().copied()
    }

    fn next_at(&self) -> Option<Instant> {
        let packet = self.next_packet().map(|(at, _)| at);
        let timer = self.due.first().map(|(at, _)| *at);
        packet.into_iter().chain(timer).min()
    }

    /// Datagrams under way.
    pub fn under_way(&self) -> usize {
        self.queue.len()
    }
}

impl Net {
    pub(super) fn send(&mut self, node: usize, transmit: Transmit) {
        let packet = Packet {
            path: transmit.path,
            payload: transmit.payload,
        };
        assert_eq!(packet.path.local.ip(), self.nodes[node].address.ip());
        if self.nodes[node].up {
            if self.record {
                self.sent.push(packet.clone());
            }
            self.carry(packet);
        }
    }

    /// Puts a datagram on the network.
    pub fn carry(&mut self, mut packet: Packet) {
        if self.filter.as_mut().is_some_and(|keep| !keep(&packet)) {
            return;
        }
        if let Some(translate) = &mut self.translate {
            let Some(path) = translate(packet.path) else {
                return;
            };
            packet.path = path;
        }
        if let Some(held) = &mut self.held {
            return held.push(packet);
        }
        let copies = 1 + u32::from(self.rng.random_range(0..100) < self.weather.duplication);
        for _ in 0..copies {
            if self.rng.random_range(0..100) >= self.weather.loss {
                let (least, most) = self.weather.latency_ms;
                let way = Duration::from_millis(self.rng.random_range(least..=most));
                let agenda = &mut self.agenda;
                agenda.count += 1;
                let key = (self.now + way, agenda.count);
                agenda.queue.insert(key, packet.clone());
            }
        }
    }

    /// Hands a datagram to the node at its destination, at once.
    pub fn deliver(&mut self, packet: &Packet) {
        let path = Path {
            local: packet.path.remote,
            remote: packet.path.local,
        };
        if let Some(to) = self
            .node_at(path.local.ip())
            .filter(|to| self.nodes[*to].up)
        {
            if self.loud {
                let (exchange, answer, message) = packet.kind();
                let what = if answer { "answer" } else { "request" };
                let at = self.age().as_secs_f64();
                let spi = hex::encode(&packet.payload[..4]);
                println!("{at:>9.3} s:   → {to}: {exchange} {what} {message} of {spi}");
            }
            let (now, unix) = (self.now, self.unix());
            let endpoint = &mut self.nodes[to].endpoint;
            endpoint.handle_datagram(now, unix, path, &packet.payload);
            self.pump(to);
        }
    }

    /// Jumps to what is next and does it. False when nothing will ever happen.
    pub fn step(&mut self) -> bool {
        let timer = self.agenda.due.first().copied();
        match (self.agenda.next_packet(), timer) {
            (Some(key), timer) if timer.is_none_or(|(at, _)| key.0 <= at) => {
                self.now = self.now.max(key.0);
                if let Some(packet) = self.agenda.queue.remove(&key) {
                    self.deliver(&packet);
                }
            }
            (_, Some((at, index))) => {
                self.now = self.now.max(at);
                self.pump(index);
            }
            _ => return false,
        }
        true
    }

    /// Runs for so long.
    pub fn run(&mut self, time: Duration) {
        self.look_around();
        let until = self.now + time;
        while self.agenda.next_at().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = until;
        self.check_if_strict();
    }

    /// Runs until `done`, at most `time`. Returns whether it is done.
    pub fn run_until(&mut self, time: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        self.look_around();
        let until = self.now + time;
        while !done(self) {
            if self.agenda.next_at().is_none_or(|at| at > until) {
                return false;
            }
            self.step();
        }
        true
    }

    /// Nodes may have been told things, or switched on or off, behind the agenda's back.
    fn look_around(&mut self) {
        for node in 0..self.nodes.len() {
            self.plan(node);
        }
    }

    /// When to come back to a node.
    pub(super) fn plan(&mut self, node: usize) {
        let at = self.nodes[node].endpoint.poll_timeout();
        self.agenda.set(node, at.filter(|_| self.nodes[node].up));
    }

    /// How long this network has been there.
    pub fn age(&self) -> Duration {
        self.now - self.start
    }

    pub fn unix(&self) -> Duration {
        self.unix + (self.now - self.start)
    }
}
