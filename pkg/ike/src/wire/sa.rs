//! SA, the Security Association payload: proposals (RFC 7296 §3.3, §3.3.1).
//!
//! ```text
//! +--------------+--------------+------------------------------+
//! | Last 0/More 2|   RESERVED   |       Proposal Length        |
//! +--------------+--------------+--------------+---------------+
//! | Proposal Num | Protocol ID  |   SPI Size   | Num Transforms|
//! +--------------+--------------+--------------+---------------+
//! |               SPI (0, 4 or 8), then Transforms             |
//! +------------------------------------------------------------+
//! ```

use super::codec::{Reader, Writer, countable};
use super::{Error, MAX_PROPOSALS, MAX_TRANSFORMS, Transform};

wire_enum! {
    /// Security protocols.
    pub enum ProtocolId: u8 {
        /// None: notifies that are about no SA.
        None = 0,
        /// IKE.
        Ike = 1,
        /// AH.
        Ah = 2,
        /// ESP.
        Esp = 3,
    }
}

/// An SPI field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Spi {
    /// Size 0.
    None,
    /// Size 4: a CHILD_SA of AH or ESP, host byte order.
    Child(u32),
    /// Size 8: an IKE SA, host byte order.
    Ike(u64),
    /// Another size: a protocol that is not known.
    Other(Vec<u8>),
}

impl Spi {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let child = bytes.try_into().map(u32::from_be_bytes).map(Self::Child);
        let ike = || bytes.try_into().map(u64::from_be_bytes).map(Self::Ike);
        match bytes {
            [] => Self::None,
            _ => child
                .or_else(|_| ike())
                .unwrap_or_else(|_| Self::Other(bytes.to_vec())),
        }
    }

    /// Its length in bytes. One of more than 255 bytes cannot be sent.
    pub(super) fn size(&self) -> u8 {
        match self {
            Self::None => 0,
            Self::Child(_) => 4,
            Self::Ike(_) => 8,
            Self::Other(bytes) => countable(bytes).0,
        }
    }

    pub(super) fn emit(&self, w: &mut Writer) {
        match self {
            Self::None => (),
            Self::Child(spi) => w.u32(*spi),
            Self::Ike(spi) => w.u64(*spi),
            Self::Other(bytes) => w.bytes(countable(bytes).1),
        }
    }
}

/// Proposals in order of preference; an answer has exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sa {
    /// The proposals, at least one.
    pub proposals: Vec<Proposal>,
}

/// One proposal: an SA of one protocol, with for each transform type the choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// In an offer 1, 2, 3, … (the caller checks); in an answer the number of the one that was chosen.
    pub number: u8,
    /// Protocol.
    pub protocol: ProtocolId,
    /// The sender's SPI: [`Spi::Child`] for AH and ESP; [`Spi::None`] (first exchange) or [`Spi::Ike`] (rekey) for IKE.
    pub spi: Spi,
    /// Transforms.
    pub transforms: Vec<Transform>,
}

impl Sa {
    /// Parses a payload's body.
    ///
    /// # Errors
    /// Lengths, counts and last-markers that contradict each other, SPI sizes that the protocol cannot have, no proposal,
    /// or more than [`MAX_PROPOSALS`] or [`MAX_TRANSFORMS`].
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        let mut r = Reader::new("SA payload", body);
        let mut proposals = Vec::new();
        loop {
            if proposals.len() == MAX_PROPOSALS {
                return Err(Error::TooMany {
                    what: "proposals",
                    limit: MAX_PROPOSALS,
                });
            }
            let more = r.u8()?;
            r.u8()?;
            proposals.push(Proposal::parse(r.sized("proposal")?)?);
            check_marker("proposal's last-marker", more, 2, r.is_empty())?;
            if r.is_empty() {
                return Ok(Self { proposals });
            }
        }
    }

    pub(super) fn emit(&self, w: &mut Writer) {
        let last = self.proposals.len().saturating_sub(1);
        for (at, proposal) in self.proposals.iter().enumerate() {
            w.u8(if at == last { 0 } else { 2 });
            w.u8(0);
            w.sized(|w| proposal.emit(w));
        }
    }
}

