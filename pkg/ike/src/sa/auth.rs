//! IKE_AUTH's proofs (RFC 7296 §2.15, RFC 7427): made for this side, checked for the other.

use std::time::Duration;

use super::{Negotiated, PpkUse};
use crate::config::{Config, Identity, PeerAuth, PeerConfig, Ppk};
use crate::crypto::SignedOctets;
use crate::crypto::auth::{psk_auth, verify_psk_auth};
use crate::error::Failure;
use crate::event::Role;
use crate::identity::{IdentityError, verify_peer};
use crate::limits;
use crate::wire::{Auth, AuthMethod, CertEncoding, Certificate, IdType, Identification, Payload};

/// This side's identity payload.
pub(crate) fn own_id(config: &Config) -> Identification<'_> {
    Identification::new(IdType::Fqdn, config.identity.0.as_bytes())
}

/// The node name in an identity payload; text only that is safe in a log.
pub(crate) fn node_name(id: &Identification<'_>) -> Option<Identity> {
    let name = std::str::from_utf8(id.data)
        .ok()
        .filter(|_| id.kind == IdType::Fqdn)?;
    is_node_name(name).then(|| Identity(name.into()))
}

/// Printable ASCII of bounded length.
pub(crate) fn is_node_name(name: &str) -> bool {
    (1..=limits::IDENTITY_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Certificates and AUTH data to send.
pub(crate) struct Proof<'a> {
    chain: Vec<&'a [u8]>,
    method: AuthMethod,
    data: Vec<u8>,
}

impl Proof<'_> {
    /// AUTH data.
    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }

    /// CERT payloads and AUTH payload.
    pub(crate) fn payloads(&self) -> Vec<Payload<'_>> {
        let auth = Auth {
            method: self.method,
            data: &self.data,
        };
        let encoding = CertEncoding::X509Signature;
        let certs = self
            .chain
            .iter()
            .map(|data| Payload::Cert(Certificate { encoding, data }));
        certs.chain([Payload::Auth(auth)]).collect()
    }
}

/// Proves this side's identity to a peer that expects `auth`; with a `ppk` that is not mixed into the keys yet.
pub(crate) fn prove<'a>(
    config: &'a Config,
    peer: &PeerConfig,
    negotiated: &Negotiated,
    role: Role,
    ppk: Option<&Ppk>,
) -> Result<Proof<'a>, Failure> {
    let (_, nonce) = nonces(negotiated, role);
    let id = own_id(config).body();
    let sk_p = &negotiated.keys.sk_p_local;
    let sk_p = match ppk {
        Some(ppk) => &sk_p.mixed(&ppk.key)?,
        None => sk_p,
    };
    let octets = SignedOctets::new(&negotiated.sent, nonce, sk_p, &id);
    let octets = with_intermediate(octets, negotiated);
    let failed = |error| Failure::Auth {
        peer: peer.identity.clone(),
        error,
    };
    let psk = match &peer.auth {
        PeerAuth::Psk(psk) => psk,
        PeerAuth::Certificate => return sign(config, peer, negotiated, &octets),
    };
    let data = psk_auth(psk, &octets).map_err(failed)?.expose().to_vec();
    Ok(Proof {
        chain: Vec::new(),
        method: AuthMethod::SharedKey,
        data,
    })
}

fn sign<'a>(
    config: &'a Config,
    peer: &PeerConfig,
    negotiated: &Negotiated,
    octets: &SignedOctets,
) -> Result<Proof<'a>, Failure> {
    let own = |error| Failure::Certificate {
        peer: peer.identity.clone(),
        error,
    };
    let credentials = config
        .credentials
        .as_ref()
        .ok_or(own(IdentityError::NoCertificate))?;
    let wanted = credentials.scheme().hash_id();
    if !negotiated.hashes.contains(&wanted) {
        let (peer, listed) = (peer.identity.to_string(), negotiated.hashes.clone());
        return Err(Failure::Hash {
            peer,
            wanted,
            listed,
        });
    }
    let failed = |error| Failure::Auth {
        peer: peer.identity.clone(),
        error,
    };
    let data = credentials.sign(octets).map_err(failed)?;
    Ok(Proof {
        chain: credentials.chain().collect(),
        method: AuthMethod::DigitalSignature,
        data,
    })
}

/// Checks that the peer is who its identity payload says, in the configured way and no other. `role` is this side's.
pub(crate) fn verify(
    config: &Config,
    peer: &PeerConfig,
    negotiated: &Negotiated,
    role: Role,
    payloads: &[Payload<'_>],
    id: &Identification<'_>,
    unix: Duration,
) -> Result<(), Failure> {
    let who = || peer.identity.clone();
    let auth = payloads.iter().find_map(|payload| match payload {
        Payload::Auth(auth) => Some(auth),
        _ => None,
    });
    let auth = auth.ok_or_else(|| Failure::NoAuth { peer: who() })?;
    let (nonce, _) = nonces(negotiated, role);
    let octets = SignedOctets::new(
        &negotiated.received,
        nonce,
        &negotiated.keys.sk_p_remote,
        &id.body(),
    );
    let octets = with_intermediate(octets, negotiated);
    let failed = |error| {
        let failure = Failure::Auth { peer: who(), error };
        match negotiated.ppk {
            PpkUse::Mixed => Failure::PpkDiffers {
                failure: Box::new(failure),
            },
            PpkUse::No | PpkUse::Agreed => failure,
        }
    };
    match (&peer.auth, auth.method) {
        (PeerAuth::Psk(psk), AuthMethod::SharedKey) => {
            verify_psk_auth(psk, &octets, auth.data).map_err(failed)
        }
        (PeerAuth::Certificate, AuthMethod::DigitalSignature) => {
            let verified = verify_peer(
                &config.trust,
                &chain(payloads),
                &peer.identity,
                peer.uid.as_deref(),
                unix,
            );
            let verified = verified.map_err(|error| Failure::Certificate { peer: who(), error })?;
            verified
                .verify_signature(&octets, auth.data)
                .map_err(failed)
        }
        (PeerAuth::Psk(_), got) => Err(Failure::Method {
            peer: who(),
            expected: "a PSK",
            got,
        }),
        (PeerAuth::Certificate, got) => Err(Failure::Method {
            peer: who(),
            expected: "a certificate",
            got,
        }),
    }
}

/// The certificates sent, the peer's own first. Of other encodings nothing is read, and nothing is ever fetched.
fn chain<'a>(payloads: &[Payload<'a>]) -> Vec<&'a [u8]> {
    let certs = payloads.iter().filter_map(|payload| match payload {
        Payload::Cert(cert) if cert.encoding == CertEncoding::X509Signature => Some(cert.data),
        _ => None,
    });
    certs.collect()
}

fn with_intermediate(octets: SignedOctets, negotiated: &Negotiated) -> SignedOctets {
    match &negotiated.intermediate {
        Some(chains) => octets.with_intermediate(chains, negotiated.auth_id()),
        None => octets,
    }
}

/// (own nonce, the other side's).
fn nonces(negotiated: &Negotiated, role: Role) -> (&[u8], &[u8]) {
    match role {
        Role::Initiator => (&negotiated.nonce_i, &negotiated.nonce_r),
        Role::Responder => (&negotiated.nonce_r, &negotiated.nonce_i),
    }
}
