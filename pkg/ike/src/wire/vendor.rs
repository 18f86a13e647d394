//! V, the Vendor ID payload (RFC 7296 §3.12): any bytes, compared as a whole.

/// A vendor ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VendorId<'a>(
    /// The bytes.
    pub &'a [u8],
);

impl<'a> VendorId<'a> {
    /// Takes a payload's body.
    #[must_use]
    pub fn parse(body: &'a [u8]) -> Self {
        Self(body)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Payload;
    use super::*;

    #[test]
    fn is_its_bytes() {
        let vendor = VendorId::parse(b"Espalier-1");
        assert_eq!(vendor.0, b"Espalier-1");
        assert_eq!(Payload::VendorId(vendor).body(), b"Espalier-1");
    }
}
