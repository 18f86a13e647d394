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
