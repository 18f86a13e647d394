use zeroize::Zeroize;

use crate::Family;

/// Bytes of messages. Those of a family with secrets are wiped before their memory is given back; when the buffer grows, too.
pub(crate) struct Bytes {
    pub(crate) bytes: Vec<u8>,
    secret: bool,
}

impl Bytes {
    pub(crate) fn new<F: Family>() -> Self {
        Self::with_capacity::<F>(0)
    }

    pub(crate) fn with_capacity<F: Family>(capacity: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(capacity),
            secret: F::SECRET,
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// The new zero bytes at the end.
    pub(crate) fn append(&mut self, length: usize) -> &mut [u8] {
        let start = self.bytes.len();
        let end = start + length;
        if end > self.bytes.capacity() {
            let mut larger = Vec::with_capacity(end.next_power_of_two());
            larger.extend_from_slice(&self.bytes);
            self.clear();
            self.bytes = larger;
        }
        self.bytes.resize(end, 0);
        &mut self.bytes[start..]
    }

    /// Wipes what was written and no more: the buffers are large and mostly unused.
    pub(crate) fn clear(&mut self) {
        if self.secret {
            self.bytes.as_mut_slice().zeroize();
        }
        self.bytes.clear();
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Route, Xfrm};

    #[test]
    fn growing_keeps_the_content() {
        let mut bytes = Bytes::new::<Xfrm>();
        for n in 1..100_u8 {
            bytes.append(usize::from(n)).fill(n);
        }
        let expected: Vec<u8> = (1..100_u8)
            .flat_map(|n| std::iter::repeat_n(n, usize::from(n)))
            .collect();
        assert_eq!(bytes.as_slice(), expected);
        bytes.clear();
        assert!(bytes.as_slice().is_empty());
    }

    #[test]
    fn states_carry_keys_and_routes_do_not() {
        assert!(Bytes::new::<Xfrm>().secret && !Bytes::new::<Route>().secret);
    }
}
