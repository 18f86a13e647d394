//! The key schedule (RFC 7296 §2.13, §2.14, §2.17, §2.18; RFC 5282: no SK_a with an AEAD). Each stage is a type that the next one consumes.

use espalier_secret::SecretBytes;

use super::CryptoError;
use super::kex::SharedSecret;
use super::prf::Prf;
use super::sk::{Opener, Sealer, SkCipher};
use crate::event::Role;
use crate::suite::ChildSuite;

/// Ni and Nr of one exchange, without payload headers.
#[derive(Clone, Copy, Debug)]
pub struct Nonces<'a> {
    /// Ni: of the exchange's initiator.
    pub initiator: &'a [u8],
    /// Nr: of its responder.
    pub responder: &'a [u8],
}

/// The secrets of an exchange.
#[derive(Clone, Copy, Debug, Default)]
pub struct Secrets<'a> {
    /// Of the key exchange, where there is one.
    pub shared: Option<&'a SharedSecret>,
    /// Of the additional one (RFC 9370), where there is one.
    pub additional: Option<&'a SharedSecret>,
}

impl<'a> Secrets<'a> {
    /// Of one key exchange.
    #[must_use]
    pub fn one(shared: &'a SharedSecret) -> Self {
        Self {
            shared: Some(shared),
            additional: None,
        }
    }

    fn expose(self) -> (&'a [u8], &'a [u8]) {
        let bytes = |secret: Option<&'a SharedSecret>| secret.map(SharedSecret::expose);
        let (shared, additional) = (bytes(self.shared), bytes(self.additional));
        (shared.unwrap_or_default(), additional.unwrap_or_default())
    }
}

/// Both SPIs of the IKE SA that is being keyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spis {
    /// SPIi.
    pub initiator: u64,
    /// SPIr.
    pub responder: u64,
}

/// Algorithms of an IKE SA's own protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IkeSuite {
    /// Key derivation and authentication.
    pub prf: Prf,
    /// SK payloads.
    pub cipher: SkCipher,
}

/// SKEYSEED: lives from the key exchange to the derivation of [`IkeKeys`].
#[derive(Debug)]
pub struct SkeySeed {
    seed: SecretBytes,
    suite: IkeSuite,
}

impl SkeySeed {
    /// Of a first handshake: `prf(Ni | Nr, g^ir)` (RFC 7296 §2.14).
    #[must_use]
    pub fn new(suite: IkeSuite, nonces: Nonces<'_>, shared: &SharedSecret) -> Self {
        let key = zeroize::Zeroizing::new([nonces.initiator, nonces.responder].concat());
        Self {
            seed: suite.prf.compute(&key, &[shared.expose()]),
            suite,
        }
    }

    /// Of a rekey: `prf(SK_d (old), g^ir (new) | Ni | Nr [| SK(1)])` with the **old** SA's function (RFC 7296 §2.18), SK(1)
    /// being the secret of an additional key exchange (RFC 9370 §2.2.4). The same formula adds one to an SA whose keys are
    /// there already, with its secret in the place of g^ir (§2.2.2).
    #[must_use]
    pub fn rekey(old: &SkD, suite: IkeSuite, nonces: Nonces<'_>, secrets: Secrets<'_>) -> Self {
        let (shared, additional) = secrets.expose();
        let parts = [shared, nonces.initiator, nonces.responder, additional];
        Self {
            seed: old.prf.compute(old.key.expose(), &parts),
            suite,
        }
    }