impl Proposal {
    /// Reads what follows the length field.
    fn parse(mut r: Reader<'_>) -> Result<Self, Error> {
        let (number, protocol) = (r.u8()?, r.u8()?.into());
        let (spi_size, count) = (r.u8()?, usize::from(r.u8()?));
        check_spi_size(protocol, spi_size)?;
        let spi = Spi::parse(r.bytes(spi_size.into())?);
        if count > MAX_TRANSFORMS {
            return Err(Error::TooMany {
                what: "transforms",
                limit: MAX_TRANSFORMS,
            });
        }
        let mut transforms = Vec::with_capacity(count);
        for left in (0..count).rev() {
            let more = r.u8()?;
            r.u8()?;
            transforms.push(Transform::parse(r.sized("transform")?)?);
            check_marker("transform's last-marker", more, 3, left == 0)?;
        }
        r.finish()?;
        Ok(Self {
            number,
            protocol,
            spi,
            transforms,
        })
    }

    /// Writes what follows the length field.
    fn emit(&self, w: &mut Writer) {
        let (count, transforms) = countable(&self.transforms);
        w.u8(self.number);
        w.u8(self.protocol.into());
        w.u8(self.spi.size());
        w.u8(count);
        self.spi.emit(w);
        for (at, transform) in transforms.iter().enumerate() {
            w.u8(if at + 1 == transforms.len() { 0 } else { 3 });
            w.u8(0);
            w.sized(|w| transform.emit(w));
        }
    }
}

/// RFC 7296 §3.3.1: 8 for IKE (0 in the first exchange), 4 for AH and ESP. Proposals of other protocols are not refused
/// here: they are passed over when one is chosen.
fn check_spi_size(protocol: ProtocolId, size: u8) -> Result<(), Error> {
    let (expected, fits) = match protocol {
        ProtocolId::Ike => ("0 or 8 for IKE", matches!(size, 0 | 8)),
        ProtocolId::Ah | ProtocolId::Esp => ("4 for AH and ESP", size == 4),
        ProtocolId::None | ProtocolId::Unknown(_) => return Ok(()),
    };
    if fits {
        return Ok(());
    }
    Err(Error::Value {
        what: "proposal's SPI size",
        expected,
        got: size.into(),
    })
}

