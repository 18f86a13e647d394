//! The responder's answer to an IKE_AUTH request that was verified (RFC 7296 §1.2, §1.3; RFC 6023).

use super::Endpoint;
use super::informational::announcement;
use super::reauth::auth_lifetime;
use super::receive::Received;
use super::respond::no_state;
use crate::child::{self, Agreed};
use crate::config::{ChildId, Identity, PeerConfig};
use crate::crypto::Secrets;
use crate::error::Failure;
use crate::event::{ChildSa, Role};
use crate::sa::auth::{own_id, prove};
use crate::sa::{HalfOpen, PpkUse, State};
use crate::wire::{Notify, NotifyType, Payload};

/// What a verified IKE_AUTH request is answered with.
pub(super) struct Verdict {
    pub(super) peer: Identity,
    /// `None`: the peer wants none yet.
    pub(super) child: Result<Option<(Agreed, ChildSa)>, Failure>,
    pub(super) announcement: Option<Vec<u8>>,
}

impl Endpoint {
    pub(super) fn accept_auth(&mut self, spi: u64, received: &Received<'_>, verdict: Verdict) {
        let Verdict {
            peer: id,
            child,
            announcement: theirs,
        } = verdict;
        if let Err(failure) = self.answer_auth(spi, received, &id, &child) {
            if let Ok(Some((_, child))) = &child {
                self.spis.remove(&child.spi_in);
            }
            return self.refuse_auth(spi, received, Some(id), failure);
        }
        if let Some(sa) = self.sas.get_mut(&spi) {
            sa.path = received.path;
        }
        let older = self.half_open_older(spi);
        self.leave_half_open(spi);
        match child {
            Ok(Some((_, child))) => {
                older.into_iter().for_each(|spi| self.forget(spi));
                self.abandon_crossed(&id);
                self.establish_responder(spi, &id, child, theirs, received.now);
            }
            // The first one follows by CREATE_CHILD_SA (RFC 6023).
            Ok(None) => self.establish_childless(spi, &id, received.now),
            Err(failure) => {
                self.handshake_failed(Some(id.clone()), received.path, failure);
                self.establish_childless(spi, &id, received.now);
            }
        }
    }

    /// IDr, proof, and the CHILD_SA or why there is none (RFC 7296 §1.3: the IKE SA stands all the same).
    fn answer_auth(
        &mut self,
        spi: u64,
        received: &Received<'_>,
        id: &Identity,
        child: &Result<Option<(Agreed, ChildSa)>, Failure>,
    ) -> Result<(), Failure> {
        let config = self.config.clone();
        let (peer, state) = match (self.peers.get(id), self.half_open_state(spi)) {
            (Some(peer), Some(state)) => (peer, state),
            _ => return Err(no_state()),
        };
        let negotiated = &state.negotiated;
        let proof = prove(&config, &peer.config, negotiated, Role::Responder, None)?;
        let ppk =
            (negotiated.ppk == PpkUse::Mixed).then(|| Notify::new(NotifyType::PpkIdentity, &[]));
        let said = state.negotiated.mesh.then(|| peer.announcement.clone());
        let mobike = self.sas.get(&spi).is_some_and(|sa| sa.mobility.mobike);
        let mobike = mobike.then(|| Notify::new(NotifyType::MobikeSupported, &[]));
        let lifetime = auth_lifetime(&config.rekeying);
        let mut payloads = vec![Payload::IdR(own_id(&config))];
        payloads.extend(proof.payloads());
        let lifetime = lifetime
            .as_ref()
            .map(|data| Notify::new(NotifyType::AuthLifetime, data));
        payloads.extend(lifetime.map(Payload::Notify));
        payloads.extend(mobike.into_iter().chain(ppk).map(Payload::Notify));
        match child {
            Ok(None) => {}
            Ok(Some((agreed, child))) => {
                payloads.extend(agreed.payloads(child.spi_in));
                payloads.extend(said.as_deref().map(announcement));
            }
            Err(failure) => payloads.push(Payload::Notify(Notify::new(failure.notify(), &[]))),
        }
        self.respond(spi, received, &payloads);
        Ok(())
    }

    /// This node's own handshake gives way to the one that was accepted. The lower identity's, once it has sent IKE_AUTH,
    /// goes on: the peer may have taken it, and then it is the newer one on both ends.
    pub(super) fn abandon_crossed(&mut self, id: &Identity) {
        let attempt = self
            .peers
            .get(id)
            .and_then(|peer| self.sas.get(&peer.attempt?));
        let sent_auth = attempt.is_some_and(|own| matches!(own.state, State::AuthSent(_)));
        if !(self.config.identity < *id && sent_auth) {
            self.abandon_attempt(id, false);
        }
    }
}

/// The first CHILD_SA with its keys, if the peer asks for it, or why there is none.
pub(super) fn agree_child(
    peer: &PeerConfig,
    state: &HalfOpen,
    nat: bool,
    spi_in: u32,
    payloads: &[Payload<'_>],
) -> Result<Option<(Agreed, ChildSa)>, Failure> {
    let about_child = |payload: &Payload<'_>| {
        matches!(payload, Payload::Sa(_) | Payload::TsI(_) | Payload::TsR(_))
    };
    if !payloads.iter().any(about_child) {
        return Ok(None);
    }
    let heard = child::Heard::read(payloads)?;
    let config = peer.child.within(state.negotiated.mesh, nat);
    let agreed = child::accept(&peer.identity, &config, &heard)?;
    let (sk_d, nonces) = (&state.negotiated.keys.sk_d, state.negotiated.nonces());
    let child = agreed.clone().key(
        ChildId::FIRST,
        spi_in,
        Role::Responder,
        sk_d,
        nonces,
        Secrets::default(),
    )?;
    Ok(Some((agreed, child)))
}
