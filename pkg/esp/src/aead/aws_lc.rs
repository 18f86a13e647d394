use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};

use super::{Aead, Algorithm, NONCE_LEN, Refused};
use crate::error::KeyError;

/// AWS-LC: the fastest the CPU has. Its key schedule is wiped when it is freed.
pub struct AwsLc(LessSafeKey);

impl Aead for AwsLc {
    fn new(algorithm: Algorithm, key: &[u8]) -> Result<Self, KeyError> {
        let cipher = match algorithm {
            Algorithm::Aes128Gcm16 => &AES_128_GCM,
            Algorithm::Aes256Gcm16 => &AES_256_GCM,
            Algorithm::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        UnboundKey::new(cipher, key)
            .map(|key| Self(LessSafeKey::new(key)))
            .map_err(|_| algorithm.length_error(key.len()))
    }

    fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; 16], Refused> {
        let mut icv = [0; 16];
        self.0
            .seal_in_place_scatter(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                in_out,
                &[],
                &mut icv,
            )
            .map_err(|_| Refused)?;
        Ok(icv)
    }

    fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
        icv: &[u8; 16],
    ) -> Result<(), Refused> {
        self.0
            .open_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                icv,
                in_out,
            )
            .map(|_| ())
            .map_err(|_| Refused)
    }
}