    /// `{SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)`; SK_ai and SK_ar are
    /// empty with an AEAD.
    ///
    /// # Errors
    /// None with the suites there are: all keys fit into 255 blocks.
    pub fn into_keys(self, nonces: Nonces<'_>, spis: Spis) -> Result<IkeKeys, CryptoError> {
        let IkeSuite { prf, cipher } = self.suite;
        let (d, e) = (prf.output_len(), cipher.keymat_len());
        let a = cipher.integrity_key_len();
        let (spi_i, spi_r) = (spis.initiator.to_be_bytes(), spis.responder.to_be_bytes());
        let seed: [&[u8]; 4] = [nonces.initiator, nonces.responder, &spi_i, &spi_r];
        let keymat = prf.plus(self.seed.expose(), &seed, 3 * d + 2 * a + 2 * e)?;
        let mut cut = Cutter(keymat.expose());
        let sk_d = cut.take(d);
        let (sk_ai, sk_ar) = (cut.take(a), cut.take(a));
        let mut sk_e = |sk_a: &SecretBytes| SkE {
            cipher,
            key: SecretBytes::new([cut.take(e).expose(), sk_a.expose()].concat()),
        };
        let (sk_ei, sk_er) = (sk_e(&sk_ai), sk_e(&sk_ar));
        Ok(IkeKeys {
            sk_d: SkD { prf, key: sk_d },
            sk_ei,
            sk_er,
            sk_pi: SkP {
                prf,
                key: cut.take(d),
            },
            sk_pr: SkP {
                prf,
                key: cut.take(d),
            },
        })
    }
}

/// The keys of an IKE SA. Initiator and responder are those of the exchange that made this SA.
#[derive(Debug)]
pub struct IkeKeys {
    /// For CHILD_SAs and rekeys.
    pub sk_d: SkD,
    /// The initiator seals with it.
    pub sk_ei: SkE,
    /// The responder seals with it.
    pub sk_er: SkE,
    /// The initiator authenticates with it.
    pub sk_pi: SkP,
    /// The responder authenticates with it.
    pub sk_pr: SkP,
}

impl IkeKeys {
    /// The same keys as `role` uses them.
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`]: cannot happen for keys made by [`SkeySeed::into_keys`].
    pub fn for_role(self, role: Role) -> Result<RoleKeys, CryptoError> {
        let (seal, open, sk_p_local, sk_p_remote) = match role {
            Role::Initiator => (self.sk_ei, self.sk_er, self.sk_pi, self.sk_pr),
            Role::Responder => (self.sk_er, self.sk_ei, self.sk_pr, self.sk_pi),
        };
        let (sealer, opener) = (seal.into_sealer()?, open.into_opener()?);
        Ok(RoleKeys {
            sk_d: self.sk_d,
            sealer,
            opener,
            sk_p_local,
            sk_p_remote,
        })
    }
}

/// An IKE SA's keys from one end's point of view.
#[derive(Debug)]
pub struct RoleKeys {
    /// For CHILD_SAs and rekeys.
    pub sk_d: SkD,
    /// Seals what this end sends.
    pub sealer: Sealer,
    /// Opens what the other end sends.
    pub opener: Opener,
    /// For this end's AUTH payload.
    pub sk_p_local: SkP,
    /// For the other end's AUTH payload.
    pub sk_p_remote: SkP,
}

impl RoleKeys {
    /// Mixes a post-quantum preshared key into SK_d, SK_pi and SK_pr: `prf+(PPK, SK)` (RFC 8784 §3). What protects IKE
    /// messages stays as it is.
    ///
    /// # Errors
    /// None with the functions there are: each key is one block.
    pub fn mix_ppk(&mut self, ppk: &SecretBytes) -> Result<(), CryptoError> {
        let SkD { prf, key } = &mut self.sk_d;
        *key = mixed(*prf, key, ppk)?;
        self.sk_p_local = self.sk_p_local.mixed(ppk)?;
        self.sk_p_remote = self.sk_p_remote.mixed(ppk)?;
        Ok(())
    }
}

fn mixed(prf: Prf, key: &SecretBytes, ppk: &SecretBytes) -> Result<SecretBytes, CryptoError> {
    prf.plus(ppk.expose(), &[key.expose()], key.len())
}

/// SK_d: all that is needed to key CHILD_SAs and the next IKE SA.
#[derive(Clone, Debug)]
pub struct SkD {
    prf: Prf,
    key: SecretBytes,
}

/// SK_ei or SK_er: key and salt of one direction, or with CBC the key followed by SK_ai or SK_ar. Becomes one sealer or one opener, so that no two counters share a key.
#[derive(Debug)]
pub struct SkE {
    cipher: SkCipher,
    key: SecretBytes,
}

impl SkE {
    /// For the end that sends.
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`]: cannot happen for keys made by [`SkeySeed::into_keys`].
    pub fn into_sealer(self) -> Result<Sealer, CryptoError> {
        Sealer::new(self.cipher, &self.key)
    }

    /// For the end that receives.
    ///
    /// # Errors
    /// As [`SkE::into_sealer`].
    pub fn into_opener(self) -> Result<Opener, CryptoError> {
        Opener::new(self.cipher, &self.key)
    }
}

