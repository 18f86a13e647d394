//! A CA that signs nodes' certificates.

use std::time::Duration;

use espalier_ike::Identity;
use espalier_ike::crypto::PublicKey;
use espalier_ike::identity::{TrustAnchors, verify_peer};
use espalier_secret::SecretBytes;
use rand::TryRng as _;
use rand::rngs::SysRng;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    SubjectPublicKeyInfo,
};

use crate::names::{common_name, node_params};
use crate::{Anchor, EKU_IPSEC_IKE, NodeKey, PkiError, Validity, hex};

/// Certificate and key of a CA. The key is wiped when dropped and never printed.
#[derive(Debug)]
pub struct Authority {
    anchor: Anchor,
    key: NodeKey,
}

impl Authority {
    /// Makes a CA. The random part of its name tells CAs apart in messages about unknown issuers.
    ///
    /// # Errors
    /// [`PkiError::Random`], [`PkiError::Making`].
    pub fn make(validity: &Validity) -> Result<Self, PkiError> {
        let key = NodeKey::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("Espalier CA {}", hex(&random::<4>()?)));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity.apply(&mut params);
        let certificate = params.self_signed(&key.0)?;
        Ok(Self {
            anchor: Anchor::from_der(certificate.der())?,
            key,
        })
    }

    /// From PEM: the first certificate is the CA's. The caller wipes `key`.
    ///
    /// # Errors
    /// No PEM, no CA, a key that is another's or of a kind that peers refuse.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, PkiError> {
        let anchor = Anchor::first_of(certificate)?;
        let key = NodeKey::from_pem("the CA's key", key)?;
        if anchor.spki() != key.spki() {
            return Err(PkiError::KeyMismatch(anchor.subject().to_owned()));
        }
        Ok(Self { anchor, key })
    }

    /// Its certificate.
    #[must_use]
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// Its private key, PKCS#8 in PEM.
    #[must_use]
    pub fn key_pem(&self) -> SecretBytes {
        self.key.pem()
    }

    /// Signs a certificate (PEM) for the key `spki` (DER) under the names given here. It ends with the CA's own at the latest.
    /// When it is valid at `now` (since the epoch), the check that peers will make is made here: better now than in every
    /// handshake.
    ///
    /// # Errors
    /// Names that are none, a key of another kind, [`PkiError::CaNotValid`], [`PkiError::Refused`].
    pub fn issue(
        &self,
        spki: &[u8],
        node: &str,
        uid: Option<&str>,
        validity: &Validity,
        now: Duration,
    ) -> Result<String, PkiError> {
        self.anchor.check_valid(now)?;
        let validity = Validity {
            until: validity.until.min(self.anchor.validity().until),
            ..*validity
        };
        let unsupported = PkiError::PublicKey("the node's key");
        if PublicKey::from_spki(spki).is_err() {
            return Err(unsupported);
        }
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| unsupported)?;
        let certificate = leaf_params(node, uid, &validity)?.signed_by(&key, &self.issuer()?)?;
        if validity.contains(now) {
            let mut anchors = TrustAnchors::default();
            anchors.add_der(self.anchor.der())?;
            let own = Identity(node.into());
            verify_peer(&anchors, &[certificate.der()], &own, uid, now)?;
        }
        Ok(certificate.pem())
    }

    fn issuer(&self) -> Result<Issuer<'static, &rcgen::KeyPair>, PkiError> {
        let der = self.anchor.der().into();
        Ok(Issuer::from_ca_cert_der(&der, &self.key.0)?)
    }
}

fn leaf_params(
    node: &str,
    uid: Option<&str>,
    validity: &Validity,
) -> Result<CertificateParams, PkiError> {
    let mut params = node_params(node, uid)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(EKU_IPSEC_IKE.to_vec())];
    params.use_authority_key_identifier_extension = true;
    // Else it is made from the key, which a renewal may keep: RFC 5280 §4.1.2.2 wants it unique.
    params.serial_number = Some(random::<16>()?.to_vec().into());
    validity.apply(&mut params);
    Ok(params)
}

fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| PkiError::Random(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
