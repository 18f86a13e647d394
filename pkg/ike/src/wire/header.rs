//! Fixed IKE header (RFC 7296 §3.1).
//!
//! ```text
//!  0                   1                   2                   3
//! +-------------------------------------------------------------+
//! |                  IKE SA Initiator's SPI (8)                 |
//! |                  IKE SA Responder's SPI (8)                 |
//! +--------------+-------+-------+--------------+---------------+
//! | Next Payload | MjVer | MnVer | Exchange Type| ..R V I ...   |
//! +--------------+-------+-------+--------------+---------------+
//! |                        Message ID (4)                       |
//! |               Length (4), header included                   |
//! +-------------------------------------------------------------+
//! ```

use super::codec::{Reader, Writer};
use super::{Error, HEADER_LEN, MAX_MESSAGE, PayloadType};

wire_enum! {
    /// Exchange types.
    pub enum ExchangeType: u8 {
        /// IKE_SA_INIT.
        IkeSaInit = 34,
        /// IKE_AUTH.
        IkeAuth = 35,
        /// CREATE_CHILD_SA.
        CreateChildSa = 36,
        /// INFORMATIONAL.
        Informational = 37,
        /// IKE_SESSION_RESUME (RFC 5723).
        IkeSessionResume = 38,
        /// IKE_INTERMEDIATE (RFC 9242).
        IkeIntermediate = 43,
        /// IKE_FOLLOWUP_KE (RFC 9370).
        IkeFollowupKe = 44,
    }
}

const RESPONSE: u8 = 0x20;
const VERSION: u8 = 0x10;
const INITIATOR: u8 = 0x08;

/// Flags; reserved bits are ignored on receipt and sent as zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags {
    /// I: the sender is the original initiator of the IKE SA.
    pub initiator: bool,
    /// R: a response to the request of the same message ID.
    pub response: bool,
    /// V: the sender speaks a higher major version too. Sent as zero, ignored on receipt.
    pub version: bool,
}

impl From<u8> for Flags {
    fn from(bits: u8) -> Self {
        Self {
            initiator: bits & INITIATOR != 0,
            response: bits & RESPONSE != 0,
            version: bits & VERSION != 0,
        }
    }
}

impl From<Flags> for u8 {
    fn from(flags: Flags) -> Self {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(flags.initiator, INITIATOR)
            | bit(flags.response, RESPONSE)
            | bit(flags.version, VERSION)
    }
}

/// The header of a message of version 2; the minor version is ignored on receipt and sent as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// Initiator's SPI, never zero in a valid message (the caller checks).
    pub spi_i: u64,
    /// Responder's SPI, zero in the first request.
    pub spi_r: u64,
    /// Type of the first payload. Emitting takes it from the payloads instead.
    pub next_payload: PayloadType,
    /// Exchange type.
    pub exchange: ExchangeType,
    /// Flags.
    pub flags: Flags,
    /// Message ID, host byte order.
    pub message_id: u32,
}

impl Header {
    /// Reads the header of a whole datagram and returns it with the bytes behind it.
    ///
    /// # Errors
    /// [`Error::Version`] for other major versions than 2, and the datagram's length must be the one in the header.
    pub fn parse(datagram: &[u8]) -> Result<(Self, &[u8]), Error> {
        let (header, major, length, body) = Self::read(datagram)?;
        if major != 2 {
            return Err(Error::Version(major));
        }
        check_length(datagram.len(), length)?;
        Ok((header, body))
    }

    /// Reads the header whatever its version and length: what is needed to answer INVALID_MAJOR_VERSION (RFC 7296 §2.5)
    /// or to find the SA of a message that is otherwise broken.
    ///
    /// # Errors
    /// [`Error::Truncated`] below [`HEADER_LEN`] bytes.
    pub fn peek(datagram: &[u8]) -> Result<Self, Error> {
        Self::read(datagram).map(|(header, ..)| header)
    }

