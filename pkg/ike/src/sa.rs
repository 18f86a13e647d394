//! One IKE SA: a [`State`] and the exchanges in flight, two types. What it says is in [`init`] and [`auth`]; who may say
//! what, and what follows, is decided by the endpoint.

pub(crate) mod auth;
mod datagrams;
pub(crate) mod init;
pub(crate) mod nat;
pub(crate) mod ppk;
mod proposals;
mod reassembly;
mod rekey;

use std::net::SocketAddr;
use std::time::Instant;

use crate::config::{ChildId, Identity, Ppk, Volume};
use crate::crypto::{
    CryptoError, IntAuth, Kem, KemKey, KeyExchange, Nonces, Opener, RoleKeys, Sealer, Secrets,
    SharedSecret, SkD, SkeySeed, Spis,
};
use crate::event::{ChildSa, Encapsulation, Path, Role};
use crate::exchange::Exchanges;
use crate::suite::ChildSuite;
use crate::wire::{self, ExchangeType, Flags, Header, Payload, PayloadType, ProtocolId};

pub(crate) use datagrams::{Fragmentation, Opened, Sealed, covered};
pub(crate) use rekey::{Crossed, FollowUp, Made, Pending, PendingWhat, Rekey, What};

/// Where an IKE SA is in its life. Each state holds what is needed in it and no more.
#[derive(Debug)]
pub(crate) enum State {
    /// Initiator: IKE_SA_INIT sent.
    InitSent(Box<InitSent>),
    /// Initiator: IKE_INTERMEDIATE sent.
    IntermediateSent(Box<IntermediateSent>),
    /// Initiator: IKE_AUTH sent.
    AuthSent(Box<AuthSent>),
    /// Responder: IKE_SA_INIT answered.
    HalfOpen(Box<HalfOpen>),
    /// Authenticated.
    Established(Box<Established>),
    /// Gone here; its keys stay until the DELETE of either side is acknowledged.
    Closing(Box<Closing>),
    /// Gone on both sides; the last response stays for the peer's retransmissions.
    Closed,
}

/// See [`State::InitSent`].
#[derive(Debug)]
pub(crate) struct InitSent {
    pub(crate) peer: Identity,
    pub(crate) kex: KeyExchange,
    pub(crate) nonce: Vec<u8>,
    /// Empty: none was asked for.
    pub(crate) cookie: Vec<u8>,
    pub(crate) request: Vec<u8>,
    pub(crate) restarts: u32,
    /// What unauthenticated answers said that were not believed.
    pub(crate) told: Option<String>,
}

/// See [`State::IntermediateSent`].
#[derive(Debug)]
pub(crate) struct IntermediateSent {
    pub(crate) peer: Identity,
    pub(crate) negotiated: Negotiated,
    pub(crate) kem: KemKey,
}

/// What IKE_SA_INIT agreed, and IKE_INTERMEDIATE added.
#[derive(Debug)]
pub(crate) struct Negotiated {
    pub(crate) chosen: init::Chosen,
    pub(crate) keys: RoleKeys,
    /// IKE_SA_INIT as this side sent it.
    pub(crate) sent: Vec<u8>,
    /// IKE_SA_INIT as it was received.
    pub(crate) received: Vec<u8>,
    pub(crate) nonce_i: Vec<u8>,
    pub(crate) nonce_r: Vec<u8>,
    /// The peer sent our vendor ID.
    pub(crate) mesh: bool,
    /// Its SIGNATURE_HASH_ALGORITHMS.
    pub(crate) hashes: Vec<u16>,
    pub(crate) intermediate: Option<IntAuth>,
    /// The responder takes an IKE_AUTH without CHILD_SA.
    pub(crate) childless: bool,
    pub(crate) ppk: PpkUse,
}

/// How far both ends are with a post-quantum preshared key (RFC 8784).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PpkUse {
    /// Not both have one.
    No,
    /// Both sent USE_PPK.
    Agreed,
    /// It is mixed into the keys.
    Mixed,
}

impl Negotiated {
    /// Mixes a PPK into the keys that IKE_AUTH proves and CHILD_SAs come from.
    pub(crate) fn mix(&mut self, ppk: &Ppk) -> Result<(), CryptoError> {
        self.ppk = PpkUse::Mixed;
        self.keys.mix_ppk(&ppk.key)
    }

    /// The message ID of IKE_AUTH.
    pub(crate) fn auth_id(&self) -> u32 {
        1 + u32::from(self.intermediate.is_some())
    }

