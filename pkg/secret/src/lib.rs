//! Key bytes that are wiped when dropped, compared in constant time and never printed.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Secret bytes: zeroized on drop, redacted in `Debug`, with no `Display` and no serialisation.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
pub struct SecretBytes(Box<[u8]>);

impl SecretBytes {
    /// Takes over `bytes`. Hand in a vector of exact capacity: a spare tail is copied away by the allocator.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into_boxed_slice())
    }

    /// Copies `bytes`; the caller wipes its own copy.
    #[must_use]
    pub fn copy_from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes themselves. The name makes each use easy to find in a review.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes, redacted)", self.0.len())
    }
}

impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretBytes {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_length_and_no_byte() {
        let shown = format!("{:?}", SecretBytes::copy_from(&[0xab, 0xcd, 0xef]));
        assert_eq!(shown, "SecretBytes(3 bytes, redacted)");
    }

    #[test]
    fn equality_is_by_content_and_length() {
        assert_eq!(
            SecretBytes::copy_from(b"key"),
            SecretBytes::new(b"key".to_vec())
        );
        assert_ne!(
            SecretBytes::copy_from(b"key"),
            SecretBytes::copy_from(b"kez")
        );
        assert_ne!(
            SecretBytes::copy_from(b"key"),
            SecretBytes::copy_from(b"key2")
        );
    }
}
