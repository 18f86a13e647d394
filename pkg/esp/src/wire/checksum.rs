//! The Internet checksum (RFC 1071) and the pseudo-headers of TCP and UDP.

use std::net::IpAddr;

/// Ones' complement sum of `bytes` as big-endian 16-bit words, an odd last byte filled up with zero. Sums may be added, and
/// [`fold`]ed at the end; what is added behind a part of odd length would be off by a byte.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    // The order of bytes does not matter to such a sum (RFC 1071 §2 B): words as the machine has them are what it adds fastest
    // (64 bits and their carries; a third less time than 32-bit words), and the result is turned round once.
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    let words = words
        .iter()
        .map(|word| u128::from(u64::from_ne_bytes(*word)));
    let native = words.sum::<u128>() + u128::from(u64::from_ne_bytes(last));
    // 2^32 counts as 1, and so does 2^64.
    let halves = [
        native >> 64,
        native >> 32 & 0xffff_ffff,
        native & 0xffff_ffff,
    ];
    let native: u64 = halves.iter().map(|half| *half as u64).sum();
    fold(native).to_be().into()
}

/// A sum brought into 16 bits.
#[must_use]
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What goes into a checksum field for this sum; never 0, which in UDP would mean that there is none. Where it means nothing
/// special, ffff says the same.
#[must_use]
pub fn field(sum: u64) -> u16 {
    match !fold(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1) of `len` bytes of `protocol` between two addresses.
#[must_use]
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    address(source) + address(destination) + u64::from(protocol) + len as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plainly(bytes: &[u8]) -> u16 {
        let words = bytes
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)));
        let sum = words.sum::<u32>();
        let once = (sum & 0xffff) + (sum >> 16);
        ((once & 0xffff) + (once >> 16)) as u16
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), 0xddf2);
        assert_eq!(field(0xffff), 0xffff);
        assert_eq!(field(0), 0xffff);
    }

    proptest! {
        #[test]
        fn agrees_with_adding_word_by_word(bytes in prop::collection::vec(any::<u8>(), 0..2000), at in 0usize..2000) {
            prop_assert_eq!(fold(sum(&bytes)), plainly(&bytes));
            let (head, tail) = bytes.split_at((at & !1).min(bytes.len() & !1));
            prop_assert_eq!(fold(sum(head) + sum(tail)), plainly(&bytes));
        }
    }
}
