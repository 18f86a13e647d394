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

#[cfg(test)]
mod tests {
    use super::super::{Payload, parse_chain};
    use super::*;

    #[test]
    fn a_critical_bit_is_no_error_and_the_body_is_kept() {
        for kind in [PayloadType::Configuration, PayloadType::Eap] {
            let payload = Payload::Opaque(Opaque {
                kind,
                body: &[1, 2],
            });
            assert_eq!(parse_chain(kind, &[0, 0x80, 0, 6, 1, 2]), Ok(vec![payload]));
        }
    }
}
