//! The operations, under one lock. Reads of the kernel come before writes; what is as it should be is not written.

use std::collections::BTreeMap;
use std::time::Instant;

use espalier_dataplane_core::check::spi_taken;
use espalier_dataplane_core::{
    Direction, Dump, Error as Refusal, Event, Overlay, Peer, PeerId, PeerStats, Sa, SaInfo, Spi,
};
use espalier_netlink::Errno;
use tracing::{info, warn};

use super::check;
use super::states::{Known, Name, Print, States, Watch, ends, ports, row};
use crate::book::Book;
use crate::error::Error;
use crate::probe::Findings;
use crate::reqid::{PEERS, of_stranger, stranger};
use crate::sad::Sad;
use crate::used::Used;
use crate::wire::new_state::NewState;
use crate::wire::state::State;
use crate::wire::state_id::StateId;

/// Which outbound state carries a peer's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Active {
    /// This one.
    Spi(Spi),
    /// A policy without an SPI was found: the kernel chooses, per CPU.
    Any,
}

/// Everything that the operations work with.
pub(super) struct Inner {
    pub(super) sad: Sad,
    pub(super) states: States,
    book: Book,
    used: Used,
    active: BTreeMap<u32, Active>,
    findings: Findings,
    port: u16,
}

impl Inner {
    pub(super) fn new(sad: Sad, book: Book, findings: Findings, port: u16) -> Self {
        Self {
            sad,
            states: States::default(),
            book,
            used: Used::default(),
            active: BTreeMap::new(),
            findings,
            port,
        }
    }

    pub(super) fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Takes over what an earlier process left in the kernel.
    pub(super) fn adopt(&mut self, now: Instant) -> Result<(), Error> {
        let found = self.sad.list(|reqid| PEERS.contains(&reqid))?;
        for state in found.iter().filter(|state| state.keyed) {
            self.adopt_state(state, now);
        }
        for pin in self.sad.pinned()? {
            if PEERS.contains(&pin.reqid) {
                let active = pin.spi.map_or(Active::Any, |spi| Active::Spi(Spi(spi)));
                self.active.insert(pin.reqid, active);
            }
        }
        info!(
            peers = self.book.peers().count(),
            states = self.states.iter().count(),
            "kernel state adopted"
        );
        Ok(())
    }

    /// Also one with an algorithm that is none of ours is remembered, so that it is removed with its peer.
    fn adopt_state(&mut self, state: &State, now: Instant) {
        let Some(print) = Print::of_state(state, &self.used) else {
            warn!(reqid = state.reqid, spi = %state.spi(), "a state of ours with an unknown algorithm");
            return;
        };
        let name = Name::of_state(state);
        let (spi, remote) = (state.spi(), name.remote(&print));
        self.used.claim(state.direction, spi, remote, print.key());
        self.states.insert(name, Known::adopted(print, state, now));
    }

    pub(super) fn put_peer(&mut self, peer: Peer) -> Result<u32, Refusal> {
        check::peer(&peer)?;
        let (id, known) = (peer.id.clone(), self.book.reqid(&peer.id).is_some());
        let states = &self.states;
        let reqid = self
            .book
            .put(peer, |reqid| states.of(reqid).next().is_some())?;
        if !known {
            info!(peer = %id, reqid = format!("{reqid:#x}"), "peer put");
        }
        Ok(reqid)
    }

    pub(super) fn remove_peer(&mut self, id: &PeerId) -> Result<(), Refusal> {
        let Some(reqid) = self.book.reqid(id).or_else(|| of_stranger(id)) else {
            return Ok(());
        };
        let names: Vec<_> = self.states.of(reqid).copied().collect();
        let count = names.len();
        for name in names {
            self.remove(&name)?;
        }
        self.active.remove(&reqid);
        self.book.remove(id);
        info!(peer = %id, states = count, "peer removed with its SAs");
        Ok(())
    }

