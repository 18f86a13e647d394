//! Who takes part, with which names, addresses and keys.
//!
//! ```text
//!  namespace "hub"                          namespace "spokes"
//!  one endpoint, SAS peers   ── veth ──     SAS endpoints, one peer each
//!  10.77.0.1                                10.78.0.1, 10.78.0.2, …
//! ```
//!
//! The hub is a node of a large mesh; it is what is measured. The spokes are the rest of the mesh in one process.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::ValueEnum;
use serde::Serialize;

/// IKE's own port: nothing translates addresses between the namespaces.
pub const PORT: u16 = 500;
/// Where IKE and ESP of a mesh are (RFC 3948).
pub const NAT_T_PORT: u16 = 4500;
/// The hub's address.
pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// First two octets of all spokes' addresses.
const SPOKES: [u8; 2] = [10, 78];
/// Their network's prefix.
pub const SPOKES_PREFIX: u8 = 16;
/// The hub's name.
pub const HUB_NAME: &str = "hub";

/// How both sides authenticate and what they agree on. All with AES-256-GCM, PRF-HMAC-SHA2-256 and X25519.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// A shared key per pair.
    Psk,
    /// ECDSA P-256 certificates.
    Ecdsa,
    /// The same, and ML-KEM-768 on top of X25519.
    #[value(name = "ecdsa-ml-kem-768")]
    EcdsaMlKem768,
}

impl Case {
    /// All, in the order of the report.
    pub const ALL: [Self; 3] = [Self::Psk, Self::Ecdsa, Self::EcdsaMlKem768];

    /// The name in the report and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Psk => "psk",
            Self::Ecdsa => "ecdsa",
            Self::EcdsaMlKem768 => "ecdsa-ml-kem-768",
        }
    }

    /// CPU milliseconds per handshake and side that the project wants to stay below.
    pub fn target_cpu_ms(self) -> f64 {
        match self {
            Self::Psk => 0.2,
            Self::Ecdsa => 0.4,
            Self::EcdsaMlKem768 => 0.6,
        }
    }

    /// What strongSwan calls the same IKE proposal.
    pub fn strongswan_proposal(self) -> &'static str {
        match self {
            Self::Psk | Self::Ecdsa => "aes256gcm16-prfsha256-x25519",
            Self::EcdsaMlKem768 => "aes256gcm16-prfsha256-x25519-ke1_mlkem768",
        }
    }

    /// What strongSwan calls this way to authenticate.
    pub fn strongswan_auth(self) -> &'static str {
        match self {
            Self::Psk => "psk",
            Self::Ecdsa | Self::EcdsaMlKem768 => "pubkey",
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Who sends IKE_SA_INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Sends it.
    Initiator,
    /// Answers it.
    Responder,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Initiator, Self::Responder];

    /// The name in the report and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Initiator => "initiator",
            Self::Responder => "responder",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Responder,
            Self::Responder => Self::Initiator,
        }
    }
}

/// The spokes' network.
pub fn spokes() -> Ipv4Addr {
    let [a, b] = SPOKES;
    Ipv4Addr::new(a, b, 0, 0)
}

/// Name of spoke `n`, from 0.
pub fn spoke_name(n: usize) -> String {
    format!("spoke-{n:05}")
}

/// Address and port of spoke `n`. At most 65,535 of them.
pub fn spoke(n: usize) -> SocketAddr {
    let [a, b] = SPOKES;
    let [.., c, d] = (n + 1).to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), PORT)
}

/// Which spoke has this address.
pub fn spoke_at(address: IpAddr) -> Option<usize> {
    match address {
        IpAddr::V4(v4) => {
            let [.., c, d] = v4.octets();
            usize::from(u16::from_be_bytes([c, d])).checked_sub(1)
        }
        IpAddr::V6(_) => None,
    }
}

/// Address and port of the hub.
pub fn hub() -> SocketAddr {
    SocketAddr::new(HUB.into(), PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_command_line_takes() {
        for case in Case::ALL {
            assert_eq!(Case::from_str(case.name(), false), Ok(case));
        }
        for side in Side::ALL {
            assert_eq!(Side::from_str(side.name(), false), Ok(side));
        }
    }

    #[test]
    fn spokes_are_found_by_their_addresses() {
        for n in [0, 1, 254, 255, 256, 4999] {
            assert_eq!(spoke_at(spoke(n).ip()), Some(n));
        }
        assert_eq!(spoke(0).to_string(), "10.78.0.1:500");
        assert_eq!(spoke(4999).to_string(), "10.78.19.136:500");
    }
}
