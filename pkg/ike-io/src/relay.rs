//! IKE messages of UDP 4500 between the data plane, which holds the port, and the agent, which understands them: unix
//! datagrams, each
//!
//! ```text
//!   0        1        2          4           6        8               24               40
//!  | 1      | 4 or 6 | local    | remote    | 0      | local address | remote address | IKE message, no marker ...
//!  | version| family | port, BE | port, BE  |        | (v4: first 4 of 16 bytes, the rest 0)
//! ```

mod agent;
mod dataplane;
mod port;

pub use agent::AgentEnd;
pub use dataplane::DataplaneEnd;
pub use port::PortRelay;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use espalier_ike::Path;

/// Version of this header.
const VERSION: u8 = 1;
/// Bytes before the message.
pub const HEADER_LEN: usize = 40;
/// Longest datagram: a UDP payload cannot be longer than 65,535 bytes.
const MAX_DATAGRAM: usize = HEADER_LEN + 65_535;

/// Why a relayed datagram cannot be read. Both ends run on one node: they differ in version, or somebody else wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than header and one byte of message.
    #[error("expected more than {HEADER_LEN} bytes, got {0}")]
    Truncated(usize),
    /// Another version.
    #[error(
        "expected relay version {VERSION}, got {0}; run agent and data plane of the same release"
    )]
    Version(u8),
    /// Neither IPv4 nor IPv6.
    #[error("expected address family 4 or 6, got {0}")]
    Family(u8),
    /// Bytes that must be zero are not.
    #[error("padding is not zero")]
    Padding,
}

/// One datagram for the relay. `None` when local and remote address are of different families: no packet has that.
#[must_use]
pub fn encode(path: &Path, message: &[u8]) -> Option<Vec<u8>> {
    let (family, local, remote) = match (path.local.ip(), path.remote.ip()) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => (4, widen(local), widen(remote)),
        (IpAddr::V6(local), IpAddr::V6(remote)) => (6, local.octets(), remote.octets()),
        _ => return None,
    };
    let mut datagram = Vec::with_capacity(HEADER_LEN + message.len());
    datagram.extend([VERSION, family]);
    datagram.extend(path.local.port().to_be_bytes());
    datagram.extend(path.remote.port().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(local);
    datagram.extend(remote);
    datagram.extend(message);
    Some(datagram)
}

/// Path and message of a relayed datagram.
///
/// # Errors
/// [`DecodeError`] says what is wrong with it.
pub fn decode(datagram: &[u8]) -> Result<(Path, &[u8]), DecodeError> {
    let truncated = DecodeError::Truncated(datagram.len());
    let (header, message) = datagram
        .split_first_chunk::<HEADER_LEN>()
        .ok_or(truncated)?;
    if message.is_empty() {
        return Err(truncated);
    }
    let [version, family, lp0, lp1, rp0, rp1, zero @ ..] = header;
    let (zero, addresses) = zero.split_at(2);
    let (local, remote) = addresses.split_at(16);
    if *version != VERSION {
        return Err(DecodeError::Version(*version));
    }
    if zero != [0, 0] {
        return Err(DecodeError::Padding);
    }
    let local = SocketAddr::new(address(*family, local)?, u16::from_be_bytes([*lp0, *lp1]));
    let remote = SocketAddr::new(address(*family, remote)?, u16::from_be_bytes([*rp0, *rp1]));
    Ok((Path { local, remote }, message))
}

fn widen(address: Ipv4Addr) -> [u8; 16] {
    let mut wide = [0; 16];
    wide[..4].copy_from_slice(&address.octets());
    wide
}

fn address(family: u8, bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    let bytes: [u8; 16] = bytes
        .try_into()
        .map_err(|_| DecodeError::Truncated(bytes.len()))?;
    match (family, bytes) {
        (4, [a, b, c, d, rest @ ..]) if rest == [0; 12] => Ok(Ipv4Addr::new(a, b, c, d).into()),
        (4, _) => Err(DecodeError::Padding),
        (6, _) => Ok(Ipv6Addr::from(bytes).into()),
        (other, _) => Err(DecodeError::Family(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(local: &str, remote: &str) -> Path {
        Path {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
        }
    }

    #[test]
    fn the_layout_is_fixed() {
        let datagram = encode(&path("10.0.0.1:4500", "10.0.0.2:500"), b"ike").unwrap();
        let mut expected = vec![1, 4, 0x11, 0x94, 0x01, 0xf4, 0, 0, 10, 0, 0, 1];
        expected.extend([0; 12]);
        expected.extend([10, 0, 0, 2]);
        expected.extend([0; 12]);
        expected.extend(b"ike");
        assert_eq!(datagram, expected);
    }

    #[test]
    fn both_families_survive() {
        for path in [
            path("10.0.0.1:4500", "10.0.0.2:40000"),
            path("[fd00::1]:4500", "[fd00::2]:4500"),
        ] {
            let datagram = encode(&path, b"message").unwrap();
            assert_eq!(decode(&datagram), Ok((path, &b"message"[..])));
        }
        assert_eq!(
            encode(&path("10.0.0.1:4500", "[fd00::2]:4500"), b"message"),
            None
        );
    }

    #[test]
    fn every_shorter_datagram_is_truncated() {
        let datagram = encode(&path("10.0.0.1:4500", "10.0.0.2:4500"), b"x").unwrap();
        for length in 0..datagram.len() {
            assert_eq!(
                decode(&datagram[..length]),
                Err(DecodeError::Truncated(length))
            );
        }
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let good = encode(&path("10.0.0.1:4500", "10.0.0.2:4500"), b"x").unwrap();
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            decode(&bad).map(|_| ())
        };
        assert_eq!(with(0, 2), Err(DecodeError::Version(2)));
        assert_eq!(with(1, 5), Err(DecodeError::Family(5)));
        assert_eq!(with(6, 1), Err(DecodeError::Padding));
        assert_eq!(with(12, 1), Err(DecodeError::Padding));
        assert_eq!(with(39, 1), Err(DecodeError::Padding));
    }
}
