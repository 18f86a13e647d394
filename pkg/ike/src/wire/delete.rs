//! D, the Delete payload (RFC 7296 §3.11).
//!
//! ```text
//! +--------------+--------------+------------------------------+
//! | Protocol ID  |   SPI Size   |          Num of SPIs         |
//! +--------------+--------------+------------------------------+
//! |              SPIs, the sender's inbound ones               |
//! +------------------------------------------------------------+
//! ```

use super::codec::{Reader, Writer};
use super::{Error, MAX_DELETE_SPIS, ProtocolId};

/// What the sender deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delete {
    /// The IKE SA that carries the message, with all its CHILD_SAs.
    Ike,
    /// CHILD_SAs.
    Child {
        /// ESP or AH.
        protocol: ProtocolId,
        /// SPIs that the sender receives on.
        spis: Vec<u32>,
    },
}

impl Delete {
    /// Parses a payload's body.
    ///
    /// # Errors
    /// SPI sizes other than 0 for IKE and 4 else, a count that does not fit, more than [`MAX_DELETE_SPIS`].
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        let mut r = Reader::new("Delete payload", body);
        let protocol = ProtocolId::from(r.u8()?);
        let (size, count) = (r.u8()?, usize::from(r.u16()?));
        let delete = match (protocol, size) {
            (ProtocolId::Ike, 0) if count == 0 => Self::Ike,
            (ProtocolId::Ike, 0) => return Err(count_of_ike(count)),
            (ProtocolId::Ike, _) => return Err(size_error("0 for the IKE SA", size)),
            (_, 4) => Self::Child {
                protocol,
                spis: spis(&mut r, count)?,
            },
            _ => return Err(size_error("4 for AH and ESP", size)),
        };
        r.finish()?;
        Ok(delete)
    }

    pub(super) fn emit(&self, w: &mut Writer) {
        match self {
            Self::Ike => w.bytes(&[ProtocolId::Ike.into(), 0, 0, 0]),
            Self::Child { protocol, spis } => {
                let count = u16::try_from(spis.len()).unwrap_or(u16::MAX);
                w.u8((*protocol).into());
                w.u8(4);
                w.u16(count);
                spis.iter().take(count.into()).for_each(|spi| w.u32(*spi));
            }
        }
    }
}

fn spis(r: &mut Reader<'_>, count: usize) -> Result<Vec<u32>, Error> {
    if count > MAX_DELETE_SPIS {
        return Err(Error::TooMany {
            what: "SPIs",
            limit: MAX_DELETE_SPIS,
        });
    }
    (0..count).map(|_| r.u32()).collect()
}

fn size_error(expected: &'static str, size: u8) -> Error {
    Error::Value {
        what: "Delete payload's SPI size",
        expected,
        got: size.into(),
    }
}

fn count_of_ike(count: usize) -> Error {
    Error::Length {
        what: "Delete payload of the IKE SA",
        expected: "no SPI",
        got: count,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Payload;
    use super::*;

    #[test]
    fn reads_and_writes_the_ike_sa() {
        assert_eq!(Delete::parse(&[1, 0, 0, 0]), Ok(Delete::Ike));
        assert_eq!(Payload::Delete(Delete::Ike).body(), [1, 0, 0, 0]);
    }

    #[test]
    fn reads_and_writes_esp_spis() {
        let bytes = [3, 4, 0, 2, 0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff];
        let delete = Delete::Child {
            protocol: ProtocolId::Esp,
            spis: vec![0x100, u32::MAX],
        };
        assert_eq!(Delete::parse(&bytes).as_ref(), Ok(&delete));
        assert_eq!(Payload::Delete(delete).body(), bytes);
    }

    #[test]
    fn sizes_and_counts_must_fit() {
        assert!(matches!(
            Delete::parse(&[1, 8, 0, 0]),
            Err(Error::Value { got: 8, .. })
        ));
        assert!(matches!(
            Delete::parse(&[1, 0, 0, 1]),
            Err(Error::Length { got: 1, .. })
        ));
        assert!(matches!(
            Delete::parse(&[3, 0, 0, 1]),
            Err(Error::Value { got: 0, .. })
        ));
        let short = Delete::parse(&[3, 4, 0, 2, 0, 0, 0, 1]);
        assert!(matches!(
            short,
            Err(Error::Truncated {
                need: 4,
                have: 0,
                ..
            })
        ));
        let long = Delete::parse(&[3, 4, 0, 1, 0, 0, 0, 1, 0]);
        assert!(matches!(long, Err(Error::Trailing { extra: 1, .. })));
    }

    #[test]
    fn the_count_is_bounded_whatever_follows() {
        let mut bytes = vec![3, 4, 4, 1];
        bytes.extend([0; 4 * 1025]);
        assert!(matches!(
            Delete::parse(&bytes),
            Err(Error::TooMany { limit: 1024, .. })
        ));
    }
}
