//! AUTH payloads: signed octets and shared keys (RFC 7296 §2.15), digital signatures (RFC 7427, RFC 8420).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, UnparsedPublicKey, VerificationAlgorithm,
};
use espalier_secret::SecretBytes;
use subtle::ConstantTimeEq;

use super::AuthError;
use super::schedule::SkP;
use crate::event::Role;
use crate::wire::DigitalSignature;

/// Shortest PSK in bytes: 256 bits, since anyone who takes part in a handshake can try to guess it at leisure.
pub const MIN_PSK_LEN: usize = 32;

const KEY_PAD: &[u8] = b"Key Pad for IKEv2";

/// What one end's AUTH payload covers (RFC 7296 §2.15):
/// `its IKE_SA_INIT message | the other end's nonce | prf(SK_p, its ID payload without generic header)`.
pub struct SignedOctets {
    octets: Vec<u8>,
    prf: super::Prf,
}

impl fmt::Debug for SignedOctets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedOctets({} bytes)", self.octets.len())
    }
}

impl SignedOctets {
    /// All of the **signer**: `message` is the IKE_SA_INIT datagram that it sent (the last one, when a cookie or another
    /// group was asked for; without non-ESP marker), `sk_p` its SK_pi or SK_pr, `id_body` its ID payload from the ID type
    /// on. `nonce` is the data of the **other** end's nonce payload.
    #[must_use]
    pub fn new(message: &[u8], nonce: &[u8], sk_p: &SkP, id_body: &[u8]) -> Self {
        let maced = sk_p.mac(&[id_body]);
        Self {
            octets: [message, nonce, maced.expose()].concat(),
            prf: sk_p.prf(),
        }
    }

    /// With what the IKE_INTERMEDIATE exchanges before the IKE_AUTH exchange with this message ID add (RFC 9242 §3.3.2).
    #[must_use]
    pub fn with_intermediate(mut self, intermediate: &IntAuth, auth_id: u32) -> Self {
        for part in [
            intermediate.initiator.expose(),
            intermediate.responder.expose(),
            &auth_id.to_be_bytes(),
        ] {
            self.octets.extend_from_slice(part);
        }
        self
    }

    /// The octets themselves.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.octets
    }
}

/// IntAuth_i and IntAuth_r: the chains of MACs over all IKE_INTERMEDIATE messages of either end (RFC 9242 §3.3.2).
#[derive(Clone, Debug, Default)]
pub struct IntAuth {
    initiator: SecretBytes,
    responder: SecretBytes,
}

impl IntAuth {
    /// Adds a message that the end with `sender`'s role sent. `sk_p` is that end's, as it was before the exchange; `covered`
    /// is the message from the IKE header to the generic header of the SK payload, followed by the inner payloads, with
    /// both length fields as if there were nothing else: no IV, padding and ICV, and no fragments.
    pub fn add(&mut self, sender: Role, sk_p: &SkP, covered: &[u8]) {
        let chain = match sender {
            Role::Initiator => &mut self.initiator,
            Role::Responder => &mut self.responder,
        };
        *chain = sk_p.mac(&[chain.expose(), covered]);
    }
}

/// AUTH data by shared key: `prf(prf(PSK, "Key Pad for IKEv2"), octets)`.
///
/// # Errors
/// [`AuthError::PskTooShort`].
pub fn psk_auth(psk: &SecretBytes, octets: &SignedOctets) -> Result<SecretBytes, AuthError> {
    if psk.len() < MIN_PSK_LEN {
        return Err(AuthError::PskTooShort {
            least: MIN_PSK_LEN,
            got: psk.len(),
        });
    }
    Ok(psk_mac(psk, octets))
}

/// Checks AUTH data by shared key, in constant time.
///
/// # Errors
/// [`AuthError::PskMismatch`], [`AuthError::PskTooShort`].
pub fn verify_psk_auth(
    psk: &SecretBytes,
    octets: &SignedOctets,
    received: &[u8],
) -> Result<(), AuthError> {
    let expected = psk_auth(psk, octets)?;
    if bool::from(expected.expose().ct_eq(received)) {
        Ok(())
    } else {
        Err(AuthError::PskMismatch)
    }
}