/// SK_pi or SK_pr: authenticates one end's identity payload.
#[derive(Clone, Debug)]
pub struct SkP {
    prf: Prf,
    key: SecretBytes,
}

impl SkP {
    /// `prf(SK_p, parts…)`.
    pub(super) fn mac(&self, parts: &[&[u8]]) -> SecretBytes {
        self.prf.compute(self.key.expose(), parts)
    }

    pub(super) fn prf(&self) -> Prf {
        self.prf
    }

    /// The same with a post-quantum preshared key, see [`RoleKeys::mix_ppk`].
    ///
    /// # Errors
    /// As [`RoleKeys::mix_ppk`].
    pub fn mixed(&self, ppk: &SecretBytes) -> Result<Self, CryptoError> {
        Ok(Self {
            prf: self.prf,
            key: mixed(self.prf, &self.key, ppk)?,
        })
    }

    #[cfg(test)]
    pub(crate) fn from_test(prf: Prf, key: &[u8]) -> Self {
        Self {
            prf,
            key: SecretBytes::copy_from(key),
        }
    }
}

/// Keys of a CHILD_SA pair: encryption key and salt, then integrity key, as far as the suite has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildKeymat {
    /// For what the initiator of the CHILD_SA's exchange sends.
    pub initiator_to_responder: SecretBytes,
    /// For what its responder sends.
    pub responder_to_initiator: SecretBytes,
}

impl ChildKeymat {
    /// `(keys_in, keys_out)` of the end that had `role` in the exchange.
    #[must_use]
    pub fn for_role(self, role: Role) -> (SecretBytes, SecretBytes) {
        match role {
            Role::Initiator => (self.responder_to_initiator, self.initiator_to_responder),
            Role::Responder => (self.initiator_to_responder, self.responder_to_initiator),
        }
    }
}

/// `KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr [| SK(1)])` (RFC 7296 §2.17, RFC 9370 §2.2.4): the initiator's direction comes first.
/// In IKE_AUTH the nonces are those of IKE_SA_INIT and there is no new secret.
///
/// # Errors
/// None with the suites there are: both keys fit into 255 blocks.
pub fn child_keymat(
    sk_d: &SkD,
    nonces: Nonces<'_>,
    secrets: Secrets<'_>,
    suite: impl Into<ChildSuite>,
) -> Result<ChildKeymat, CryptoError> {
    let (encryption, integrity) = suite.into().key_lens();
    let len = encryption + integrity;
    let (shared, additional) = secrets.expose();
    let keymat = sk_d.prf.plus(
        sk_d.key.expose(),
        &[shared, nonces.initiator, nonces.responder, additional],
        2 * len,
    )?;
    let mut cut = Cutter(keymat.expose());
    Ok(ChildKeymat {
        initiator_to_responder: cut.take(len),
        responder_to_initiator: cut.take(len),
    })
}

/// Cuts keys off the front of key material that was asked for in exactly the right length.
struct Cutter<'a>(&'a [u8]);

impl Cutter<'_> {
    fn take(&mut self, len: usize) -> SecretBytes {
        let (head, tail) = self.0.split_at_checked(len).unwrap_or((self.0, &[]));
        self.0 = tail;
        SecretBytes::copy_from(head)
    }
}

#[cfg(test)]
mod tests;
