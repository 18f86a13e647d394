//! Who a node is and who its peers are: own certificate and key, trust anchors, verification of a peer's chain.
//!
//! A certificate names its node by one DNS SAN (the Node's name, which is also the IKE identity) and binds it to the Node
//! object by a URI SAN `espalier://node/<name>/<uid>`. Nothing that a certificate refers to is ever fetched.

mod credentials;
mod error;
mod trust;
mod verify;

pub use credentials::Credentials;
pub use error::IdentityError;
pub use trust::TrustAnchors;
pub use verify::{MAX_CHAIN_BYTES, MAX_CHAIN_LEN, NODE_URI_PREFIX, VerifiedPeer, verify_peer};

#[cfg(test)]
mod tests;
