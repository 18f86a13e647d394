//! One IKE SA, one CHILD_SA, packets.

use anyhow::bail;

use super::{Stage, Verdict, pass};
use crate::foreign::{Place, Wish};
use crate::matrix::{Auth, Item};
use crate::pki;

/// Encrypted fragment payload (RFC 7383 §2.5) and the exchange that it is looked for in.
const SKF: u8 = 53;
const IKE_AUTH: u8 = 35;
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

/// Nothing translates addresses here: one side says so, and both use ESP in UDP.
pub(super) fn udp_encap(item: Item, place: &Place, id: &str) -> Verdict {
    let wish = Wish {
        encap: true,
        ..Wish::new(item.auth)
    };
    simple(item, place, id, &wish)
}

/// The other side cuts its messages small; with certificates, which are made large for it, ours does not fit one datagram
/// either.
pub(super) fn fragmentation(item: Item, place: &Place, id: &str) -> Verdict {
    let wish = Wish {
        fragment: Some(FRAGMENT),
        ..Wish::new(item.auth)
    };
    let place = &Place {
        pki: place.pki.join(pki::LARGE),
        ..place.clone()
    };
    let mut stage = Stage::set(item, place, id, &wish)?;
    let spis = stage.establish()?;
    let messages = stage.ours.messages()?;
    let fragments = |inbound: bool| {
        let found = messages.iter();
        found
            .filter(|m| m.inbound == inbound && m.kinds() == (SKF, IKE_AUTH))
            .count()
    };
    let (theirs, ours) = (fragments(true), fragments(false));
    if theirs < 2 || (item.auth == Auth::Ecdsa && ours < 2) {
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