    /// Takes in a secret of an additional key exchange and both messages that brought it (RFC 9370 §2.2.2). `role` is this
    /// side's; returns the keys before.
    pub(crate) fn add(
        &mut self,
        shared: &SharedSecret,
        spis: Spis,
        role: Role,
        covered: Covered<'_>,
    ) -> Result<RoleKeys, CryptoError> {
        let nonces = self.nonces();
        let seed = SkeySeed::rekey(
            &self.keys.sk_d,
            self.chosen.suite,
            nonces,
            Secrets::one(shared),
        );
        let keys = seed.into_keys(nonces, spis)?.for_role(role)?;
        let other = match role {
            Role::Initiator => Role::Responder,
            Role::Responder => Role::Initiator,
        };
        let chains = self.intermediate.get_or_insert_default();
        chains.add(role, &self.keys.sk_p_local, covered.sent);
        chains.add(other, &self.keys.sk_p_remote, covered.received);
        Ok(std::mem::replace(&mut self.keys, keys))
    }

    pub(crate) fn nonces(&self) -> Nonces<'_> {
        Nonces {
            initiator: &self.nonce_i,
            responder: &self.nonce_r,
        }
    }
}

/// What is authenticated of both messages of an IKE_INTERMEDIATE exchange (RFC 9242 §3.3.2).
#[derive(Clone, Copy)]
pub(crate) struct Covered<'a> {
    pub(crate) sent: &'a [u8],
    pub(crate) received: &'a [u8],
}

/// See [`State::AuthSent`].
#[derive(Debug)]
pub(crate) struct AuthSent {
    pub(crate) peer: Identity,
    pub(crate) negotiated: Negotiated,
    pub(crate) spi_in: u32,
    /// No CHILD_SA was asked for.
    pub(crate) childless: bool,
    /// Not wanted any more: deleted as soon as the peer answers.
    pub(crate) doomed: bool,
}

/// See [`State::HalfOpen`].
#[derive(Debug)]
pub(crate) struct HalfOpen {
    pub(crate) negotiated: Negotiated,
    /// Where IKE_SA_INIT came from: the key in the table of half-open IKE SAs.
    pub(crate) from: SocketAddr,
    /// The additional key exchange that comes before IKE_AUTH.
    pub(crate) awaits: Option<Kem>,
    /// The keys of the IKE_INTERMEDIATE that was answered last: it may come again in other fragments.
    pub(crate) before: Option<Box<(Sealer, Opener)>>,
}

/// A CHILD_SA pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChildRef {
    pub(crate) id: ChildId,
    pub(crate) spi_in: u32,
    pub(crate) spi_out: u32,
    pub(crate) suite: ChildSuite,
    pub(crate) esn: bool,
    pub(crate) volume: Volume,
    /// Further ones, one for each CPU, may be made of it (RFC 9611).
    pub(crate) per_cpu: bool,
    /// This end's in the exchange that made it.
    pub(crate) role: Role,
    /// Inbound SPI of the CHILD_SA that it was made to replace.
    pub(crate) replaces: Option<u32>,
    /// The peer acknowledged what this end, which made it, said after that: it does not use what this replaces any more.
    pub(crate) confirmed: bool,
    /// The peer is known to have it: it answered, or has asked something since it was answered.
    pub(crate) known: bool,
    /// Since when both ends are known to be able to use it: confirmed where this end made it, known where the peer did.
    pub(crate) ready: Option<Instant>,
}

impl ChildRef {
    pub(crate) fn new(child: &ChildSa, replaces: Option<u32>) -> Self {
        Self {
            id: child.id,
            spi_in: child.spi_in,
            spi_out: child.spi_out,
            suite: child.suite,
            esn: child.esn,
            volume: child.volume,
            per_cpu: child.per_cpu,
            role: child.role,
            replaces,
            confirmed: false,
            known: child.role == Role::Initiator,
            ready: None,
        }
    }

    /// ESP or AH.
    pub(crate) fn protocol(&self) -> ProtocolId {
        self.suite.protocol()
    }
}