    pub(super) fn install_sa(&mut self, sa: &Sa, now: Instant) -> Result<(), Refusal> {
        let no_peer = || Refusal::NoSuchPeer(sa.peer.clone());
        let reqid = self.book.reqid(&sa.peer).ok_or_else(no_peer)?;
        let peer = self.book.peer(reqid).ok_or_else(no_peer)?.clone();
        check::sa(sa, &self.findings.can, self.port)?;
        let print = Print::of_sa(sa, &peer, &self.used);
        let state = self.new_state(sa, &peer, reqid);
        let name = Name {
            reqid,
            direction: sa.direction,
            id: StateId {
                destination: state.destination,
                spi: sa.spi.0,
                protocol: state.protocol(),
            },
        };
        if let Some(known) = self.states.get(&name) {
            let same = known.print == print;
            return self.again(sa, &name, same);
        }
        if sa.direction == Direction::Out
            && self.states.named(Direction::Out, sa.spi).next().is_some()
        {
            // The seam names outbound SAs by their SPI alone; two of them could not be told apart.
            return Err(Refusal::SpiReused(sa.spi));
        }
        self.used
            .check(sa.direction, sa.spi, peer.remote, print.key())?;
        self.add(&state, &name)?;
        self.used
            .claim(sa.direction, sa.spi, peer.remote, print.key());
        let watch = (sa.direction == Direction::In).then(|| Watch::new(now));
        self.states
            .insert(name, Known::installed(print, watch, now));
        info!(peer = %sa.peer, spi = %sa.spi, direction = ?sa.direction, "SA installed");
        Ok(())
    }

