//! Attributes: length, type, value, padding.

use zeroize::Zeroizing;

use super::ParseError;

const HEADER: usize = 4;
/// Flags in the type (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const TYPE_MASK: u16 = 0x3fff;

/// `XFRMA_SA_DIR`, u8: 1 in, 2 out. Kernel 6.10; older ones skip what they do not know.
pub(crate) const SA_DIR: u16 = 33;
/// `XFRMA_SA_PCPU`, u32: the CPU. Kernel 6.13.
pub(crate) const SA_PCPU: u16 = 35;

/// Collects attributes behind a fixed part. The capacity is given beforehand, so that no copy of a key is left behind by
/// growing.
pub(crate) struct Body(Zeroizing<Vec<u8>>);

impl Body {
    /// Starts with `fixed`; `room` bytes of attributes will follow at most.
    pub(crate) fn new(fixed: &[u8], room: usize) -> Self {
        let mut bytes = Vec::with_capacity(fixed.len() + room);
        bytes.extend_from_slice(fixed);
        Self(Zeroizing::new(bytes))
    }

    /// Adds an attribute whose value is `parts` one after the other.
    pub(crate) fn push(&mut self, kind: u16, parts: &[&[u8]]) {
        let length = HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        let end = self.0.len() + length.next_multiple_of(4);
        debug_assert!(end <= self.0.capacity(), "room for attributes");
        self.0
            .extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        for part in parts {
            self.0.extend_from_slice(part);
        }
        self.0.resize(end, 0);
    }

    pub(crate) fn finish(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

/// Type and value of each attribute; ends at the first one that does not fit, with an error.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        let (head, _) = bytes.split_first_chunk::<HEADER>()?;
        let [l0, l1, k0, k1] = *head;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = bytes.get(HEADER..length) else {
            return Some(Err(ParseError::Attribute {
                announced: length,
                left: bytes.len(),
            }));
        };
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((u16::from_ne_bytes([k0, k1]) & TYPE_MASK, value)))
    }
}

/// The first four bytes as a number of this machine.
pub(crate) fn u32_at(value: &[u8], offset: usize) -> Option<u32> {
    let bytes = value.get(offset..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// Eight bytes as a number of this machine.
pub(crate) fn u64_of(value: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(*value.first_chunk::<8>()?))
}

/// Two bytes in network order.
pub(crate) fn be16_at(value: &[u8], offset: usize) -> Option<u16> {
    let bytes = value.get(offset..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_come_back() {
        let mut body = Body::new(&[9; 8], 64);
        body.push(SA_DIR, &[&[2]]);
        body.push(SA_PCPU, &[&3_u32.to_ne_bytes()]);
        let bytes = body.finish();
        assert_eq!(
            bytes[8..],
            [5, 0, 33, 0, 2, 0, 0, 0, 8, 0, 35, 0, 3, 0, 0, 0]
        );
        let all: Vec<_> = Attributes::new(&bytes[8..])
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(all, [(33, &[2][..]), (35, &[3, 0, 0, 0][..])]);
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_the_end() {
        for bytes in [&[3, 0, 1, 0][..], &[9, 0, 1, 0, 1, 2, 3, 4], &[0; 8]] {
            let mut attributes = Attributes::new(bytes);
            assert!(attributes.next().unwrap().is_err(), "{bytes:?}");
            assert_eq!(attributes.next(), None);
        }
        assert_eq!(Attributes::new(&[1, 0]).next(), None);
    }
}
