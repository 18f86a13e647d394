//! All peers, and which of them have to be looked at: a mesh of thousands in which one pair does something costs as much as that pair.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::ops::Index;
use std::time::Instant;

use super::peer::PeerState;

/// Peers by name. Whoever gets one to change it makes it one that has to be settled.
#[derive(Debug, Default)]
pub(super) struct Peers {
    all: BTreeMap<String, PeerState>,
    /// Something has happened to them since their last turn.
    touched: BTreeSet<String>,
    /// What the kernel should hold for them may be something else now.
    changed: BTreeSet<String>,
    /// When the others are due by themselves.
    due: BTreeSet<(Instant, String)>,
    due_at: BTreeMap<String, Instant>,
}

impl Peers {
    pub(super) fn get(&self, name: &str) -> Option<&PeerState> {
        self.all.get(name)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &PeerState> {
        self.all.values()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.all.keys().cloned().collect()
    }

    pub(super) fn insert(&mut self, name: String, peer: PeerState) {
        self.touched.insert(name.clone());
        self.changed.insert(name.clone());
        self.all.insert(name, peer);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<PeerState> {
        self.touched.remove(name);
        self.forget_due(name);
        self.changed.insert(name.to_owned());
        self.all.remove(name)
    }

    /// To be settled afterwards.
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut PeerState> {
        let peer = self.all.get_mut(name)?;
        if !self.touched.contains(name) {
            self.touched.insert(name.to_owned());
            self.changed.insert(name.to_owned());
        }
        Some(peer)
    }

    /// To be settled.
    pub(super) fn touch(&mut self, name: &str) {
        let _ = self.get_mut(name);
    }

    /// All of them to be settled afterwards.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = (&String, &mut PeerState)> {
        self.touch_all();
        self.all.iter_mut()
    }

    /// Something that all depend on has changed.
    pub(super) fn touch_all(&mut self) {
        self.touched = self.all.keys().cloned().collect();
        self.changed.extend(self.all.keys().cloned());
    }

    /// Those whose turn it is: what happens to them from here on is for the next one, what is done in their turn is not.
    pub(super) fn take_turn(&mut self, now: Instant) -> Vec<String> {
        while let Some((at, _)) = self.due.first()
            && *at <= now
            && let Some((_, name)) = self.due.pop_first()
        {
            self.due_at.remove(&name);
            self.touched.insert(name);
        }
        let turn = mem::take(&mut self.touched);
        self.changed.extend(turn.iter().cloned());
        turn.into_iter().collect()
    }

    /// Each of those whose turn it is.
    pub(super) fn for_turn(&mut self, turn: &[String], mut each: impl FnMut(&str, &mut PeerState)) {
        for name in turn {
            if let Some(peer) = self.all.get_mut(name) {
                each(name, peer);
            }
        }
    }

    /// Their turn is over. `done`: all that was to be done; else they have another one.
    pub(super) fn end_turn(&mut self, turn: Vec<String>, done: bool) {
        for name in turn {
            let due = self.all.get(&name).map(PeerState::next_timeout);
            self.forget_due(&name);
            if let Some(at) = due.flatten() {
                self.due.insert((at, name.clone()));
                self.due_at.insert(name.clone(), at);
            }
            if due.is_some() && !done {
                self.touched.insert(name);
            }
        }
    }

    /// In their turn something of them has changed that the kernel is to know at once.
    pub(super) fn change(&mut self, names: Vec<String>) {
        self.changed.extend(names);
    }

    /// Those whose part of the kernel is to be looked at.
    pub(super) fn take_changed(&mut self) -> BTreeSet<String> {
        mem::take(&mut self.changed)
    }

    /// When the next one is due.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let touched = self.touched.iter().filter_map(|name| self.all.get(name));
        let touched = touched.filter_map(PeerState::next_timeout).min();
        let due = self.due.first().map(|(at, _)| *at);
        [touched, due].into_iter().flatten().min()
    }