    fn new_state<'k>(&self, sa: &'k Sa, peer: &Peer, reqid: u32) -> NewState<'k> {
        let (source, destination) = ends(peer, sa.direction);
        NewState {
            direction: sa.direction,
            source,
            destination,
            spi: sa.spi,
            reqid,
            suite: sa.suite,
            key: sa.key.expose(),
            mode: sa.mode,
            esn: sa.esn,
            window: sa.replay_window,
            ports: ports(sa),
            hard_seconds: sa.hard_seconds,
            cpu: sa.cpu,
            offload: None,
            tell_direction: self.findings.tell_direction,
        }
    }

    /// An SA that was installed before: fine if it is the same and still there.
    fn again(&mut self, sa: &Sa, name: &Name, same: bool) -> Result<(), Refusal> {
        let there = self.ours(name)?;
        match (sa.direction, same && there) {
            (_, true) => Ok(()),
            (Direction::Out, false) => Err(Refusal::SpiReused(sa.spi)),
            (Direction::In, false) if same => Err(check::vanished(sa.spi)),
            (Direction::In, false) => Err(spi_taken(sa.spi, &sa.peer)),
        }
    }

    fn add(&mut self, state: &NewState<'_>, name: &Name) -> Result<(), Refusal> {
        let refused = match self.sad.add(state) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        match refused.errno() {
            Some(Errno::EEXIST) => match self.sad.get(&name.id)? {
                Some(other) if PEERS.contains(&other.reqid) => {
                    Err(spi_taken(state.spi, &self.owner(other.reqid)))
                }
                other => Err(check::spi_foreign(
                    state.spi,
                    other.map_or(0, |other| other.reqid),
                )),
            },
            Some(Errno::EPROTONOSUPPORT | Errno::ENOENT | Errno::ENOSYS) => Err(Refusal::Invalid {
                field: "suite",
                why: refused.to_string(),
            }),
            _ => Err(refused.into()),
        }
    }

    pub(super) fn switch_outbound(
        &mut self,
        peer: &PeerId,
        spi: Option<Spi>,
    ) -> Result<(), Refusal> {
        let reqid = self
            .book
            .reqid(peer)
            .ok_or_else(|| Refusal::NoSuchPeer(peer.clone()))?;
        match spi {
            None => drop(self.active.remove(&reqid)),
            Some(spi) => {
                let mut outbound = self.states.named(Direction::Out, spi);
                if !outbound.any(|name| name.reqid == reqid) {
                    return Err(Refusal::NoSuchSa(peer.clone(), spi));
                }
                self.active.insert(reqid, Active::Spi(spi));
            }
        }
        info!(%peer, ?spi, "outbound SA switched");
        Ok(())
    }

    pub(super) fn remove_sa(&mut self, direction: Direction, spi: Spi) -> Result<(), Refusal> {
        let names: Vec<_> = self.states.named(direction, spi).copied().collect();
        for name in names {
            self.remove(&name)?;
            if self.active.get(&name.reqid) == Some(&Active::Spi(spi))
                && direction == Direction::Out
            {
                self.active.remove(&name.reqid);
            }
            info!(peer = %self.owner(name.reqid), %spi, ?direction, "SA removed");
        }
        Ok(())
    }

    /// Removes a state of ours; what stands in its place and is not ours stays.
    fn remove(&mut self, name: &Name) -> Result<(), Refusal> {
        if self.ours(name)? {
            self.sad.delete(&name.id)?;
        }
        self.states.remove(name);
        Ok(())
    }

    /// Whether a state is there with our reqid.
    fn ours(&mut self, name: &Name) -> Result<bool, Error> {
        let found = self.sad.get(&name.id)?;
        Ok(found.is_some_and(|state| state.reqid == name.reqid))
    }

    pub(super) fn owner(&self, reqid: u32) -> PeerId {
        let known = self.book.peer(reqid).map(|peer| peer.id.clone());
        known.unwrap_or_else(|| stranger(reqid))
    }

    /// Peers and SAs, and what the list shows that was not reported yet.
    pub(super) fn dump(&mut self, drops: Vec<(String, u64)>) -> Result<(Dump, Vec<Event>), Error> {
        let found = self.sad.list(|reqid| PEERS.contains(&reqid))?;
        let events = self.compare(&found);
        let rows = found.iter().filter_map(|state| self.row(state));
        let mut sas: Vec<_> = rows.collect();
        sas.sort_by_key(|sa| (sa.direction, sa.spi));
        let known = self.book.peers().map(|(_, peer)| peer.clone());
        let peers = known
            .chain(self.strangers(&found))
            .map(|peer| (peer, PeerStats::default()));
        let dump = Dump {
            peers: peers.collect(),
            sas,
            drops,
        };
        Ok((dump, events))
    }

    fn row(&mut self, state: &State) -> Option<SaInfo> {
        let active = match (state.direction, self.active.get(&state.reqid)) {
            (Direction::In, _) => state.packets > 0,
            (Direction::Out, Some(Active::Spi(spi))) => *spi == state.spi(),
            (Direction::Out, Some(Active::Any)) => true,
            (Direction::Out, None) => false,
        };
        let peer = self.owner(state.reqid);
        let known = self.states.get_mut(&Name::of_state(state));
        Some(row(state, state.suite?, peer, active, known))
    }

    /// States without a known peer, as peers: so the agent sees and removes them.
    fn strangers(&self, found: &[State]) -> Vec<Peer> {
        let mut strangers = BTreeMap::new();
        for state in found.iter().filter(|state| state.keyed) {
            if self.book.peer(state.reqid).is_some() {
                continue;
            }
            let (local, remote) = match state.direction {
                Direction::In => (state.id.destination, state.source),
                Direction::Out => (state.source, state.id.destination),
            };
            strangers.entry(state.reqid).or_insert_with(|| Peer {
                id: stranger(state.reqid),
                local,
                remote,
                pod_cidrs: Vec::new(),
                own_cidrs: Vec::new(),
                overlay: Overlay::Ipip,
                local_mac: [0; 6],
                remote_mac: [0; 6],
            });
        }
        strangers.into_values().collect()
    }

    /// Brings what is remembered in line with a complete list.
    pub(super) fn compare(&mut self, found: &[State]) -> Vec<Event> {
        let mut events = Vec::new();
        let listed: BTreeMap<_, _> = found
            .iter()
            .filter(|state| state.keyed)
            .map(|state| (Name::of_state(state), state))
            .collect();
        let gone: Vec<_> = self
            .states
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| !listed.contains_key(name))
            .collect();
        for name in gone {
            events.extend(self.expired(&name));
        }
        for (name, state) in listed {
            if state.packets > 0 {
                events.extend(self.confirmed(&name));
            }
        }
        events
    }

    /// A peer's packet came in on this state, authenticated.
    pub(super) fn confirmed(&mut self, name: &Name) -> Option<Event> {
        self.states.unwatch(name)?;
        Some(Event::FirstPacket {
            peer: self.owner(name.reqid),
            spi: name.spi(),
        })
    }

    /// A state is gone that was not removed here.
    pub(super) fn expired(&mut self, name: &Name) -> Option<Event> {
        self.states.remove(name)?;
        if name.direction == Direction::Out
            && self.active.get(&name.reqid) == Some(&Active::Spi(name.spi()))
        {
            self.active.remove(&name.reqid);
        }
        Some(Event::Expired {
            peer: self.owner(name.reqid),
            direction: name.direction,
            spi: name.spi(),
        })
    }

    /// A peer whose packets found no state.
    pub(super) fn acquire(&self, reqid: u32) -> Option<Event> {
        let peer = self.book.peer(reqid)?;
        Some(Event::Acquire {
            peer: peer.id.clone(),
        })
    }
}