fn psk_mac(psk: &SecretBytes, octets: &SignedOctets) -> SecretBytes {
    let padded = octets.prf.compute(psk.expose(), &[KEY_PAD]);
    octets.prf.compute(padded.expose(), &[octets.as_bytes()])
}

/// A signature algorithm together with its key type and hash: no other combination is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureScheme {
    /// ECDSA on P-256 with SHA-256.
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384.
    EcdsaP384Sha384,
    /// Ed25519 (RFC 8420).
    Ed25519,
}

impl SignatureScheme {
    /// All, in order of preference.
    pub const ALL: [Self; 3] = [Self::EcdsaP256Sha256, Self::EcdsaP384Sha384, Self::Ed25519];

    /// Whole DER of the AlgorithmIdentifier (RFC 7427 appendix A.3, RFC 8420 appendix A): compared byte for byte.
    #[must_use]
    pub fn algorithm_identifier(self) -> &'static [u8] {
        match self {
            Self::EcdsaP256Sha256 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02",
            Self::EcdsaP384Sha384 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03",
            Self::Ed25519 => b"\x30\x05\x06\x03\x2b\x65\x70",
        }
    }

    /// Number in SIGNATURE_HASH_ALGORITHMS (RFC 7427 §7): SHA2-256, SHA2-384, Identity.
    #[must_use]
    pub fn hash_id(self) -> u16 {
        match self {
            Self::EcdsaP256Sha256 => 2,
            Self::EcdsaP384Sha384 => 3,
            Self::Ed25519 => 5,
        }
    }

    /// What precedes the raw key in this scheme's SubjectPublicKeyInfo, and the raw key's length (RFC 5480, RFC 8410).
    fn spki_prefix(self) -> (&'static [u8], usize) {
        match self {
            Self::EcdsaP256Sha256 => (
                b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00",
                65,
            ),
            Self::EcdsaP384Sha384 => (
                b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00",
                97,
            ),
            Self::Ed25519 => (b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", 32),
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::EcdsaP256Sha256 => &signature::ECDSA_P256_SHA256_ASN1,
            Self::EcdsaP384Sha384 => &signature::ECDSA_P384_SHA384_ASN1,
            Self::Ed25519 => &signature::ED25519,
        }
    }
}

/// Splits AUTH data of method 14 into scheme and signature.
///
/// # Errors
/// [`AuthError::Malformed`], [`AuthError::UnsupportedAlgorithm`].
pub fn decode_signature(data: &[u8]) -> Result<(SignatureScheme, &[u8]), AuthError> {
    let DigitalSignature {
        algorithm,
        signature,
    } = DigitalSignature::parse(data).map_err(|error| AuthError::Malformed(error.to_string()))?;
    let known = |scheme: &SignatureScheme| scheme.algorithm_identifier() == algorithm;
    let scheme = SignatureScheme::ALL.into_iter().find(known);
    Ok((
        scheme.ok_or_else(|| AuthError::UnsupportedAlgorithm(hex(algorithm)))?,
        signature,
    ))
}

/// A public key of one of our schemes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    scheme: SignatureScheme,
    raw: Vec<u8>,
}

impl PublicKey {
    /// From the whole DER of a SubjectPublicKeyInfo. Only the one canonical encoding of each scheme is accepted: named
    /// curve, uncompressed point.
    ///
    /// # Errors
    /// [`AuthError::UnsupportedKey`].
    pub fn from_spki(der: &[u8]) -> Result<Self, AuthError> {
        SignatureScheme::ALL
            .into_iter()
            .find_map(|scheme| Self::of_scheme(scheme, der))
            .ok_or(AuthError::UnsupportedKey)
    }

