//! Post-quantum preshared keys (RFC 8784): what IKE_AUTH says about them, and which proof counts.

use crate::config::{PeerConfig, Ppk};
use crate::error::Failure;
use crate::wire::{Notify, NotifyType, Payload};

use super::notify;

/// PPK_ID_FIXED (RFC 8784 §5.1): a key known by name on both ends.
const FIXED: u8 = 2;

/// PPK_IDENTITY of a request: which key the AUTH payload was made with.
pub(crate) fn identity(ppk: &Ppk) -> Vec<u8> {
    [&[FIXED], ppk.id.as_bytes()].concat()
}

/// What an initiator adds to its IKE_AUTH request. `fallback`: the AUTH data without PPK, where it can do without.
pub(crate) fn said<'a>(identity: &'a [u8], fallback: Option<&'a [u8]>) -> Vec<Payload<'a>> {
    let identity = Notify::new(NotifyType::PpkIdentity, identity);
    let fallback = fallback.map(|data| Notify::new(NotifyType::NoPpkAuth, data));
    let both = [Some(identity), fallback].into_iter().flatten();
    both.map(Payload::Notify).collect()
}

/// Which proof of an initiator counts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Proof<'p, 'a> {
    /// The AUTH payload, made without PPK.
    Plain,
    /// The AUTH payload, made with this PPK.
    With(&'p Ppk),
    /// NO_PPK_AUTH: this AUTH data, made without PPK.
    Fallback(&'a [u8]),
}

/// Reads an IKE_AUTH request of `peer`; `agreed`: both ends sent USE_PPK (RFC 8784 §3, the responder's table).
pub(crate) fn judge<'p, 'a>(
    peer: &'p PeerConfig,
    agreed: bool,
    payloads: &[Payload<'a>],
) -> Result<Proof<'p, 'a>, Failure> {
    let named = notify(payloads, NotifyType::PpkIdentity).filter(|_| agreed);
    let fallback = notify(payloads, NotifyType::NoPpkAuth).filter(|_| named.is_some());
    if let Some(ppk) = peer.ppk.as_ref()
        && named == Some(&identity(ppk))
    {
        return Ok(Proof::With(ppk));
    }
    let who = || peer.identity.clone();
    match (named, fallback) {
        _ if peer.requires_ppk() => Err(Failure::PpkRequired { peer: who() }),
        (None, _) => Ok(Proof::Plain),
        (Some(_), Some(data)) => Ok(Proof::Fallback(data)),
        (Some(named), None) => Err(Failure::PpkUnknown {
            peer: who(),
            named: String::from_utf8_lossy(named.get(1..).unwrap_or_default())
                .escape_debug()
                .take(crate::limits::PPK_ID_MAX)
                .collect(),
        }),
    }
}

/// `payloads` with other AUTH data.
pub(crate) fn with_auth<'a>(payloads: &[Payload<'a>], data: &'a [u8]) -> Vec<Payload<'a>> {
    let mut payloads = payloads.to_vec();
    for payload in &mut payloads {
        if let Payload::Auth(auth) = payload {
            auth.data = data;
        }
    }
    payloads
}
