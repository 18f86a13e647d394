//! What holds after each step and at the end, and questions that tests ask.

use std::net::IpAddr;

use espalier_ike::{Event, Holdings, Identity, Role};

use super::{Net, plane};

/// Networks of at most so many nodes have every endpoint audited after each step.
const AUDITED: usize = 4;

impl Net {
    /// What a node seals with, the other one can open, with the same key.
    pub fn check_spis(&self) {
        for node in 0..self.nodes.len() {
            for peer in self.nodes[node].plane.keys() {
                self.check_pair(node, peer);
            }
        }
    }

    pub(super) fn check_if_strict(&self) {
        if self.strict {
            self.check_spis();
        }
    }

    fn check_pair(&self, own: usize, peer: &Identity) {
        let Some(other) = self.index_of(peer) else {
            return;
        };
        let here = self.nodes[own].plane.get(peer);
        let there = self.nodes[other].plane.get(&self.nodes[own].id);
        let none = plane::Pair::default();
        let (here, there) = (here.unwrap_or(&none), there.unwrap_or(&none));
        let seals: Vec<u32> = here.each().filter_map(|pair| pair.seals).collect();
        for (spi, key) in here.each().flat_map(|pair| &pair.outbound) {
            let opens = there.each().find_map(|pair| pair.inbound.get(spi));
            assert!(
                opens.is_none_or(|opens| opens == key),
                "{own} and {peer} have different keys for {spi:08x}"
            );
            assert!(
                !seals.contains(spi) || opens.is_some(),
                "{own} seals towards {peer} with {spi:08x}, which it cannot open"
            );
        }
    }

    /// After each thing that a node did: what it touched fits the other end's, and nothing in it has two owners.
    pub(super) fn check_touched(&mut self, node: usize) {
        for peer in std::mem::take(&mut self.touched) {
            if let Some(other) = self.index_of(&peer).filter(|_| self.strict) {
                self.check_pair(node, &peer);
                self.check_pair(other, &self.nodes[node].id);
            }
        }
        if self.nodes.len() <= AUDITED {
            self.nodes[node].endpoint.audit().unwrap();
        }
    }

    /// Nothing is left of what was: one IKE SA and one CHILD_SA with each peer on every node, and no SPI beyond those.
    pub fn assert_nothing_orphaned(&self, context: &str) {
        for node in 0..self.nodes.len() {
            self.assert_holds(node, self.nodes.len() - 1, context);
        }
    }

    /// One IKE SA with one CHILD_SA for each of so many peers, and nothing else.
    pub fn assert_holds(&self, node: usize, peers: usize, context: &str) {
        let endpoint = &self.nodes[node].endpoint;
        endpoint.audit().unwrap();
        let expected = Holdings {
            established: peers,
            children: peers,
            spis: peers,
            ..Holdings::default()
        };
        assert_eq!(endpoint.holdings(), expected, "{context}: node {node}");
    }

    pub fn index_of(&self, id: &Identity) -> Option<usize> {
        self.by_name.get(id).copied()
    }

    pub(super) fn node_at(&self, ip: IpAddr) -> Option<usize> {
        self.by_ip.get(&ip).copied()
    }

    /// Both ends have exactly one CHILD_SA of each other, the same one, and seal with it.
    pub fn settled(&self, a: usize, b: usize) -> bool {
        let pair = |own: usize, peer: usize| self.nodes[own].plane.get(&self.nodes[peer].id);
        let (Some(here), Some(there)) = (pair(a, b), pair(b, a)) else {
            return false;
        };
        let one = |pair: &plane::Pair| pair.inbound.len() == 1 && pair.outbound.len() == 1;
        let fits = |from: &plane::Pair, to: &plane::Pair| {
            from.seals.is_some_and(|spi| to.inbound.contains_key(&spi))
        };
        one(here) && one(there) && fits(here, there) && fits(there, here)
    }

    pub fn all_settled(&self) -> bool {
        let size = self.nodes.len();
        (0..size).all(|a| (a + 1..size).all(|b| self.settled(a, b)))
    }

    /// Number of IKE SAs that a node holds in any state, after all lingering ones had time to go.
    pub fn ike_sas(&self, node: usize) -> usize {
        self.nodes[node].endpoint.ike_sas()
    }

    pub fn failures(&self, node: usize) -> Vec<String> {
        let text = |event: &Event| match event {
            Event::HandshakeFailed { error, .. } => Some(error.to_string()),
            _ => None,
        };
        self.nodes[node].log.iter().filter_map(text).collect()
    }

    pub fn count(&self, node: usize, matches: impl Fn(&Event) -> bool) -> usize {
        self.nodes[node]
            .log
            .iter()
            .filter(|event| matches(event))
            .count()
    }

    pub fn child_ups(&self, node: usize) -> Vec<(Role, espalier_ike::ChildSa, Option<Vec<u8>>)> {
        let up = |event: &Event| match event {
            Event::ChildUp {
                child,
                announcement,
                ..
            } => Some((child.role, (**child).clone(), announcement.clone())),
            _ => None,
        };
        self.nodes[node].log.iter().filter_map(up).collect()
    }
}

impl Net {
    /// However many CHILD_SAs there are.
    pub fn assert_one_ike_sa(&self) {
        for node in 0..self.nodes.len() {
            assert_eq!(self.ike_sas(node), self.nodes.len() - 1, "node {node}");
        }
    }
}