    fn read(datagram: &[u8]) -> Result<(Self, u8, u32, &[u8]), Error> {
        let mut r = Reader::new("IKE header", datagram);
        let (spi_i, spi_r) = (r.u64()?, r.u64()?);
        let next_payload = r.u8()?.into();
        let major = r.u8()? >> 4;
        let (exchange, flags) = (r.u8()?.into(), r.u8()?.into());
        let (message_id, length) = (r.u32()?, r.u32()?);
        let header = Self {
            spi_i,
            spi_r,
            next_payload,
            exchange,
            flags,
            message_id,
        };
        Ok((header, major, length, r.rest()))
    }

    /// Writes the header of a message of `length` bytes in all.
    pub(super) fn emit(&self, first: PayloadType, length: usize, w: &mut Writer) {
        w.u64(self.spi_i);
        w.u64(self.spi_r);
        w.u8(first.into());
        w.u8(0x20);
        w.u8(self.exchange.into());
        w.u8(self.flags.into());
        w.u32(self.message_id);
        w.u32(u32::try_from(length).unwrap_or(u32::MAX));
    }
}

fn check_length(datagram: usize, field: u32) -> Result<(), Error> {
    if datagram > MAX_MESSAGE {
        return Err(Error::Length {
            what: "IKE message",
            expected: "at most 65535 bytes",
            got: datagram,
        });
    }
    if usize::try_from(field) != Ok(datagram) {
        return Err(Error::Value {
            what: "IKE header's length",
            expected: "the datagram's length",
            got: field.into(),
        });
    }
    debug_assert!(datagram >= HEADER_LEN, "read() took the header");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; 28] = [
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // initiator's SPI
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // responder's SPI
        46, 0x20, 35, 0x28, // SK, 2.0, IKE_AUTH, R and I
        0, 0, 0, 7, // message ID
        0, 0, 0, 28, // length
    ];

    fn header() -> Header {
        Header {
            spi_i: 0x0102_0304_0506_0708,
            spi_r: 0x1112_1314_1516_1718,
            next_payload: PayloadType::Encrypted,
            exchange: ExchangeType::IkeAuth,
            flags: Flags {
                initiator: true,
                response: true,
                version: false,
            },
            message_id: 7,
        }
    }

    fn with(at: usize, byte: u8) -> Vec<u8> {
        let mut bytes = BYTES.to_vec();
        bytes[at] = byte;
        bytes
    }

    #[test]
    fn reads_and_writes_every_field() {
        assert_eq!(Header::parse(&BYTES), Ok((header(), &[][..])));
        let mut w = Writer::default();
        header().emit(PayloadType::Encrypted, 28, &mut w);
        assert_eq!(w.into_vec(), BYTES);
    }

    #[test]
    fn numbers_of_the_later_exchanges() {
        assert_eq!(ExchangeType::from(43), ExchangeType::IkeIntermediate);
        assert_eq!(ExchangeType::from(44), ExchangeType::IkeFollowupKe);
    }

    #[test]
    fn reserved_flags_and_minor_version_are_ignored() {
        assert_eq!(
            Header::parse(&with(19, 0xef)).unwrap().0.flags,
            header().flags
        );
        assert_eq!(Header::parse(&with(17, 0x2f)).unwrap().0, header());
    }

    #[test]
    fn other_major_versions_are_refused_and_still_peeked_at() {
        assert_eq!(Header::parse(&with(17, 0x30)), Err(Error::Version(3)));
        assert_eq!(Header::parse(&with(17, 0x10)), Err(Error::Version(1)));
        assert_eq!(Header::peek(&with(17, 0x30)), Ok(header()));
    }

    #[test]
    fn the_length_must_be_the_datagrams() {
        for length in [27, 29, 0] {
            assert!(matches!(
                Header::parse(&with(27, length)),
                Err(Error::Value { .. })
            ));
        }
        let long = vec![0x20; MAX_MESSAGE + 1];
        assert!(matches!(
            Header::parse(&long),
            Err(Error::Length { got: 65_536, .. })
        ));
    }

    #[test]
    fn a_cut_header_is_refused_at_every_offset() {
        for end in 0..BYTES.len() {
            assert!(
                matches!(Header::peek(&BYTES[..end]), Err(Error::Truncated { .. })),
                "{end}"
            );
        }
    }
}
