use crate::aead::{Aead, AwsLc, SaltedKey};
use crate::error::{KeyError, OpenError};
use crate::replay::{ReplayError, ReplayWindow};
use crate::wire::esp;
use crate::{Algorithm, HEADER_LEN, ICV_LEN};

/// One inbound SA: key and replay window.
pub struct InboundSa<A = AwsLc> {
    spi: u32,
    key: SaltedKey<A>,
    esn: bool,
    window: ReplayWindow,
}

/// An authentic packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'p> {
    /// What the payload is: [`crate::next_header`].
    pub next_header: u8,
    /// Payload, with TFC padding if the sender put any (RFC 4303 §2.7): the payload's own length fields tell where it ends.
    pub payload: &'p mut [u8],
    /// Sequence number, all 64 bits.
    pub sequence: u64,
}

impl<A: Aead> InboundSa<A> {
    /// `material` is the key followed by the 4-byte salt, `window` in packets (1 to [`crate::MAX_WINDOW`], others are brought
    /// to the nearest of these).
    ///
    /// # Errors
    /// [`KeyError`] when the length does not fit the algorithm.
    pub fn new(
        spi: u32,
        algorithm: Algorithm,
        material: &[u8],
        esn: bool,
        window: u32,
    ) -> Result<Self, KeyError> {
        let key = SaltedKey::new(algorithm, material)?;
        Ok(Self {
            spi,
            key,
            esn,
            window: ReplayWindow::new(window),
        })
    }

    /// Goes on with the window of a process that has ended, instead of a new one.
    #[must_use]
    pub fn with_window(mut self, window: ReplayWindow) -> Self {
        self.window = window;
        self
    }

    /// What was received.
    #[must_use]
    pub fn window(&self) -> &ReplayWindow {
        &self.window
    }

    /// SPI that packets carry.
    #[must_use]
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// Opens one ESP packet in place. The window is asked first and moved last: a packet that is not authentic changes nothing
    /// (S6). After an error the contents of `packet` are undefined.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::BadTrailer`] alone comes from an authentic packet.
    pub fn open<'p>(&mut self, packet: &'p mut [u8]) -> Result<Opened<'p>, OpenError> {
        let got = packet.len();
        let truncated = OpenError::Truncated {
            needed: esp::MIN_LEN,
            got,
        };
        if got < esp::MIN_LEN {
            return Err(truncated);
        }
        let header = esp::Header::parse(packet).ok_or(truncated)?;
        if header.spi != self.spi {
            return Err(OpenError::WrongSpi {
                expected: self.spi,
                got: header.spi,
            });
        }
        let sequence = self.sequence(header.sequence_low)?;
        self.window.check(sequence)?;
        let (text, icv) = packet[HEADER_LEN..]
            .split_last_chunk_mut::<ICV_LEN>()
            .ok_or(truncated)?;
        let (aad, aad_len) = header.aad(self.esn.then_some((sequence >> 32) as u32));
        self.key
            .open(header.iv, &aad[..aad_len], text, icv)
            .map_err(|_| OpenError::BadIcv)?;
        self.window.accept(sequence);
        let (payload, next_header) = strip_trailer(text)?;
        Ok(Opened {
            next_header,
            payload,
            sequence,
        })
    }

    #[cfg(test)]
    pub(crate) fn set_top(&mut self, top: u64) {
        self.window.accept(top);
    }

    fn sequence(&self, low: u32) -> Result<u64, ReplayError> {
        if self.esn {
            self.window.recover(low)
        } else {
            Ok(u64::from(low))
        }
    }
}

