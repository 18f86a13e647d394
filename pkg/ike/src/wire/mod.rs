//! IKEv2 messages as bytes (RFC 7296 §3): parsed with checked reads only, emitted from the same types.
//!
//! ```text
//! datagram ─ Header::parse ─ chain of payloads ─ Message ─ Encrypted{body, aad_len} ─ crypto ─ parse_chain ─ payloads
//! ```
//!
//! Parsed payloads borrow from the datagram. What cannot be represented is an [`Error`]; what is merely not known is kept
//! as `Unknown(n)`, or skipped where RFC 7296 says so (payloads without critical bit, traffic selector types).

#[macro_use]
mod codec;

mod auth;
mod cert;
mod certreq;
mod delete;
mod encrypted;
mod error;
mod fragment;
mod header;
mod id;
mod ke;
mod message;
mod nonce;
mod notify;
mod opaque;
mod payload;
mod sa;
mod transform;
mod ts;
mod vendor;

#[cfg(test)]
mod tests;

pub use auth::{Auth, AuthMethod, DigitalSignature};
pub use cert::{CertEncoding, Certificate};
pub use certreq::CertificateRequest;
pub use delete::Delete;
pub use encrypted::{Encrypted, emit_encrypted_prefix};
pub use error::Error;
pub use fragment::{Fragment, emit_fragment_prefix};
pub use header::{ExchangeType, Flags, Header};
pub use id::{IdType, Identification};
pub use ke::KeyExchange;
pub use message::{Message, emit, emit_chain, parse_chain};
pub use nonce::Nonce;
pub use notify::{Notify, NotifyType};
pub use opaque::Opaque;
pub use payload::{Payload, PayloadType};
pub use sa::{Proposal, ProtocolId, Sa, Spi};
pub use transform::{Transform, TransformType, encr, esn, integ, kex, prf};
pub use ts::TrafficSelectors;
pub use vendor::VendorId;

/// Fixed IKE header (RFC 7296 §3.1).
pub const HEADER_LEN: usize = 28;
/// Generic payload header (RFC 7296 §3.2).
pub const PAYLOAD_HEADER_LEN: usize = 4;

// --- Bounds on what comes in. One datagram can ask for no more work and memory than these allow. ---

/// Bytes of a message, and of the inner payloads of an SK payload: what a UDP datagram can hold.
pub const MAX_MESSAGE: usize = 65_535;
/// Payloads in one chain, skipped ones included: the largest useful message (IKE_AUTH with a chain of certificates and all
/// notifies) has about 30.
pub const MAX_PAYLOADS: usize = 64;
/// Proposals in one SA payload: other implementations send up to 20; the number field allows 255.
pub const MAX_PROPOSALS: usize = 32;
/// Transforms in one proposal: other implementations' default offers have up to 45; the count field allows 255.
pub const MAX_TRANSFORMS: usize = 64;
/// Attributes of one transform: only Key Length is defined (RFC 7296 §3.3.5).
pub const MAX_ATTRIBUTES: usize = 8;
/// Traffic selectors in one TS payload: RFC 7296 sets no limit below the 255 of the count field.
pub const MAX_SELECTORS: usize = 64;
/// SPIs in one Delete payload: the count field allows 65,535; a peer has a handful of CHILD_SAs under one IKE SA, or one per
/// CPU (RFC 9611).
pub const MAX_DELETE_SPIS: usize = 1024;
/// Nonce bounds (RFC 7296 §3.9).
pub const NONCE_LEN: std::ops::RangeInclusive<usize> = 16..=256;
