//! One IKE SA, one CHILD_SA, packets.

use anyhow::bail;

use super::{Stage, Verdict, pass};
use crate::capture::Form;
use crate::foreign::{Place, Wish};
use crate::matrix::{Auth, Item, Role};
use crate::pki;

/// Encrypted fragment payload (RFC 7383 §2.5) and the exchange that it is looked for in.
const SKF: u8 = 53;
const IKE_AUTH: u8 = 35;
/// Selectors and losses that make IKE_AUTH with a PSK go in fragments.
const SELECTORS: u8 = 14;
const LOST: u32 = 3;
/// Bytes of an IP packet that the other side may fill.
const FRAGMENT: u32 = 200;

pub(super) fn transport(item: Item, place: &Place, id: &str) -> Verdict {
    simple(item, place, id, &Wish::new(item.auth))
}

pub(super) fn tunnel(item: Item, place: &Place, id: &str) -> Verdict {
    let wish = Wish {
        transport: false,
        ..Wish::new(item.auth)
    };
    simple(item, place, id, &wish)
}

pub(super) fn ah(item: Item, place: &Place, id: &str) -> Verdict {
    let wish = Wish {
        ah: true,
        ..Wish::new(item.auth)
    };
    simple(item, place, id, &wish)
}

/// Nothing translates addresses here: the initiator says so, and both use ESP in UDP.
pub(super) fn udp_encap(item: Item, place: &Place, id: &str) -> Verdict {
    let ours = item.role == Role::Initiator;
    let wish = Wish {
        encap: !ours,
        ..Wish::new(item.auth)
    };
    let mut stage = Stage::set_with(item, place, id, &wish, |config| config.force_encap = ours)?;
    stage.expect(Form::EspInUdp);
    let spis = stage.establish()?;
    stage.check_rest(&spis)?;
    pass(format!(
        "ESP in UDP, forced by {}",
        if ours { "us" } else { "them" }
    ))
}

/// With certificates, which are made large for it, IKE_AUTH does not fit one datagram. With a PSK it is cut after it was
/// lost several times, as path MTU discovery wants it (RFC 7383 §2.5.2), when we begin; when they do, their proposals are
/// many, or their limit is low.
pub(super) fn fragmentation(item: Item, place: &Place, id: &str) -> Verdict {
    let wish = Wish {
        fragment: Some(FRAGMENT),
        ..Wish::new(item.auth)
    };
    let place = &Place {
        pki: place.pki.join(pki::LARGE),
        ..place.clone()
    };
    let lost = item.auth == Auth::Psk && item.role == Role::Initiator;
    let mut stage = Stage::set_with(item, place, id, &wish, |config| {
        if lost {
            (config.more_ts, config.lose) = (SELECTORS, LOST);
        }
    })?;
    let spis = stage.establish()?;
    let messages = stage.ours.messages()?;
    let fragments = |inbound: bool| {
        let found = messages.iter();
        found
            .filter(|m| m.inbound == inbound && m.kinds() == (SKF, IKE_AUTH))
            .count()
    };
    let (theirs, ours) = (fragments(true), fragments(false));
    let (we_must, they_must) = match (item.auth, item.role) {
        (Auth::Ecdsa, _) => (true, true),
        (Auth::Psk, Role::Initiator) => (true, false),
        (Auth::Psk, Role::Responder) => (false, true),
    };
    if (they_must && theirs < 2) || (we_must && ours < 2) {
        bail!("IKE_AUTH came in {theirs} fragments and went in {ours}");
    }
    stage.check_rest(&spis)?;
    pass(format!(
        "IKE_AUTH in {theirs} fragments from them and {ours} from us"
    ))
}

fn simple(item: Item, place: &Place, id: &str, wish: &Wish) -> Verdict {
    let mut stage = Stage::set(item, place, id, wish)?;
    let spis = stage.establish()?;
    stage.check_rest(&spis)?;
    pass("packets both ways, counted by both kernels")
}
