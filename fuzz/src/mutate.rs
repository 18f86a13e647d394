//! Deterministic mutations: a seed gives the same mutants on every machine.

use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};

/// Bytes that lengths, counts and flags like to go wrong at.
const EDGES: [u8; 8] = [0x00, 0x01, 0x03, 0x04, 0x7f, 0x80, 0xfe, 0xff];

/// Longest mutant: a UDP datagram and a little.
const MAX_LEN: usize = 70_000;

/// SplitMix64: small, seeded, good enough to choose places and bytes. Not for keys.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator from the bytes of a name and a number.
    #[must_use]
    pub fn new(name: &str, number: u64) -> Self {
        // FNV-1a: std's hashers are not promised to stay the same.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(hash ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.bits() % bound).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.bits().to_le_bytes()[0]
    }

    /// A range inside `len` bytes, at most 64 long.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        let count = self.below((len - start).min(64) + 1);
        start..start + count
    }
}

/// Keys in targets are the same in every run, so that an input always does the same. They protect nothing.
impl TryRng for Rng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.bits() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.bits())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill_with(|| self.byte());
        Ok(())
    }
}

impl TryCryptoRng for Rng {}

/// A mutant of `input`: one to three changes, of which some take bytes of `other`.
#[must_use]
pub fn mutant(rng: &mut Rng, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=rng.below(3) {
        change(rng, &mut bytes, other);
    }
    bytes.truncate(MAX_LEN);
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    match rng.below(8) {
        0 => flip(rng, bytes),
        1 => bytes.truncate(rng.below(bytes.len() + 1)),
        2 => splice(rng, bytes, other),
        3 => overwrite(rng, bytes),
        4 => edge(rng, bytes),
        5 => length(rng, bytes),
        6 => drop(bytes.drain(rng.range(bytes.len()))),
        _ => repeat(rng, bytes),
    }
}

fn flip(rng: &mut Rng, bytes: &mut [u8]) {
    let bit = rng.below(8);
    let at = rng.below(bytes.len());
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << bit;
    }
}

/// The beginning of one and the end of the other.
fn splice(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    bytes.truncate(rng.below(bytes.len() + 1));
    bytes.extend(other.iter().skip(rng.below(other.len() + 1)));
}

fn overwrite(rng: &mut Rng, bytes: &mut [u8]) {
    for at in rng.range(bytes.len()) {
        bytes[at] = rng.byte();
    }
}

fn edge(rng: &mut Rng, bytes: &mut [u8]) {
    let value = EDGES[rng.below(EDGES.len())];
    let at = rng.below(bytes.len());
    if let Some(byte) = bytes.get_mut(at) {
        *byte = value;
    }
}

/// A 16-bit field gets a length around what is left behind it.
fn length(rng: &mut Rng, bytes: &mut [u8]) {
    let at = rng.below(bytes.len());
    let left = (bytes.len() - at + 4).saturating_sub(rng.below(9));
    let value = u16::try_from(left).unwrap_or(u16::MAX).to_be_bytes();
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value);
    }
}

fn repeat(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let range = rng.range(bytes.len());
    let (at, copy) = (range.end, bytes[range].to_vec());
    bytes.splice(at..at, copy);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_mutants() {
        let mutants = |number| {
            let mut rng = Rng::new("target/file", number);
            let one = move |_| mutant(&mut rng, b"some input of some length", b"another one");
            (0..100).map(one).collect::<Vec<_>>()
        };
        assert_eq!(mutants(1), mutants(1));
        assert_ne!(mutants(1), mutants(2));
    }

    #[test]
    fn empty_input_has_mutants_too() {
        let mut rng = Rng::new("empty", 0);
        assert!((0..1000).any(|_| !mutant(&mut rng, b"", b"other").is_empty()));
        assert!((0..1000).all(|_| mutant(&mut rng, b"", b"").is_empty()));
    }
}
