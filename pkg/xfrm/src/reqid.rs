//! Which reqids are ours, and whose.

use std::ops::RangeInclusive;

use espalier_dataplane_core::PeerId;

/// States with these reqids are ours; all others are never touched.
pub const REQIDS: RangeInclusive<u32> = 0x4553_0000..=0x4553_ffff;
/// Of states that are only there to see whether the kernel takes them.
pub(crate) const PROBE_REQID: u32 = *REQIDS.start();
/// The peers'.
pub(crate) const PEERS: RangeInclusive<u32> = PROBE_REQID + 1..=*REQIDS.end();

const STRANGER: &str = "reqid-";

/// What a peer is called whose name is not known any more: only its states are left.
pub(crate) fn stranger(reqid: u32) -> PeerId {
    PeerId(format!("{STRANGER}{reqid:08x}"))
}

/// The reqid of a [`stranger`].
pub(crate) fn of_stranger(id: &PeerId) -> Option<u32> {
    let digits = id.0.strip_prefix(STRANGER)?;
    let reqid = u32::from_str_radix(digits, 16).ok()?;
    (PEERS.contains(&reqid) && stranger(reqid) == *id).then_some(reqid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_known_by_their_reqid_and_nothing_else_is() {
        assert_eq!(stranger(0x4553_0007).0, "reqid-45530007");
        assert_eq!(
            of_stranger(&PeerId("reqid-45530007".into())),
            Some(0x4553_0007)
        );
        for name in [
            "node-a",
            "reqid-",
            "reqid-7",
            "reqid-45530000",
            "reqid-+5530007",
        ] {
            assert_eq!(of_stranger(&PeerId(name.into())), None, "{name}");
        }
    }
}
