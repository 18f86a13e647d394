//! Explicit congestion notification of a tunnel (RFC 6040, as RFC 4301 §5.1.2 and RFC 9601 have it): the two low bits of what
//! was the type of service. The upper six, DSCP, are the pod's own and stay inside.

use super::{be16, checksum};

/// Not ECN-capable.
pub const NOT_ECT: u8 = 0;
/// ECN-capable, as experiments mark it (RFC 8311).
pub const ECT_1: u8 = 1;
/// ECN-capable.
pub const ECT_0: u8 = 2;
/// Congestion experienced.
pub const CE: u8 = 3;

/// The bits of an IP packet; [`NOT_ECT`] of what is none.
#[must_use]
pub fn of(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => second & 3,
        [first, second, ..] if first >> 4 == 6 => second >> 4 & 3,
        _ => NOT_ECT,
    }
}

/// What leaves the tunnel when the outer header has `outer` and the packet inside `inner` (RFC 6040 §4.2, figure 4); `None`: the
/// packet is to be dropped, since its sender would not understand that there is congestion.
#[must_use]
pub fn leaving(outer: u8, inner: u8) -> Option<u8> {
    match (outer, inner) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(CE),
        (ECT_1, ECT_0) => Some(ECT_1),
        (_, inner) => Some(inner),
    }
}

/// Writes the bits into an IP packet, and mends the checksum of an IPv4 header (RFC 1624).
pub fn set(packet: &mut [u8], ecn: u8) {
    let ecn = ecn & 3;
    match packet {
        [first, second, ..] if *first >> 4 == 6 => *second = *second & 0xcf | ecn << 4,
        [first, second, rest @ ..] if *first >> 4 == 4 && rest.len() >= 18 => {
            let before = u16::from_be_bytes([*first, *second]);
            *second = *second & 0xfc | ecn;
            let after = u16::from_be_bytes([*first, *second]);
            let sum = u64::from(!be16(rest, 8)) + u64::from(!before) + u64::from(after);
            let header = (!checksum::fold(sum)).to_be_bytes();
            rest[8..10].copy_from_slice(&header);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040 figure 4: rows are what is inside, columns what is outside, both in the order Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn the_table_of_rfc_6040() {
        const ORDER: [u8; 4] = [NOT_ECT, ECT_0, ECT_1, CE];
        let table = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        for (inner, row) in ORDER.into_iter().zip(table) {
            for (outer, expected) in ORDER.into_iter().zip(row) {
                assert_eq!(leaving(outer, inner), expected, "{outer} around {inner}");
            }
        }
    }

    #[test]
    fn a_mark_leaves_a_right_header_behind() {
        let mut v4 = [
            0x45, 0xb9, 0, 20, 0x12, 0x34, 0x40, 0, 63, 17, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3,
        ];
        let header = !checksum::fold(checksum::sum(&v4));
        v4[10..12].copy_from_slice(&header.to_be_bytes());
        for ecn in 0..4 {
            set(&mut v4, ecn);
            assert_eq!((of(&v4), v4[1]), (ecn, 0xb8 | ecn), "DSCP stays");
            assert_eq!(checksum::fold(checksum::sum(&v4)), 0xffff);
        }
        let mut v6 = [0x6b, 0x9f, 0xff, 0xff];
        set(&mut v6, CE);
        assert_eq!((of(&v6), v6), (CE, [0x6b, 0xbf, 0xff, 0xff]));
        set(&mut [], CE);
        set(&mut [0x45, 0], CE);
        assert_eq!(of(&[0x45]), NOT_ECT);
    }
}
