//! Where the ends of an established IKE SA are: behind a NAT (RFC 7296 §2.23), and moving (UPDATE_SA_ADDRESSES and return
//! routability of RFC 4555; docs/ike-transport.md). A peer only ever moves by authentic messages, and only to an address that
//! its configuration has (S5).

use std::net::SocketAddr;
use std::time::Instant;

use super::Endpoint;
use super::receive::Received;
use crate::config::Identity;
use crate::error::ConfigError;
use crate::event::{CloseReason, Event, Path, Role};
use crate::exchange::Request;
use crate::limits;
use crate::sa::nat::{Detection, NAT_PORT, Nat, seen_as};
use crate::sa::{Goodbye, IkeSa, error_notify, notify};
use crate::wire::{Notify, NotifyType, Payload};

/// Notifies of an INFORMATIONAL response.
pub(super) struct Reply(Vec<(NotifyType, Vec<u8>)>);

impl Reply {
    pub(super) fn payloads(&self) -> impl Iterator<Item = Payload<'_>> {
        self.0
            .iter()
            .map(|(kind, data)| Payload::Notify(Notify::new(*kind, data)))
    }

    fn detection(&mut self, sa: &IkeSa, path: Path) {
        let detection = Detection::new(sa.spis(), path, sa.nat.forced);
        for payload in detection.payloads() {
            if let Payload::Notify(notify) = payload {
                self.0.push((notify.kind, notify.data.to_vec()));
            }
        }
    }
}

impl Endpoint {
    /// This node, or the peer, is elsewhere now: IKE with it goes on between these two ends. The peer is told, and
    /// [`Event::AddressChanged`] says when it agreed; where it knows no MOBIKE (RFC 4555), or only its end may move an IKE SA,
    /// a new IKE SA is made and replaces the old one. Later handshakes use these ends, too.
    ///
    /// # Errors
    /// [`ConfigError::Address`]: `remote` is none of the peer's; then nothing changes.
    pub fn update_address(
        &mut self,
        id: &Identity,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<(), ConfigError> {
        self.now = Some(now);
        let Some(peer) = self.peers.get_mut(id) else {
            return Ok(());
        };
        if !peer.config.addresses.contains(&remote.ip()) {
            let (peer, address) = (id.clone(), remote.ip());
            return Err(ConfigError::Address { peer, address });
        }
        let news = (peer.config.local, peer.config.remote) != (local, remote);
        (peer.config.local, peer.config.remote) = (local, remote);
        let sas = peer.sas.clone();
        if news {
            self.abandon_attempt(id, true);
        }
        for spi in sas {
            self.move_own(spi, id, Path { local, remote }, now);
        }
        self.schedule(id, now);
        self.start_due(now);
        Ok(())
    }

    fn move_own(&mut self, spi: u64, id: &Identity, path: Path, now: Instant) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let path = sa.path.moved_to(path);
        if sa.path == path {
            return;
        }
        let from = std::mem::replace(&mut sa.path, path);
        if sa.may_move() {
            sa.mobility.update.get_or_insert_with(|| Box::new(from));
            self.flush_moves(spi, now);
        } else if let Some(peer) = self.peers.get_mut(id) {
            peer.renew = true;
        }
    }

