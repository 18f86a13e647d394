//! Checked reads and writes of big-endian fields.

use super::Error;

/// Bytes in front of and including the 16-bit length field that payloads, proposals, transforms and selectors have.
const SIZED_LEN: usize = 4;

/// An enum of wire numbers: named ones and `Unknown(n)`, with conversions both ways.
///
/// `Unknown` of a number that has a name is never made by parsing.
macro_rules! wire_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $int:ty {
            $( $(#[$vmeta:meta])* $variant:ident = $value:literal, )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $( $(#[$vmeta])* $variant, )+
            /// Any other number.
            Unknown($int),
        }

        impl From<$int> for $name {
            fn from(n: $int) -> Self {
                match n {
                    $( $value => Self::$variant, )+
                    n => Self::Unknown(n),
                }
            }
        }

        impl From<$name> for $int {
            fn from(name: $name) -> Self {
                match name {
                    $( $name::$variant => $value, )+
                    $name::Unknown(n) => n,
                }
            }
        }
    };
}

/// Reads from the front of a slice; every read names the structure it is for.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(super) fn bytes(&mut self, need: usize) -> Result<&'a [u8], Error> {
        let (head, tail) = self
            .rest
            .split_at_checked(need)
            .ok_or(self.truncated(need))?;
        self.rest = tail;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (head, tail) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(self.truncated(N))?;
        self.rest = tail;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_be_bytes)
    }

    /// The length field at offset 2 of a payload, proposal, transform or traffic selector, and the reader of what follows
    /// it. The length counts the four bytes up to its own end.
    pub(super) fn sized(&mut self, what: &'static str) -> Result<Reader<'a>, Error> {
        let length = usize::from(self.u16()?);
        let left = length.checked_sub(SIZED_LEN).ok_or(Error::Length {
            what,
            expected: "a length field of at least 4",
            got: length,
        })?;
        Ok(Reader::new(what, self.bytes(left)?))
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Refuses bytes behind the end of the structure.
    pub(super) fn finish(self) -> Result<(), Error> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(Error::Trailing {
                what: self.what,
                extra,
            }),
        }
    }

    fn truncated(&self, need: usize) -> Error {
        Error::Truncated {
            what: self.what,
            need,
            have: self.rest.len(),
        }
    }
}

/// Appends big-endian fields to a growing buffer.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The length field at offset 2 of a structure, see [`Reader::sized`], and what `body` writes behind it. A body that is
    /// too long for the field is cut, so that what leaves is well-formed; no caller makes one (a certificate chain is one
    /// payload per certificate, and configuration bounds the rest).
    pub(super) fn sized(&mut self, body: impl FnOnce(&mut Self)) {
        let field = self.0.len();
        self.u16(0);
        let start = self.0.len();
        body(self);
        self.0.truncate(start + usize::from(u16::MAX) - SIZED_LEN);
        let length = u16::try_from(SIZED_LEN + self.0.len() - start).unwrap_or(u16::MAX);
        self.patch(field, &length.to_be_bytes());
    }

    /// Overwrites bytes already written.
    fn patch(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    pub(super) fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

/// A list's length for an 8-bit count field, and the part of the list that it can count.
pub(super) fn countable<T>(list: &[T]) -> (u8, &[T]) {
    let count = u8::try_from(list.len()).unwrap_or(u8::MAX);
    (count, list.get(..usize::from(count)).unwrap_or(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_name_what_is_missing() {
        let mut reader = Reader::new("thing", &[1, 2, 3]);
        assert_eq!(reader.u16().unwrap(), 0x0102);
        assert_eq!(
            reader.u32(),
            Err(Error::Truncated {
                what: "thing",
                need: 4,
                have: 1
            })
        );
        assert_eq!(reader.left(), 1, "a failed read takes nothing");
        assert_eq!(
            reader.finish(),
            Err(Error::Trailing {
                what: "thing",
                extra: 1
            })
        );
    }

    #[test]
    fn a_length_below_its_own_fixed_part_is_refused() {
        let mut reader = Reader::new("outer", &[0, 3, 0xaa]);
        assert!(matches!(
            reader.sized("inner"),
            Err(Error::Length {
                what: "inner",
                got: 3,
                ..
            })
        ));
    }

    #[test]
    fn length_fields_count_what_stands_before_them() {
        let mut writer = Writer::default();
        writer.u16(0xbeef);
        writer.sized(|w| w.bytes(&[7, 7]));
        assert_eq!(writer.into_vec(), [0xbe, 0xef, 0, 6, 7, 7]);
    }

    #[test]
    fn a_body_too_long_for_its_field_is_cut_to_fit() {
        let mut writer = Writer::default();
        writer.u16(0);
        writer.sized(|w| w.bytes(&[0; 70_000]));
        let bytes = writer.into_vec();
        assert_eq!(bytes.len(), 65_535);
        assert_eq!(bytes[2..4], [0xff, 0xff]);
    }
}
