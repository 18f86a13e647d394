//! The AEAD of the hot path: whichever was measured to be faster (docs/performance.md, "Userspace data plane").

#[cfg(target_arch = "x86_64")]
pub(crate) use ring_aead::Ring as Cipher;

/// Not measured against ring on other machines; AWS-LC has newer code for AES-GCM on aarch64.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use espalier_esp::aead::AwsLc as Cipher;

#[cfg(target_arch = "x86_64")]
mod ring_aead {
    use std::hint::black_box;

    use espalier_esp::aead::{Aead, NONCE_LEN, Refused};
    use espalier_esp::{Algorithm, ICV_LEN, KeyError};
    use ring::aead::{
        AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey,
    };

    /// ring: on CPUs with VAES but without AVX-512 nearly twice as fast as AWS-LC.
    pub(crate) struct Ring(Box<LessSafeKey>);

    impl Aead for Ring {
        fn new(algorithm: Algorithm, key: &[u8]) -> Result<Self, KeyError> {
            let cipher = match algorithm {
                Algorithm::Aes128Gcm16 => &AES_128_GCM,
                Algorithm::Aes256Gcm16 => &AES_256_GCM,
                Algorithm::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            };
            UnboundKey::new(cipher, key)
                .map(|key| Self(Box::new(LessSafeKey::new(key))))
                .map_err(|_| algorithm.length_error(key.len()))
        }

        fn seal(
            &self,
            nonce: [u8; NONCE_LEN],
            aad: &[u8],
            in_out: &mut [u8],
        ) -> Result<[u8; ICV_LEN], Refused> {
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = self
                .0
                .seal_in_place_separate_tag(nonce, Aad::from(aad), in_out)
                .map_err(|_| Refused)?;
            tag.as_ref().try_into().map_err(|_| Refused)
        }

        fn open(
            &self,
            nonce: [u8; NONCE_LEN],
            aad: &[u8],
            in_out: &mut [u8],
            icv: &[u8; ICV_LEN],
        ) -> Result<(), Refused> {
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.0
                .open_in_place_separate_tag(nonce, Aad::from(aad), Tag::from(*icv), in_out, 0..)
                .map(|_| ())
                .map_err(|_| Refused)
        }
    }

    /// ring does not wipe its keys: the schedule of a key of zeros is written over this one's, in its place.
    impl Drop for Ring {
        fn drop(&mut self) {
            let algorithm = self.0.algorithm();
            let zeros = [0; 32];
            let zeros = zeros.get(..algorithm.key_len()).unwrap_or(&zeros);
            if let Ok(key) = UnboundKey::new(algorithm, zeros) {
                *self.0 = LessSafeKey::new(key);
            }
            // What is written just before memory is freed would otherwise be left out.
            black_box(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use espalier_esp::Algorithm;
    use espalier_esp::aead::{Aead as _, AwsLc, Portable};
    use proptest::prelude::*;

    use super::Cipher;

    #[test]
    fn a_key_of_the_wrong_length_is_refused() {
        assert!(Cipher::new(Algorithm::Aes256Gcm16, &[0; 16]).is_err());
        assert!(Cipher::new(Algorithm::Aes128Gcm16, &[]).is_err());
    }

    proptest! {
        #[test]
        fn the_hot_path_and_the_references_agree(
            key in prop::array::uniform32(any::<u8>()),
            nonce in prop::array::uniform12(any::<u8>()),
            aad in prop::collection::vec(any::<u8>(), 8..=12),
            plain in prop::collection::vec(any::<u8>(), 0..3000),
            algorithm in prop::sample::select(&[Algorithm::Aes128Gcm16, Algorithm::Aes256Gcm16, Algorithm::ChaCha20Poly1305][..]),
        ) {
            let key = &key[..algorithm.key_len()];
            let (hot, aws) = (Cipher::new(algorithm, key).unwrap(), AwsLc::new(algorithm, key).unwrap());
            let (mut one, mut other) = (plain.clone(), plain.clone());
            let icv = hot.seal(nonce, &aad, &mut one).unwrap();
            prop_assert_eq!(icv, aws.seal(nonce, &aad, &mut other).unwrap());
            prop_assert_eq!(&one, &other);
            if let Ok(portable) = Portable::new(algorithm, key) {
                portable.open(nonce, &aad, &mut other, &icv).unwrap();
                prop_assert_eq!(&other, &plain);
            }
            let mut forged = icv;
            forged[0] ^= 1;
            prop_assert!(hot.open(nonce, &aad, &mut one.clone(), &forged).is_err());
            hot.open(nonce, &aad, &mut one, &icv).unwrap();
            prop_assert_eq!(&one, &plain);
        }
    }
}
