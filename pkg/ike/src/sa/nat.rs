//! NAT detection (RFC 7296 §2.23): both ends hash the addresses that they see, and compare.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use aws_lc_rs::digest;

use super::notify;
use crate::crypto::Spis;
use crate::event::Path;
use crate::wire::{Notify, NotifyType, Payload};

/// Where ESP in UDP and, behind a NAT, IKE are at home (RFC 3948, RFC 7296 §2.23).
pub(crate) const NAT_PORT: u16 = 4500;

/// Whose address is translated on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nat {
    /// This end's.
    pub(crate) local: bool,
    /// The peer's.
    pub(crate) remote: bool,
    /// This end pretends that its own is, so that both use UDP encapsulation.
    pub(crate) forced: bool,
}

impl Nat {
    /// Compares the notifies of a message that came on `path` with what is seen here. `None`: the peer sent none, so it knows
    /// nothing about NATs.
    pub(crate) fn detect(payloads: &[Payload<'_>], spis: Spis, path: Path) -> Option<Self> {
        let differs = |kind, address| {
            let mut said = payloads.iter().filter_map(|payload| match payload {
                Payload::Notify(notify) if notify.kind == kind => Some(notify.data),
                _ => None,
            });
            let seen = nat_hash(spis, address);
            said.clone().next()?;
            Some(said.all(|data| data != seen))
        };
        let remote = differs(NotifyType::NatDetectionSourceIp, path.remote)?;
        let local = differs(NotifyType::NatDetectionDestinationIp, path.local)?;
        Some(Self {
            local,
            remote,
            forced: false,
        })
    }

    /// ESP must travel in UDP.
    pub(crate) fn any(self) -> bool {
        self.local || self.remote || self.forced
    }
}

/// How the peer sees this end, as it says. It changes when a NAT forgets its mapping.
pub(crate) fn seen_as<'a>(payloads: &[Payload<'a>]) -> Option<&'a [u8]> {
    notify(payloads, NotifyType::NatDetectionDestinationIp)
}

/// The data of both notifies of one message.
pub(crate) struct Detection {
    source: Vec<u8>,
    destination: Vec<u8>,
}

impl Detection {
    /// `pretend`: as if this end's address were translated. The peer then finds a NAT on this side.
    pub(crate) fn new(spis: Spis, path: Path, pretend: bool) -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let source = if pretend { nowhere } else { path.local };
        Self {
            source: nat_hash(spis, source),
            destination: nat_hash(spis, path.remote),
        }
    }

    pub(crate) fn payloads(&self) -> [Payload<'_>; 2] {
        let said = |kind, data| Payload::Notify(Notify::new(kind, data));
        [
            said(NotifyType::NatDetectionSourceIp, &self.source),
            said(NotifyType::NatDetectionDestinationIp, &self.destination),
        ]
    }
}

/// SHA-1, as the RFC fixes it; nothing is secured by it.
fn nat_hash(spis: Spis, address: SocketAddr) -> Vec<u8> {
    let (spi_i, spi_r) = (spis.initiator.to_be_bytes(), spis.responder.to_be_bytes());
    let octets = match address.ip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let input = [&spi_i[..], &spi_r, &octets, &address.port().to_be_bytes()].concat();
    digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &input)
        .as_ref()
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    const SPIS: Spis = Spis {
        initiator: 1,
        responder: 0,
    };

    fn seen(pretend: bool, local: SocketAddr, remote: SocketAddr) -> Nat {
        let path = Path {
            local: at(1, 4500),
            remote: at(2, 4500),
        };
        let said = Detection::new(SPIS, path, pretend);
        Nat::detect(&said.payloads(), SPIS, Path { local, remote }).unwrap()
    }

    #[test]
    fn a_translated_address_is_noticed_from_either_end() {
        let nat = |local, remote| Nat {
            local,
            remote,
            forced: false,
        };
        assert_eq!(seen(false, at(2, 4500), at(1, 4500)), nat(false, false));
        assert_eq!(seen(false, at(2, 4500), at(9, 4500)), nat(false, true));
        assert_eq!(seen(false, at(2, 4500), at(1, 1024)), nat(false, true));
        assert_eq!(seen(false, at(9, 4500), at(1, 4500)), nat(true, false));
        assert_eq!(seen(false, at(9, 4500), at(9, 4500)), nat(true, true));
        assert_eq!(seen(true, at(2, 4500), at(1, 4500)), nat(false, true));
    }

    #[test]
    fn a_peer_with_several_addresses_may_name_them_all() {
        let path = |local| Path {
            local,
            remote: at(2, 500),
        };
        let said = [at(7, 500), at(1, 500)].map(|at| Detection::new(SPIS, path(at), false));
        let both: Vec<Payload<'_>> = said.iter().flat_map(Detection::payloads).collect();
        let seen = Path {
            local: at(2, 500),
            remote: at(1, 500),
        };
        assert_eq!(Nat::detect(&both, SPIS, seen), Some(Nat::default()));
        assert_eq!(Nat::detect(&[], SPIS, seen), None);
    }
}