/// See [`State::Established`].
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) peer: Identity,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    /// For CREATE_CHILD_SA and rekeys.
    pub(crate) sk_d: SkD,
    pub(crate) mesh: bool,
    /// Empty: childless, about to go.
    pub(crate) children: Vec<ChildRef>,
    /// Age among the IKE SAs of this endpoint.
    pub(crate) order: u64,
    /// The peer is known to have this IKE SA: it answered IKE_AUTH, or has spoken after it.
    pub(crate) proven: bool,
    /// The peer uses, or may use, the CHILD_SA: what is older may go.
    pub(crate) confirmed: bool,
    /// Announcement in the IKE_AUTH response, not acknowledged yet.
    pub(crate) carried: Option<Vec<u8>>,
    /// This end says nothing before the peer has: it does not use what this brought yet.
    pub(crate) silent: bool,
    /// This end's own CREATE_CHILD_SA under way.
    pub(crate) rekey: Option<Box<Rekey>>,
    /// The peer's, which was answered and is not complete.
    pub(crate) pending: Option<Box<Pending>>,
    /// ML-KEM is in its keys, or in those of the one that it replaced.
    pub(crate) kem: bool,
    /// CHILD_SAs that are gone here and whose DELETE waits for the window.
    pub(crate) deletes: Vec<ChildRef>,
    /// When the authentication is to be repeated, and when it ends: a rekeyed IKE SA inherits both.
    pub(crate) reauth: Reauth,
    /// It took over the CHILD_SAs of an IKE SA that it rekeyed.
    pub(crate) heir: bool,
    /// Local SPI of the IKE SA that it may succeed, if this end's own rekey of that one does not win.
    pub(crate) candidate_of: Option<u64>,
}

/// Limits of an authentication.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reauth {
    pub(crate) due: Option<Instant>,
    pub(crate) ends: Option<Instant>,
}

impl Established {
    /// The peer is about to replace this IKE SA: what is begun on it now would be lost.
    pub(crate) fn awaits_heir(&self) -> bool {
        let pending = self.pending.as_ref();
        pending.is_some_and(|pending| matches!(pending.what, PendingWhat::Ike { .. }))
    }

    /// This end's own rekey of the IKE SA is under way.
    pub(crate) fn rekeys_ike(&self) -> bool {
        let rekey = self.rekey.as_ref();
        rekey.is_some_and(|rekey| matches!(rekey.what, What::Ike { .. }))
    }
}

/// See [`State::Closing`].
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    /// A DELETE waits for the window.
    pub(crate) delete: Option<Goodbye>,
    /// Local SPI of the IKE SA that took over the CHILD_SAs.
    pub(crate) successor: Option<u64>,
    /// This end's rekey of the IKE SA under way: what comes of it must be deleted, too.
    pub(crate) rekey: Option<(Box<Rekey>, SkD)>,
}

/// What a DELETE says besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goodbye {
    /// Nothing.
    Plain,
    /// AUTHENTICATION_FAILED: the responder was not who it should be (RFC 7296 §2.21.2).
    AuthenticationFailed,
}

/// Moves of either end (RFC 4555).
#[derive(Debug, Default)]
pub(crate) struct Mobility {
    /// Both ends sent MOBIKE_SUPPORTED.
    pub(crate) mobike: bool,
    /// UPDATE_SA_ADDRESSES waits for the window; where this end was before.
    pub(crate) update: Option<Box<Path>>,
    /// The peer has moved, and the question whether it receives there waits for the window.
    pub(crate) check: bool,
    /// This end is behind a NAT: how the peer saw it last.
    pub(crate) seen_as: Option<Box<[u8]>>,
}

/// An IKE SA.
#[derive(Debug)]
pub(crate) struct IkeSa {
    /// This side's SPI: its key in the endpoint.
    pub(crate) spi: u64,
    /// The other side's; 0 until it answered.
    pub(crate) remote_spi: u64,
    pub(crate) role: Role,
    pub(crate) path: Path,
    pub(crate) started: Instant,
    /// When the peer last said something that was believed.
    pub(crate) heard: Instant,
    pub(crate) exchanges: Exchanges,
    pub(crate) fragmentation: Fragmentation,
    pub(crate) nat: nat::Nat,
    pub(crate) mobility: Mobility,
    pub(crate) state: State,
}

impl IkeSa {
    pub(crate) fn new(
        spi: u64,
        remote_spi: u64,
        role: Role,
        path: Path,
        now: Instant,
        state: State,
    ) -> Self {
        Self {
            spi,
            remote_spi,
            role,
            path,
            started: now,
            heard: now,
            exchanges: Exchanges::default(),
            fragmentation: Fragmentation::default(),
            nat: nat::Nat::default(),
            mobility: Mobility::default(),
            state,
        }
    }

    /// Both SPIs in the order of the header.
    pub(crate) fn spis(&self) -> Spis {
        match self.role {
            Role::Initiator => Spis {
                initiator: self.spi,
                responder: self.remote_spi,
            },
            Role::Responder => Spis {
                initiator: self.remote_spi,
                responder: self.spi,
            },
        }
    }

