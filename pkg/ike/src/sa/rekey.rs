//! What an IKE SA knows of CREATE_CHILD_SAs under way, its own and the peer's (RFC 7296 §1.3, §2.8, RFC 9370 §2.2.4).

use super::{Opened, init};
use crate::child::Agreed;
use crate::config::{ChildId, IkePolicy};
use crate::crypto::{Kem, KemKey, KeyExchange, Nonces, SharedSecret};

/// A CREATE_CHILD_SA request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Rekey {
    pub(crate) what: What,
    /// What was offered.
    pub(crate) policy: IkePolicy,
    pub(crate) kex: KeyExchange,
    pub(crate) nonce: Vec<u8>,
    pub(crate) restarts: u32,
    /// The peer's request for the same SA, answered meanwhile.
    pub(crate) crossed: Option<Crossed>,
    /// CREATE_CHILD_SA is answered, IKE_FOLLOWUP_KE under way.
    pub(crate) followup: Option<FollowUp>,
    /// What IKE_FOLLOWUP_KE brought.
    pub(crate) additional: Option<(Kem, SharedSecret)>,
    /// SPIs of CHILD_SAs that the peer deleted meanwhile and that this end does not know.
    pub(crate) deleted: Vec<u32>,
}

/// The additional key exchange of this end's own CREATE_CHILD_SA (RFC 9370 §2.2.4).
#[derive(Debug)]
pub(crate) struct FollowUp {
    /// The answer to CREATE_CHILD_SA: acted on when this is complete.
    pub(crate) answer: Opened,
    pub(crate) key: KemKey,
}

/// A CREATE_CHILD_SA of the peer that waits for its additional key exchange: nothing is made of it before.
#[derive(Debug)]
pub(crate) struct Pending {
    /// What the peer shows to go on with it.
    pub(crate) link: [u8; 8],
    pub(crate) kem: Kem,
    pub(crate) shared: SharedSecret,
    pub(crate) nonce_i: Vec<u8>,
    pub(crate) nonce_r: Vec<u8>,
    pub(crate) what: PendingWhat,
}

/// What is to be made.
#[derive(Debug)]
pub(crate) enum PendingWhat {
    /// A CHILD_SA, the successor of one with the inbound SPI `old` where there is one.
    Child {
        id: ChildId,
        old: Option<u32>,
        agreed: Agreed,
        spi_in: u32,
    },
    /// An IKE SA.
    Ike {
        spi: u64,
        remote: u64,
        chosen: init::Chosen,
    },
}

impl Pending {
    pub(crate) fn nonces(&self) -> Nonces<'_> {
        Nonces {
            initiator: &self.nonce_i,
            responder: &self.nonce_r,
        }
    }

    /// The inbound SPI that was chosen for a new CHILD_SA.
    pub(crate) fn spi_in(&self) -> Option<u32> {
        match self.what {
            PendingWhat::Child { spi_in, .. } => Some(spi_in),
            PendingWhat::Ike { .. } => None,
        }
    }
}

/// What is being rekeyed, and the SPI for its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The CHILD_SA with the inbound SPI `old`.
    Child { id: ChildId, old: u32, spi_in: u32 },
    /// Nothing: a further CHILD_SA is made.
    New { id: ChildId, spi_in: u32 },
    /// The IKE SA itself.
    Ike { spi: u64 },
}

impl What {
    /// Which CHILD_SA is to be made.
    pub(crate) fn child(self) -> Option<ChildId> {
        match self {
            Self::Child { id, .. } | Self::New { id, .. } => Some(id),
            Self::Ike { .. } => None,
        }
    }
}

/// See [`Rekey::crossed`].
#[derive(Debug)]
pub(crate) struct Crossed {
    /// The lower nonce of that exchange.
    pub(crate) nonce: Vec<u8>,
    /// What came of it.
    pub(crate) made: Made,
}

/// An SA by this end's SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// Inbound SPI of a CHILD_SA.
    Child(u32),
    /// Local SPI of an IKE SA.
    Ike(u64),
    /// Nothing yet: [`Established::pending`].
    Pending,
}
