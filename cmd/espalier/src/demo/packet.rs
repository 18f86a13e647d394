//! The payload of the pods' packets: marker, kind, flow, number, and padding to a usual size.

/// Octets that begin every packet of this run, searched for on the wire.
pub(super) type Marker = [u8; 16];

const LENGTH: usize = 200;

/// What pods send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// Packet `number` of flow `id`.
    Flow { id: usize, number: u64 },
    /// Answer this.
    Ping { number: u64 },
    /// The answer.
    Pong { number: u64 },
}

/// A marker that no other run has.
pub(super) fn new_marker() -> Marker {
    let mut marker = *b"espalier--------";
    marker[8..].copy_from_slice(&rand::random::<[u8; 8]>());
    marker
}

impl Packet {
    pub(super) fn encode(self, marker: Marker) -> [u8; LENGTH] {
        let (kind, id, number) = match self {
            Self::Flow { id, number } => (0, id, number),
            Self::Ping { number } => (1, 0, number),
            Self::Pong { number } => (2, 0, number),
        };
        let mut bytes = [kind; LENGTH];
        bytes[..16].copy_from_slice(&marker);
        bytes[17..25].copy_from_slice(&u64::try_from(id).unwrap_or(u64::MAX).to_be_bytes());
        bytes[25..33].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    /// `None`: not a packet of this run.
    pub(super) fn decode(bytes: &[u8], marker: Marker) -> Option<Self> {
        let rest = bytes.strip_prefix(&marker)?;
        let number_at = |at: usize| -> Option<u64> {
            Some(u64::from_be_bytes(rest.get(at..at + 8)?.try_into().ok()?))
        };
        let number = number_at(9)?;
        match *rest.first()? {
            0 => Some(Self::Flow {
                id: usize::try_from(number_at(1)?).ok()?,
                number,
            }),
            1 => Some(Self::Ping { number }),
            2 => Some(Self::Pong { number }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_survive_the_way() {
        let marker = new_marker();
        let packets = [
            Packet::Flow {
                id: 7,
                number: 1 << 40,
            },
            Packet::Ping { number: 3 },
            Packet::Pong { number: 4 },
        ];
        for packet in packets {
            assert_eq!(Packet::decode(&packet.encode(marker), marker), Some(packet));
            assert_eq!(Packet::decode(&packet.encode(marker)[..20], marker), None);
            assert_eq!(
                Packet::decode(&packet.encode(marker), *b"another marker!!"),
                None
            );
        }
    }
}