    /// Between which ends ESP must travel in UDP; `None`: it need not.
    pub(crate) fn encapsulation(&self) -> Option<Path> {
        self.nat.any().then_some(self.path)
    }

    /// The same for a CHILD_SA for which this was agreed.
    pub(crate) fn encapsulation_of(&self, agreed: Option<Encapsulation>) -> Option<Path> {
        let mut path = self.path;
        if agreed == Some(Encapsulation::Udp) {
            path.local.set_port(nat::NAT_PORT);
            path.remote.set_port(nat::NAT_PORT);
            return self.encapsulation().or(Some(path));
        }
        self.encapsulation()
    }

    pub(crate) fn header(&self, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
        let Spis {
            initiator,
            responder,
        } = self.spis();
        let flags = Flags {
            initiator: self.role == Role::Initiator,
            response,
            version: false,
        };
        let next_payload = PayloadType::None;
        Header {
            spi_i: initiator,
            spi_r: responder,
            next_payload,
            exchange,
            flags,
            message_id,
        }
    }

    /// Gives up what was kept for messages that do not come any more. Called each [`crate::limits::DPD_IDLE`] or less often.
    pub(crate) fn let_go(&mut self, now: Instant) {
        self.fragmentation.expire(now);
        self.exchanges.age_response();
    }

    /// The state's exchanges (RFC 7296 §1): requests of any other are dropped.
    pub(crate) fn admits_request(&self, exchange: ExchangeType) -> bool {
        match self.state {
            State::HalfOpen(ref state) if state.awaits.is_some() => {
                exchange == ExchangeType::IkeIntermediate
            }
            State::HalfOpen(_) => exchange == ExchangeType::IkeAuth,
            State::Established(_) => {
                matches!(
                    exchange,
                    ExchangeType::Informational
                        | ExchangeType::CreateChildSa
                        | ExchangeType::IkeFollowupKe
                )
            }
            State::Closing(_) => {
                matches!(
                    exchange,
                    ExchangeType::Informational
                        | ExchangeType::CreateChildSa
                        | ExchangeType::IkeFollowupKe
                )
            }
            State::InitSent(_)
            | State::IntermediateSent(_)
            | State::AuthSent(_)
            | State::Closed => false,
        }
    }

    /// The identity of an established peer.
    pub(crate) fn established(&self) -> Option<&Established> {
        match &self.state {
            State::Established(established) => Some(established),
            _ => None,
        }
    }

    pub(crate) fn established_mut(&mut self) -> Option<&mut Established> {
        match &mut self.state {
            State::Established(established) => Some(established),
            _ => None,
        }
    }

    fn sealer(&mut self) -> Option<&mut Sealer> {
        match &mut self.state {
            State::IntermediateSent(state) => Some(&mut state.negotiated.keys.sealer),
            State::AuthSent(state) => Some(&mut state.negotiated.keys.sealer),
            State::HalfOpen(state) => Some(&mut state.negotiated.keys.sealer),
            State::Established(state) => Some(&mut state.sealer),
            State::Closing(state) => Some(&mut state.sealer),
            State::InitSent(_) | State::Closed => None,
        }
    }

    fn opener(&self) -> Option<&Opener> {
        match &self.state {
            State::IntermediateSent(state) => Some(&state.negotiated.keys.opener),
            State::AuthSent(state) => Some(&state.negotiated.keys.opener),
            State::HalfOpen(state) => Some(&state.negotiated.keys.opener),
            State::Established(state) => Some(&state.opener),
            State::Closing(state) => Some(&state.opener),
            State::InitSent(_) | State::Closed => None,
        }
    }

    /// The keys with which the last response was sealed, where they are not the present ones.
    fn before(&mut self) -> Option<&mut (Sealer, Opener)> {
        match &mut self.state {
            State::HalfOpen(state) => state.before.as_deref_mut(),
            _ => None,
        }
    }
}

/// The first notify of a kind.
pub(crate) fn notify<'a>(payloads: &[Payload<'a>], kind: wire::NotifyType) -> Option<&'a [u8]> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Notify(notify) if notify.kind == kind => Some(notify.data),
        _ => None,
    })
}

/// The first error notify.
pub(crate) fn error_notify<'a>(payloads: &[Payload<'a>]) -> Option<(wire::NotifyType, &'a [u8])> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Notify(notify) if notify.kind.is_error() => Some((notify.kind, notify.data)),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