    /// Says what is to be said about addresses, once the window is free.
    pub(super) fn flush_moves(&mut self, spi: u64, now: Instant) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        if sa.exchanges.next_id().is_none() || sa.established().is_none() {
            return;
        }
        let path = sa.path;
        if let Some(from) = sa.mobility.update.take() {
            let detection = Detection::new(sa.spis(), path, sa.nat.forced);
            let update = Notify::new(NotifyType::UpdateSaAddresses, &[]);
            let payloads: Vec<Payload<'_>> = [Payload::Notify(update)]
                .into_iter()
                .chain(detection.payloads())
                .collect();
            let request = Request::Update(Box::new((*from, path)));
            self.request(spi, request, &payloads, now);
        } else if std::mem::take(&mut sa.mobility.check) {
            let mut cookie = vec![0; limits::COOKIE2_BYTES];
            self.rng.fill_bytes(&mut cookie);
            let payloads = [Payload::Notify(Notify::new(NotifyType::Cookie2, &cookie))];
            let request = Request::Check(Box::new((path, cookie.clone())));
            self.request(spi, request, &payloads, now);
        }
    }

    /// A peer behind a NAT sends from where the NAT puts it (RFC 7296 §2.23). With MOBIKE only UPDATE_SA_ADDRESSES moves it
    /// (RFC 4555 §3.8). The datagram is authentic and no repetition.
    pub(super) fn follow(&mut self, spi: u64, path: Path) {
        let Some(sa) = self.sas.get(&spi) else {
            return;
        };
        let behind_nat = sa.nat.remote && !sa.nat.local && !sa.mobility.mobike;
        if behind_nat && path.remote != sa.path.remote && self.is_own_address(sa, path) {
            let local = sa.path.local;
            let remote = path.remote;
            self.moved(spi, Path { local, remote }, None);
        }
    }

    /// Whether a path leads to an address of the IKE SA's peer (S5).
    fn is_own_address(&self, sa: &IkeSa, path: Path) -> bool {
        let established = sa.established();
        let peer = established.and_then(|established| self.peers.get(&established.peer));
        peer.is_some_and(|peer| peer.config.addresses.contains(&path.remote.ip()))
    }

    /// Puts an IKE SA on another path and tells the driver, if that is news.
    fn moved(&mut self, spi: u64, path: Path, nat: Option<Nat>) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        sa.path = path;
        sa.nat = nat.unwrap_or(sa.nat);
        self.tell_address(spi);
    }

    fn tell_address(&mut self, spi: u64) {
        let Some(sa) = self.sas.get(&spi) else {
            return;
        };
        let (path, udp_encapsulation) = (sa.path, sa.encapsulation());
        let Some(peer) = sa.established().map(|established| established.peer.clone()) else {
            return;
        };
        tracing::info!(%peer, local = %path.local, remote = %path.remote, "address changed");
        self.events.push_back(Event::AddressChanged {
            peer,
            path,
            udp_encapsulation,
        });
    }

    /// What an INFORMATIONAL request says about addresses (RFC 4555 §3.5, §3.7, §3.8): does it, and gives the answer's part.
    pub(super) fn receive_addresses(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        payloads: &[Payload<'_>],
    ) -> Reply {
        let mut reply = Reply(Vec::new());
        let Some(sa) = self.sas.get(&spi) else {
            return reply;
        };
        let cookie = notify(payloads, NotifyType::Cookie2);
        if let Some(cookie) = cookie.filter(|cookie| (8..=64).contains(&cookie.len())) {
            reply.0.push((NotifyType::Cookie2, cookie.to_vec()));
        }
        let update = notify(payloads, NotifyType::UpdateSaAddresses).is_some();
        if update && sa.peer_may_move() {
            let path = received.path;
            if !self.is_own_address(sa, path) {
                tracing::warn!(remote = %path.remote, "the peer wants to move to an address that its Node does not have: refused");
                reply.0.push((NotifyType::UnacceptableAddresses, vec![]));
                return reply;
            }
            if !fits(notify(payloads, NotifyType::NoNatsAllowed), path) {
                reply.0.push((NotifyType::UnexpectedNatDetected, vec![]));
                return reply;
            }
            self.peer_moved(spi, path, payloads);
        }
        let asked = seen_as(payloads).is_some();
        if let Some(sa) = self.sas.get(&spi).filter(|_| asked) {
            reply.detection(sa, received.path);
        }
        reply
    }

    /// IKE follows at once, the CHILD_SAs when the peer has shown that it receives there.
    fn peer_moved(&mut self, spi: u64, path: Path, payloads: &[Payload<'_>]) {
        let Some(sa) = self.sas.get_mut(&spi) else {
            return;
        };
        let nat = detected(sa, payloads, path);
        if (sa.path, sa.nat) != (path, nat) {
            (sa.path, sa.nat) = (path, nat);
            sa.mobility.check = true;
        }
    }

    /// The heir of an IKE SA is where that one has got to, and says what that one still had to say.
    pub(super) fn inherit_path(&mut self, old: u64, new: u64) {
        let Some(sa) = self.sas.get_mut(&old) else {
            return;
        };
        let (path, nat, mobility) = (sa.path, sa.nat, std::mem::take(&mut sa.mobility));
        if let Some(heir) = self.sas.get_mut(&new) {
            (heir.path, heir.nat, heir.mobility) = (path, nat, mobility);
        }
    }

    /// The response to one of this end's INFORMATIONAL requests about addresses.
    pub(super) fn addresses_answered(
        &mut self,
        spi: u64,
        request: &Request,
        payloads: &[Payload<'_>],
        now: Instant,
    ) {
        match request {
            Request::Update(paths) => self.update_answered(spi, **paths, payloads),
            Request::Check(check) => {
                let returned = notify(payloads, NotifyType::Cookie2);
                let (path, cookie) = &**check;
                self.check_answered(spi, *path, returned == Some(cookie), now);
            }
            Request::Liveness => self.note_mapping(spi, payloads),
            _ => {}
        }
    }

    fn update_answered(&mut self, spi: u64, (from, to): (Path, Path), payloads: &[Payload<'_>]) {
        let Some(sa) = self.sas.get_mut(&spi).filter(|sa| sa.path == to) else {
            // This end has moved again meanwhile, and says so next.
            return;
        };
        if let Some((kind, _)) = error_notify(payloads) {
            tracing::warn!(remote = %to.remote, ?kind, "the peer refuses the new address: is it one of this Node's?");
            sa.path = from;
            return;
        }
        let nat = detected(sa, payloads, to);
        sa.mobility.seen_as = seen_as(payloads).map(Box::from);
        if from != to || sa.nat != nat {
            self.moved(spi, to, Some(nat));
        }
    }

    /// RFC 4555 §3.7: one that does not return the cookie loses the IKE SA.
    fn check_answered(&mut self, spi: u64, path: Path, returned: bool, now: Instant) {
        let Some(sa) = self.sas.get(&spi) else {
            return;
        };
        let Some(id) = sa.established().map(|sa| sa.peer.clone()) else {
            return;
        };
        if !returned {
            tracing::warn!(peer = %id, "the peer did not return COOKIE2 from its new address");
            self.retire(spi, CloseReason::Local, Some(Goodbye::Plain));
            return self.after_loss(&id, CloseReason::Local, now);
        }
        if sa.path == path {
            self.tell_address(spi);
        }
    }

    /// A NAT in front of this end may forget how it translates: the peer says how it sees this end (RFC 4555 §3.8).
    fn note_mapping(&mut self, spi: u64, payloads: &[Payload<'_>]) {
        let Some(sa) = self.sas.get_mut(&spi).filter(|sa| sa.watches_mapping()) else {
            return;
        };
        let Some(seen) = seen_as(payloads) else {
            return;
        };
        let same = sa.mobility.seen_as.as_deref() == Some(seen);
        sa.mobility.seen_as = Some(Box::from(seen));
        if !same {
            let path = sa.path;
            sa.mobility.update.get_or_insert_with(|| Box::new(path));
        }
    }

    /// Asks whether the peer is alive; behind a NAT also, how it sees this end.
    pub(super) fn ask_liveness(&mut self, spi: u64, now: Instant) {
        let Some(sa) = self.sas.get(&spi) else {
            return;
        };
        let detection = Detection::new(sa.spis(), sa.path, sa.nat.forced);
        let detection = detection.payloads();
        let payloads = if sa.watches_mapping() {
            &detection[..]
        } else {
            &[]
        };
        self.request(spi, Request::Liveness, payloads, now);
    }
}

impl Path {
    /// This path with the addresses of another. IKE that has gone to port 4500 stays there, and a peer that has not moved is
    /// where its NAT has put it.
    fn moved_to(self, new: Self) -> Self {
        let mut local = new.local;
        local.set_port(self.local.port());
        let remote = match self.local.port() {
            _ if new.remote.ip() == self.remote.ip() => self.remote,
            NAT_PORT => SocketAddr::new(new.remote.ip(), NAT_PORT),
            _ => new.remote,
        };
        Self { local, remote }
    }
}

impl IkeSa {
    /// This end may send UPDATE_SA_ADDRESSES: RFC 4555 §3.5 leaves it to the initiator; two ends of this implementation may both.
    fn may_move(&self) -> bool {
        let mesh = self.established().is_some_and(|sa| sa.mesh);
        self.mobility.mobike && (self.role == Role::Initiator || mesh)
    }

    fn peer_may_move(&self) -> bool {
        let mesh = self.established().is_some_and(|sa| sa.mesh);
        self.mobility.mobike && (self.role == Role::Responder || mesh)
    }

    fn watches_mapping(&self) -> bool {
        self.nat.local && self.may_move()
    }
}

/// What the notifies of a message on `path` say, and what this end pretends.
fn detected(sa: &IkeSa, payloads: &[Payload<'_>], path: Path) -> Nat {
    let forced = sa.nat.forced;
    let nat = Nat::detect(payloads, sa.spis(), path);
    Nat {
        forced,
        ..nat.unwrap_or_default()
    }
}

/// NO_NATS_ALLOWED (RFC 4555 §4.2.5): source and destination address and port as the sender knows them.
fn fits(said: Option<&[u8]>, path: Path) -> bool {
    let octets = |at: SocketAddr| match at.ip() {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let ports = [path.remote.port(), path.local.port()].map(u16::to_be_bytes);
    let seen = [octets(path.remote), octets(path.local), ports.concat()].concat();
    said.is_none_or(|said| said == seen)
}