fn strip_trailer(text: &mut [u8]) -> Result<(&mut [u8], u8), OpenError> {
    let (available, pad_len, next_header) = esp::split_trailer(text)
        .map_or((0, 1, 0), |(rest, pad_len, next)| {
            (rest.len(), pad_len, next)
        });
    let len = available
        .checked_sub(usize::from(pad_len))
        .ok_or(OpenError::BadTrailer {
            pad_len: pad_len.into(),
            available,
        })?;
    Ok((&mut text[..len], next_header))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::OutboundSa;

    const MATERIAL: [u8; 36] = [0x5a; 36];
    const LOW_WRAP: u64 = 1 << 32;

    fn inbound(esn: bool, window: u32) -> InboundSa {
        InboundSa::new(0x1000, Algorithm::Aes256Gcm16, &MATERIAL, esn, window).unwrap()
    }

    fn outbound(esn: bool, last: u64) -> OutboundSa {
        OutboundSa::new(0x1000, Algorithm::Aes256Gcm16, &MATERIAL, esn)
            .unwrap()
            .at(last)
    }

    fn sealed(sa: &OutboundSa) -> Vec<u8> {
        let mut out = vec![0; 128];
        let len = sa.seal(4, b"head", b"a pod packet", &mut out).unwrap();
        out.truncate(len);
        out
    }

    fn packet(esn: bool, sequence: u64) -> Vec<u8> {
        sealed(&outbound(esn, sequence - 1))
    }

    fn open(sa: &mut InboundSa, packet: &[u8]) -> Result<u64, OpenError> {
        sa.open(&mut packet.to_vec()).map(|opened| opened.sequence)
    }

    #[test]
    fn what_was_sealed_is_opened() {
        for esn in [false, true] {
            let mut bytes = packet(esn, 1);
            let mut receiver = inbound(esn, 64);
            let opened = receiver.open(&mut bytes).unwrap();
            assert_eq!((opened.next_header, opened.sequence), (4, 1));
            assert_eq!(opened.payload, b"heada pod packet");
        }
    }

    #[test]
    fn s6_a_change_of_any_byte_is_refused_and_leaves_the_window_alone() {
        for algorithm in [
            Algorithm::Aes128Gcm16,
            Algorithm::Aes256Gcm16,
            Algorithm::ChaCha20Poly1305,
        ] {
            let material = &MATERIAL[..algorithm.key_len() + 4];
            let sender: OutboundSa = OutboundSa::new(0x1000, algorithm, material, true).unwrap();
            let mut receiver: InboundSa =
                InboundSa::new(0x1000, algorithm, material, true, 64).unwrap();
            let good = sealed(&sender);
            for at in 0..good.len() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut bad = good.clone();
                    bad[at] ^= flip;
                    let refused = receiver.open(&mut bad).unwrap_err();
                    let expected = if at < 4 {
                        matches!(refused, OpenError::WrongSpi { .. })
                    } else {
                        true
                    };
                    assert!(expected, "byte {at}: {refused}");
                    assert!(
                        !matches!(refused, OpenError::BadTrailer { .. }),
                        "byte {at} was authenticated"
                    );
                }
            }
            assert_eq!(
                open(&mut receiver, &good),
                Ok(1),
                "the original still opens"
            );
        }
    }

    #[test]
    fn a_replayed_packet_is_refused() {
        let (mut receiver, bytes) = (inbound(true, 64), packet(true, 9));
        assert_eq!(open(&mut receiver, &bytes), Ok(9));
        assert_eq!(
            open(&mut receiver, &bytes),
            Err(ReplayError::Replayed { sequence: 9 }.into())
        );
    }

    #[test]
    fn the_window_is_asked_before_decryption() {
        let mut receiver = inbound(true, 64);
        open(&mut receiver, &packet(true, 100)).unwrap();
        let mut seen_and_forged = packet(true, 100);
        seen_and_forged[20] ^= 1;
        let refused = open(&mut receiver, &seen_and_forged);
        assert_eq!(
            refused,
            Err(ReplayError::Replayed { sequence: 100 }.into()),
            "not a wrong ICV"
        );
    }

    #[test]
    fn the_low_half_wraps_with_esn_and_reordering_across_the_wrap_is_fine() {
        let mut receiver = inbound(true, 64);
        let order = [-3i64, 2, -2, 0, -1, 1, 40, -20, 3];
        open(&mut receiver, &packet(true, 1)).unwrap();
        // A receiver follows only what it has seen: bring it close to the wrap first.
        for step in [1u64 << 30, 2 << 30, 3 << 30, LOW_WRAP - 30] {
            assert_eq!(open(&mut receiver, &packet(true, step)), Ok(step));
        }
        for offset in order {
            let sequence = LOW_WRAP.wrapping_add_signed(offset);
            assert_eq!(
                open(&mut receiver, &packet(true, sequence)),
                Ok(sequence),
                "wrap {offset:+}"
            );
        }
        for offset in order {
            let again = packet(true, LOW_WRAP.wrapping_add_signed(offset));
            assert!(
                matches!(open(&mut receiver, &again), Err(OpenError::Replay(_))),
                "wrap {offset:+} again"
            );
        }
    }

    #[test]
    fn a_packet_of_another_epoch_has_another_aad() {
        let mut receiver = inbound(true, 64);
        let same_low_half = packet(true, LOW_WRAP + 5);
        assert_eq!(open(&mut receiver, &same_low_half), Err(OpenError::BadIcv));
        assert_eq!(open(&mut receiver, &packet(true, 5)), Ok(5));
    }

    #[test]
    fn without_esn_the_last_sequence_number_opens() {
        let mut receiver = inbound(false, 64);
        let last = u64::from(u32::MAX);
        assert_eq!(open(&mut receiver, &packet(false, last)), Ok(last));
        assert_eq!(
            open(&mut receiver, &packet(false, last - 63)),
            Ok(last - 63)
        );
        assert!(matches!(
            open(&mut receiver, &packet(false, last - 64)),
            Err(OpenError::Replay(_))
        ));
    }

    #[test]
    fn an_authentic_packet_with_an_impossible_pad_length_is_refused() {
        let key: SaltedKey<AwsLc> = SaltedKey::new(Algorithm::Aes256Gcm16, &MATERIAL).unwrap();
        let header = esp::Header {
            spi: 0x1000,
            sequence_low: 1,
            iv: [1; 8],
        };
        let mut bytes = vec![0; HEADER_LEN];
        header.emit(&mut bytes);
        let mut text = [0xaa, 0xaa, 3, 4];
        let (aad, len) = header.aad(Some(0));
        let icv = key.seal(header.iv, &aad[..len], &mut text).unwrap();
        bytes.extend_from_slice(&text);
        bytes.extend_from_slice(&icv);
        let refused = inbound(true, 64).open(&mut bytes).map(|_| ()).unwrap_err();
        assert_eq!(
            refused,
            OpenError::BadTrailer {
                pad_len: 3,
                available: 2
            }
        );
    }

    proptest! {
        #[test]
        fn every_payload_survives_and_every_truncation_is_refused(
            payload in prop::collection::vec(any::<u8>(), 0..300),
            sequence in 1..=0x7fff_ffff_u64,
            next_header in any::<u8>(),
            esn in any::<bool>(),
        ) {
            let mut bytes = vec![0; 400];
            let len = outbound(esn, sequence - 1).seal(next_header, &[], &payload, &mut bytes).unwrap();
            for cut in 0..len {
                prop_assert!(inbound(esn, 64).open(&mut bytes[..cut].to_vec()).is_err());
            }
            let mut receiver = inbound(esn, 64);
            let opened = receiver.open(&mut bytes[..len]).unwrap();
            prop_assert_eq!((opened.next_header, opened.sequence), (next_header, sequence));
            prop_assert_eq!(&opened.payload[..], &payload[..]);
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), ours in any::<bool>()) {
            if ours && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&0x1000_u32.to_be_bytes());
            }
            prop_assert!(inbound(true, 64).open(&mut bytes).is_err());
        }
    }
}