/// The first byte of a proposal or transform: 0 on the last one, `more` on the others.
fn check_marker(what: &'static str, got: u8, more: u8, last: bool) -> Result<(), Error> {
    let wanted = if last { 0 } else { more };
    if got == wanted {
        return Ok(());
    }
    let expected = if last {
        "0 on the last one"
    } else {
        "2 (proposal) or 3 (transform) before another"
    };
    Err(Error::Value {
        what,
        expected,
        got: got.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Payload, TransformType, encr, esn, kex, prf};
    use super::*;

    /// ESP with AES-GCM of 256 bits and ESN, or ESP with ChaCha20-Poly1305 and either sequence number.
    const ESP: [u8; 64] = [
        2, 0, 0, 32, 1, 3, 4, 2, 0xc0, 0xff, 0xee, 0x01, // proposal 1, more follow
        3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0, // ENCR_AES_GCM_16, 256 bits
        0, 0, 0, 8, 5, 0, 0, 1, // ESN
        0, 0, 0, 32, 2, 3, 4, 2, 0xc0, 0xff, 0xee, 0x02, // proposal 2, the last
        3, 0, 0, 8, 1, 0, 0, 28, // ENCR_CHACHA20_POLY1305
        0, 0, 0, 12, 5, 0, 0, 0, 0, 99, 0, 0, // no ESN, with an attribute nobody knows
    ];

    fn esp() -> Sa {
        let odd = Transform {
            unknown_attribute: Some(99),
            ..Transform::new(TransformType::Esn, esn::NO)
        };
        let aes = Transform::with_key_length(TransformType::Encr, encr::AES_GCM_16, 256);
        let chacha = Transform::new(TransformType::Encr, encr::CHACHA20_POLY1305);
        let yes = Transform::new(TransformType::Esn, esn::YES);
        let proposal = |number, spi, transforms| Proposal {
            number,
            protocol: ProtocolId::Esp,
            spi: Spi::Child(spi),
            transforms,
        };
        let first = proposal(1, 0xc0ff_ee01, vec![aes, yes]);
        Sa {
            proposals: vec![first, proposal(2, 0xc0ff_ee02, vec![chacha, odd])],
        }
    }

    fn changed(at: usize, byte: u8) -> Result<Sa, Error> {
        let mut bytes = ESP;
        bytes[at] = byte;
        Sa::parse(&bytes)
    }

    #[test]
    fn reads_and_writes_two_esp_proposals() {
        assert_eq!(Sa::parse(&ESP), Ok(esp()));
        assert_eq!(Payload::Sa(esp()).body(), ESP);
    }

    #[test]
    fn reads_and_writes_ike_with_and_without_spi() {
        let mut proposal = Proposal {
            number: 1,
            protocol: ProtocolId::Ike,
            spi: Spi::None,
            transforms: vec![
                Transform::new(TransformType::Prf, prf::HMAC_SHA2_256),
                Transform::new(TransformType::Ke, kex::CURVE25519),
            ],
        };
        let bytes = [
            0, 0, 0, 24, 1, 1, 0, 2, 3, 0, 0, 8, 2, 0, 0, 5, 0, 0, 0, 8, 4, 0, 0, 31,
        ];
        assert_eq!(
            Sa::parse(&bytes),
            Ok(Sa {
                proposals: vec![proposal.clone()]
            })
        );
        proposal.spi = Spi::Ike(9);
        let body = Payload::Sa(Sa {
            proposals: vec![proposal.clone()],
        })
        .body();
        assert_eq!(
            body[..16],
            [0, 0, 0, 32, 1, 1, 8, 2, 0, 0, 0, 0, 0, 0, 0, 9]
        );
        assert_eq!(Sa::parse(&body).unwrap().proposals, [proposal]);
    }

    #[test]
    fn an_empty_payload_is_refused() {
        assert!(matches!(Sa::parse(&[]), Err(Error::Truncated { .. })));
    }

    #[test]
    fn last_markers_must_agree_with_what_follows() {
        for (at, byte) in [(0, 0), (0, 3), (32, 2), (12, 0), (12, 2), (24, 3)] {
            let refused = changed(at, byte);
            assert!(
                matches!(refused, Err(Error::Value { .. })),
                "{at}: {refused:?}"
            );
        }
    }

    #[test]
    fn lengths_and_counts_must_agree() {
        for (at, byte) in [
            (3, 31),
            (3, 33),
            (3, 3),
            (7, 1),
            (7, 3),
            (15, 11),
            (15, 13),
            (15, 0),
        ] {
            assert!(changed(at, byte).is_err(), "byte {at} = {byte}");
        }
    }

    #[test]
    fn spi_sizes_belong_to_protocols() {
        assert!(matches!(changed(6, 0), Err(Error::Value { got: 0, .. })));
        assert!(matches!(changed(6, 8), Err(Error::Value { got: 8, .. })));
        assert!(
            matches!(changed(5, 1), Err(Error::Value { got: 4, .. })),
            "4 for IKE"
        );
        let unknown = changed(5, 200).unwrap();
        assert_eq!(unknown.proposals[0].protocol, ProtocolId::Unknown(200));
    }

    #[test]
    fn proposals_and_transforms_are_bounded() {
        let proposal = [2, 0, 0, 8, 1, 1, 0, 0];
        let mut bytes = proposal.repeat(MAX_PROPOSALS + 1);
        assert!(matches!(
            Sa::parse(&bytes),
            Err(Error::TooMany {
                what: "proposals",
                ..
            })
        ));
        bytes.truncate(8 * MAX_PROPOSALS);
        bytes[8 * (MAX_PROPOSALS - 1)] = 0;
        assert_eq!(Sa::parse(&bytes).unwrap().proposals.len(), MAX_PROPOSALS);
        let transforms = changed(7, 65);
        assert!(matches!(
            transforms,
            Err(Error::TooMany {
                what: "transforms",
                ..
            })
        ));
    }
}
