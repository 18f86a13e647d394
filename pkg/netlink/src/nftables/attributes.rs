//! Attributes of netlink messages (linux/netlink.h): length, kind, value, padded to four bytes.

/// `NLA_F_NESTED`: the value is itself a list of attributes.
const NESTED: u16 = 0x8000;
const HEADER: usize = 4;

/// A list of attributes that is being written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Raw bytes, in the order that they have in packets.
    pub(super) fn bytes(self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value)
    }

    /// nf_tables has all its numbers in network byte order.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Text with its terminating zero.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.put(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn nested(self, kind: u16, value: &Self) -> Self {
        self.put(kind | NESTED, &value.0)
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn put(mut self, kind: u16, value: &[u8]) -> Self {
        // The kernel refuses what is cut short; nothing here comes near to 64 KiB but a list of very many expressions.
        let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_padded_and_lengths_are_not() {
        let inner = Attributes::new().text(1, "ab").number(2, 7);
        let outer = Attributes::new().nested(4, &inner).into_bytes();
        let mut expected = Vec::new();
        expected.extend(20_u16.to_ne_bytes());
        expected.extend(0x8004_u16.to_ne_bytes());
        expected.extend(7_u16.to_ne_bytes());
        expected.extend(1_u16.to_ne_bytes());
        expected.extend(b"ab\0\0");
        expected.extend(8_u16.to_ne_bytes());
        expected.extend(2_u16.to_ne_bytes());
        expected.extend([0, 0, 0, 7]);
        assert_eq!(outer, expected);
    }
}