    fn forget_due(&mut self, name: &str) {
        if let Some((name, at)) = self.due_at.remove_entry(name) {
            self.due.remove(&(at, name));
        }
    }
}

impl Index<&str> for Peers {
    type Output = PeerState;

    fn index(&self, name: &str) -> &PeerState {
        &self.all[name]
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use espalier_peers::{Limits, Mode, NodeSpec, Observed, Pair, Way, WayLimits};

    use super::*;

    fn three(now: Instant) -> Peers {
        let mut peers = Peers::default();
        for name in ["a", "b", "c"] {
            let spec = NodeSpec {
                name: name.to_owned(),
                uid: None,
                addresses: Vec::new(),
                pod_cidrs: Vec::new(),
            };
            let here = IpAddr::from([192, 0, 2, 1]);
            let pair = Pair::new(Mode::Disabled, Observed::default(), Limits::default(), now);
            let way = Way::new(true, WayLimits::default(), now);
            peers.insert(
                name.to_owned(),
                PeerState::new(spec, (here, here), pair, way),
            );
        }
        peers
    }

    fn quiet(now: Instant) -> Peers {
        let mut peers = three(now);
        let turn = peers.take_turn(now);
        peers.end_turn(turn, true);
        peers.take_changed();
        peers
    }

    #[test]
    fn only_those_that_something_happened_to_have_a_turn() {
        let now = Instant::now();
        let mut peers = three(now);
        assert_eq!(peers.take_turn(now), ["a", "b", "c"]);
        let mut peers = quiet(now);
        assert!(peers.take_turn(now).is_empty() && peers.take_changed().is_empty());
        assert!(peers.get_mut("b").is_some() && peers.get_mut("nobody").is_none());
        assert_eq!(peers.take_turn(now), ["b"]);
        assert_eq!(peers.take_changed(), BTreeSet::from(["b".to_owned()]));
        assert_eq!(peers.all_mut().count(), 3);
        assert_eq!(peers.take_turn(now).len(), 3);
    }

    #[test]
    fn a_turn_that_failed_is_had_again() {
        let now = Instant::now();
        let mut peers = quiet(now);
        peers.touch("c");
        let turn = peers.take_turn(now);
        peers.end_turn(turn, false);
        assert_eq!(peers.take_turn(now), ["c"]);
    }

    #[test]
    fn what_happens_in_a_turn_is_for_the_next_one() {
        let now = Instant::now();
        let mut peers = quiet(now);
        peers.touch("a");
        let turn = peers.take_turn(now);
        peers.touch("a");
        peers.end_turn(turn, true);
        assert_eq!(peers.take_turn(now), ["a"]);
    }

    #[test]
    fn a_peer_has_a_turn_when_it_is_due() {
        let now = Instant::now();
        let mut peers = quiet(now);
        assert_eq!(peers.next_timeout(), None);
        let way = |peers: &mut Peers| peers.get_mut("b").map(|b| b.way.made_raw(1, 2, now));
        way(&mut peers);
        let turn = peers.take_turn(now);
        peers.end_turn(turn, true);
        let due = peers.next_timeout().unwrap();
        assert!(due > now && peers.take_turn(now).is_empty());
        assert_eq!(peers.take_turn(due), ["b"]);
    }

    #[test]
    fn a_peer_that_is_gone_is_not_due_and_its_part_of_the_kernel_is_looked_at() {
        let now = Instant::now();
        let mut peers = quiet(now);
        peers.get_mut("b").unwrap().way.made_raw(1, 2, now);
        let turn = peers.take_turn(now);
        peers.end_turn(turn, true);
        peers.take_changed();
        assert!(peers.remove("b").is_some());
        assert!(peers.take_turn(now + Duration::from_secs(3600)).is_empty());
        assert_eq!(peers.next_timeout(), None);
        assert_eq!(peers.take_changed(), BTreeSet::from(["b".to_owned()]));
    }
}
