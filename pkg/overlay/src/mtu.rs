//! How large a pod's packet may be. Pure.
//!
//! One value for each framing and underlay, whatever encrypts now and whether anything does: toggles, other suites and other
//! encapsulations never change a pod's MTU. The largest of all is ESP in UDP with an 8-byte IV and a 16-byte ICV:
//!
//! ```text
//!  IP 20 or 40 │ UDP 8 │ ESP 8 │ IV 8 │ framing 30 or 0 │ pod packet │ padding 0…3 │ trailer 2 │ ICV 16
//! ```
//!
//! AH takes 32 in the place of UDP, ESP, IV, trailer and ICV: 42. In IP in IP the outer header is the transport mode packet's
//! own, with native routing the tunnel's, so both take the same.

use std::net::IpAddr;

use crate::Framing;

/// Outer header of ESP in UDP without IP, IV and ICV included.
const FIXED: u32 = 8 + 8 + 8 + 16;
/// UDP 8, VXLAN 8, Ethernet 14.
const VXLAN: u32 = 30;
/// Padding length and next header (RFC 4303 §2.4).
const TRAILER: u32 = 2;
/// What ESP seals ends on a multiple of this.
const ALIGN: u32 = 4;

/// Largest pod packet over an underlay with this MTU; `None`: no room at all.
pub(crate) fn pod_mtu(framing: Framing, local: IpAddr, underlay: u32) -> Option<u32> {
    let sealed = underlay.checked_sub(outer(local))? / ALIGN * ALIGN;
    sealed.checked_sub(inner(framing) + TRAILER)
}

/// Smallest underlay MTU that carries such a pod packet.
pub(crate) fn least_underlay(framing: Framing, local: IpAddr, pod: u32) -> u32 {
    outer(local) + (inner(framing) + pod + TRAILER).next_multiple_of(ALIGN)
}

fn outer(local: IpAddr) -> u32 {
    FIXED + if local.is_ipv4() { 20 } else { 40 }
}

fn inner(framing: Framing) -> u32 {
    match framing {
        Framing::Vxlan => VXLAN,
        Framing::Ipip | Framing::Native => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "192.0.2.1";
    const V6: &str = "2001:db8::1";

    #[test]
    fn each_mode_has_its_mtu() {
        let cases = [
            (Framing::Vxlan, V4, 1500, 1408),
            (Framing::Vxlan, V6, 1500, 1388),
            (Framing::Ipip, V4, 1500, 1438),
            (Framing::Ipip, V6, 1500, 1418),
            (Framing::Native, V4, 1500, 1438),
            (Framing::Native, V6, 1500, 1418),
            (Framing::Vxlan, V4, 9001, 8908),
            (Framing::Vxlan, V4, 1460, 1368),
            (Framing::Ipip, V4, 8951, 8886),
        ];
        for (framing, local, underlay, expected) in cases {
            let local = local.parse().unwrap();
            let pod = pod_mtu(framing, local, underlay);
            assert_eq!(pod, Some(expected), "{framing:?} {local} {underlay}");
        }
        assert_eq!(pod_mtu(Framing::Vxlan, V4.parse().unwrap(), 50), None);
    }

    /// The largest pod packet fits with every suite and encapsulation, and one byte more does not.
    #[test]
    fn the_largest_packet_fits_whatever_encrypts() {
        for framing in [Framing::Vxlan, Framing::Ipip, Framing::Native] {
            for local in [V4, V6].map(|ip| ip.parse::<IpAddr>().unwrap()) {
                for underlay in 1300..1310 {
                    let pod = pod_mtu(framing, local, underlay).unwrap();
                    assert!(least_underlay(framing, local, pod) <= underlay);
                    assert!(least_underlay(framing, local, pod + 1) > underlay);
                    let ip = if local.is_ipv4() { 20 } else { 40 };
                    let (clear, ah) = (ip + inner(framing) + pod, 12 + 16 + 4);
                    assert!(clear + ah <= underlay, "{framing:?} AH");
                    let raw = ip + 16 + (inner(framing) + pod + TRAILER).next_multiple_of(4) + 16;
                    assert!(raw <= underlay, "{framing:?} ESP");
                }
            }
        }
    }
}
