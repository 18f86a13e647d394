//! One IKE SA, one CHILD_SA, packets.

use super::{Stage, Verdict, pass};
use crate::foreign::{Place, Wish};
use crate::matrix::Item;

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

fn simple(item: Item, place: &Place, id: &str, wish: &Wish) -> Verdict {
    let mut stage = Stage::set(item, place, id, wish)?;
    let spis = stage.establish()?;
    stage.check_rest(&spis)?;
    pass("packets both ways, counted by both kernels")
}
