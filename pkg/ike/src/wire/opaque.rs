//! CP and EAP (RFC 7296 §3.15, §3.16): known, so a critical bit on them is no error, but not read. Neither belongs into a
//! mesh of hosts.

use super::PayloadType;

/// A payload whose body is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opaque<'a> {
    /// [`PayloadType::Configuration`] or [`PayloadType::Eap`].
    pub kind: PayloadType,
    /// Body without generic header.
    pub body: &'a [u8],
}