    fn of_scheme(scheme: SignatureScheme, der: &[u8]) -> Option<Self> {
        let (prefix, len) = scheme.spki_prefix();
        let raw = der.strip_prefix(prefix)?;
        let uncompressed = scheme == SignatureScheme::Ed25519 || raw.first() == Some(&4);
        (raw.len() == len && uncompressed).then(|| Self {
            scheme,
            raw: raw.to_vec(),
        })
    }

    /// The only scheme that this key may be used with.
    #[must_use]
    pub fn scheme(&self) -> SignatureScheme {
        self.scheme
    }

    /// The raw key: an uncompressed point or 32 bytes.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Checks a bare signature over `message`.
    ///
    /// # Errors
    /// [`AuthError::BadSignature`].
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), AuthError> {
        let key = UnparsedPublicKey::new(self.scheme.verification(), &self.raw);
        key.verify(message, signature)
            .map_err(|_| AuthError::BadSignature)
    }

    /// Checks AUTH data of method 14.
    ///
    /// # Errors
    /// As [`decode_signature`]; [`AuthError::SchemeMismatch`], [`AuthError::BadSignature`].
    pub fn verify_auth(&self, octets: &SignedOctets, data: &[u8]) -> Result<(), AuthError> {
        let (signed, signature) = decode_signature(data)?;
        if signed != self.scheme {
            return Err(AuthError::SchemeMismatch {
                signed,
                certified: self.scheme,
            });
        }
        self.verify(octets.as_bytes(), signature)
    }
}

/// A private key. The provider wipes it when the last clone goes.
#[derive(Clone)]
pub struct SigningKey {
    pair: Arc<Pair>,
}

enum Pair {
    Ecdsa(SignatureScheme, EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?}, redacted)", self.scheme())
    }
}

impl SigningKey {
    /// From PKCS#8 (or, for ECDSA, SEC 1) DER. The caller wipes `der`.
    ///
    /// # Errors
    /// [`AuthError::UnsupportedKey`] for anything but P-256, P-384 and Ed25519.
    pub fn from_der(der: &[u8]) -> Result<Self, AuthError> {
        let ecdsa = [
            (
                SignatureScheme::EcdsaP256Sha256,
                &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
            ),
            (
                SignatureScheme::EcdsaP384Sha384,
                &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
            ),
        ];
        for (scheme, algorithm) in ecdsa {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(algorithm, der) {
                return Ok(Self {
                    pair: Arc::new(Pair::Ecdsa(scheme, pair)),
                });
            }
        }
        let pair = Ed25519KeyPair::from_pkcs8(der).map_err(|_| AuthError::UnsupportedKey)?;
        Ok(Self {
            pair: Arc::new(Pair::Ed25519(pair)),
        })
    }

    /// The only scheme that this key signs with.
    #[must_use]
    pub fn scheme(&self) -> SignatureScheme {
        match &*self.pair {
            Pair::Ecdsa(scheme, _) => *scheme,
            Pair::Ed25519(_) => SignatureScheme::Ed25519,
        }
    }

    /// The raw public key, as [`PublicKey::raw`].
    #[must_use]
    pub fn public_raw(&self) -> &[u8] {
        match &*self.pair {
            Pair::Ecdsa(_, pair) => pair.public_key().as_ref(),
            Pair::Ed25519(pair) => pair.public_key().as_ref(),
        }
    }

    /// AUTH data of method 14 over `octets`. ECDSA's per-signature secret comes from the provider, not from the injected
    /// generator: it must stay unpredictable even where a test fixes that one.
    ///
    /// # Errors
    /// [`AuthError::Signing`].
    pub fn sign_auth(&self, octets: &SignedOctets) -> Result<Vec<u8>, AuthError> {
        let signature = match &*self.pair {
            Pair::Ecdsa(_, pair) => pair.sign(&SystemRandom::new(), octets.as_bytes()),
            Pair::Ed25519(pair) => pair.try_sign(octets.as_bytes()),
        };
        let signature = signature.map_err(|_| AuthError::Signing)?;
        let algorithm = self.scheme().algorithm_identifier();
        Ok(DigitalSignature {
            algorithm,
            signature: signature.as_ref(),
        }
        .emit())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
