use std::sync::atomic::{AtomicU64, Ordering};

use crate::aead::{Aead, AwsLc, SaltedKey};
use crate::error::{KeyError, SealError};
use crate::wire::esp;
use crate::{Algorithm, HEADER_LEN, ICV_LEN};

/// One outbound SA: key and counter. The counter starts at zero with the key, or behind what a process that has ended used of it,
/// and only ever goes up: no nonce repeats as long as a key is given to one `OutboundSa` at a time (S4). Shared between threads
/// without a lock.
pub struct OutboundSa<A = AwsLc> {
    spi: u32,
    key: SaltedKey<A>,
    esn: bool,
    last: AtomicU64,
}

impl<A: Aead> OutboundSa<A> {
    /// `material` is the key followed by the 4-byte salt.
    ///
    /// # Errors
    /// [`KeyError`] when the length does not fit the algorithm.
    pub fn new(
        spi: u32,
        algorithm: Algorithm,
        material: &[u8],
        esn: bool,
    ) -> Result<Self, KeyError> {
        let key = SaltedKey::new(algorithm, material)?;
        Ok(Self {
            spi,
            key,
            esn,
            last: AtomicU64::new(0),
        })
    }

    /// Goes on behind `last`, the [`Self::last_sequence`] of the process that sealed with this key before and has ended.
    #[must_use]
    pub fn after(self, last: u64) -> Self {
        self.last.fetch_max(last, Ordering::Relaxed);
        self
    }

    /// SPI that goes on the wire.
    #[must_use]
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// The last sequence number used; 0 before the first packet.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Bytes of the ESP packet around `payload` bytes: padding brings pad length and next header to a 4-byte boundary
    /// (RFC 4303 §2.4).
    #[must_use]
    pub fn sealed_len(payload: usize) -> usize {
        HEADER_LEN + esp::padded_len(payload) + ICV_LEN
    }

    /// Seals `head` and `body`, one after the other, into `out`. Returns the bytes of the ESP packet.
    ///
    /// # Errors
    /// [`SealError`]; a sequence number is used up by [`SealError::Cipher`] only.
    pub fn seal(
        &self,
        next_header: u8,
        head: &[u8],
        body: &[u8],
        out: &mut [u8],
    ) -> Result<usize, SealError> {
        let payload = head.len() + body.len();
        check_room(Self::sealed_len(payload), out.len())?;
        out[HEADER_LEN..][..head.len()].copy_from_slice(head);
        out[HEADER_LEN + head.len()..][..body.len()].copy_from_slice(body);
        self.seal_in_place(next_header, payload, out)
    }

    /// Seals the `payload` bytes that stand in `out` behind the first [`HEADER_LEN`]. Returns the bytes of the ESP packet.
    ///
    /// # Errors
    /// [`SealError`]; a sequence number is used up by [`SealError::Cipher`] only.
    pub fn seal_in_place(
        &self,
        next_header: u8,
        payload: usize,
        out: &mut [u8],
    ) -> Result<usize, SealError> {
        let total = Self::sealed_len(payload);
        check_room(total, out.len())?;
        let sequence = self.next_sequence()?;
        let (header, rest) = out[..total].split_at_mut(HEADER_LEN);
        let (text, icv) = rest.split_at_mut(rest.len() - ICV_LEN);
        let wire = esp::Header {
            spi: self.spi,
            sequence_low: sequence as u32,
            iv: sequence.to_be_bytes(),
        };
        wire.emit(header);
        esp::emit_trailer(text, payload, next_header);
        let (aad, aad_len) = wire.aad(self.esn.then_some((sequence >> 32) as u32));
        let sealed = self.key.seal(wire.iv, &aad[..aad_len], text);
        icv.copy_from_slice(&sealed.map_err(|_| SealError::Cipher)?);
        Ok(total)
    }

    fn next_sequence(&self) -> Result<u64, SealError> {
        let limit = if self.esn {
            u64::MAX
        } else {
            u64::from(u32::MAX)
        };
        self.last
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                (last < limit).then(|| last + 1)
            })
            .map(|last| last + 1)
            .map_err(|_| SealError::Exhausted)
    }

    #[cfg(test)]
    pub(crate) fn at(self, last: u64) -> Self {
        self.last.store(last, Ordering::Relaxed);
        self
    }
}

fn check_room(needed: usize, got: usize) -> Result<(), SealError> {
    if got < needed {
        Err(SealError::BufferTooShort { needed, got })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn sa(esn: bool) -> OutboundSa {
        OutboundSa::new(0x1234_5678, Algorithm::Aes256Gcm16, &[7; 36], esn).unwrap()
    }

    fn sequence_of(sa: &OutboundSa) -> Result<u64, SealError> {
        let mut out = [0; 64];
        sa.seal(17, b"head", b"body", &mut out)?;
        Ok(u64::from_be_bytes(out[8..16].try_into().unwrap()))
    }

    #[test]
    fn the_first_packet_has_sequence_number_one() {
        let sa = sa(true);
        assert_eq!(sa.last_sequence(), 0);
        assert_eq!(sequence_of(&sa), Ok(1));
        assert_eq!(sequence_of(&sa), Ok(2));
        assert_eq!(sa.last_sequence(), 2);
    }

    #[test]
    fn s4_a_counter_at_its_end_refuses_and_stays_there() {
        for (sa, end) in [(sa(true), u64::MAX), (sa(false), u64::from(u32::MAX))] {
            let sa = sa.at(end - 1);
            assert_eq!(sequence_of(&sa), Ok(end), "the last one is usable");
            assert_eq!(sequence_of(&sa), Err(SealError::Exhausted));
            assert_eq!(sequence_of(&sa), Err(SealError::Exhausted));
            assert_eq!(sa.last_sequence(), end);
        }
    }

    #[test]
    fn s4_a_resumed_counter_goes_on_and_never_back() {
        let resumed = sa(true).after(41);
        assert_eq!(sequence_of(&resumed), Ok(42));
        let resumed = resumed.after(7);
        assert_eq!(sequence_of(&resumed), Ok(43));
        let used_up = sa(false).after(u64::from(u32::MAX) + 5);
        assert_eq!(sequence_of(&used_up), Err(SealError::Exhausted));
    }

    #[test]
    fn s4_threads_that_share_an_sa_never_share_a_nonce() {
        let sa = sa(true);
        let seal_some = || {
            (0..2000)
                .map(|_| sequence_of(&sa).unwrap())
                .collect::<Vec<_>>()
        };
        let used: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(seal_some)).collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(used.iter().collect::<HashSet<_>>().len(), 8000);
        assert_eq!(sa.last_sequence(), 8000);
    }

    #[test]
    fn a_short_buffer_is_refused_at_every_length_and_uses_no_sequence_number() {
        let sa = sa(true);
        let needed = OutboundSa::<AwsLc>::sealed_len(8);
        for got in 0..needed {
            let refused = sa.seal(17, b"head", b"body", &mut vec![0; got]);
            assert_eq!(refused, Err(SealError::BufferTooShort { needed, got }));
        }
        assert_eq!(sa.last_sequence(), 0);
        assert_eq!(
            sa.seal(17, b"head", b"body", &mut vec![0; needed]),
            Ok(needed)
        );
    }

    #[test]
    fn padding_brings_the_trailer_to_four_bytes() {
        let lengths: Vec<_> = (0..6).map(OutboundSa::<AwsLc>::sealed_len).collect();
        assert_eq!(lengths, [36, 36, 36, 40, 40, 40]);
    }
}
