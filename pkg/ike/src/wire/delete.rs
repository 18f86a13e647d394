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
