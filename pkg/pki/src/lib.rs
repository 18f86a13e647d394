//! Certificates of nodes: making a CA, requests and their signing, reading, fingerprints.
//!
//! No files, no clock and no network: times come in as [`Duration`]s since the epoch. Private keys are [`SecretBytes`](espalier_secret::SecretBytes) or
//! types that wipe themselves. Only keys that the mesh accepts in handshakes are made, read and signed: ECDSA P-256, P-384,
//! Ed25519.
//!
//! A node's certificate: [`csr::make`] → [`csr::read`] → [`Authority::issue`] → [`Leaf::read`].

mod authority;
mod bundle;
pub mod csr;
mod error;
mod key;
mod leaf;
mod names;
mod validity;

pub use authority::Authority;
pub use bundle::{Anchor, Bundle};
pub use error::PkiError;
pub use key::NodeKey;
pub use leaf::Leaf;
pub use names::{check_node_name, check_uid};
pub use validity::{CLOCK_SKEW, DAY, Validity};

use std::time::Duration;

use sha2::{Digest as _, Sha256};

/// id-kp-ipsecIKE (RFC 4945 §5.1.3.12): what the certificates are for.
pub const EKU_IPSEC_IKE: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 17];

/// SHA-256 of a DER certificate, in lower-case hex.
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    hex(&Sha256::digest(der))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn since_epoch(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
