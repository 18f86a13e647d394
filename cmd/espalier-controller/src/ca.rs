//! The CA as it is in the API server: Secret `espalier-ca`, which only the controller reads, and ConfigMap `espalier-trust`, which
//! tells agents whom to trust.
//!
//! Keys of the Secret: `tls.crt`, `tls.key` (the CA that signs); during a rotation `next.crt`, `next.key` (the one that will) or
//! `previous.crt` (those whose certificates are still about, without keys).

use std::collections::BTreeMap;
use std::time::Duration;

use espalier_pki::{Anchor, Authority, Bundle, PkiError, Validity};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::rotation::{Authorities, Trust};

/// Name of the Secret.
pub(crate) const SECRET: &str = "espalier-ca";
/// Name of the ConfigMap.
pub(crate) const TRUST: &str = "espalier-trust";
/// Annotation of the Secret: a new CA is wanted.
pub(crate) const ROTATE: &str = "espalier.dev/rotate";
/// Annotation of the ConfigMap: fingerprint of the CA that certificates have to be of.
pub(crate) const SIGNER: &str = "espalier.dev/signer";
/// Key of the ConfigMap.
pub(crate) const BUNDLE: &str = "ca.crt";
/// Validity of a CA that is made here.
pub(crate) const CA_DAYS: u32 = 3650;
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const PREVIOUS: &str = "previous.crt";

/// What is wrong with the Secret or the ConfigMap.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    /// A key of the Secret is missing.
    #[error(
        "Secret {SECRET}: data[{0}] is missing; it needs a CA's certificate in tls.crt and its key in tls.key (type kubernetes.io/tls)"
    )]
    Missing(&'static str),
    /// One is there but cannot be used.
    #[error("Secret {SECRET}: data[{field}]: {error}")]
    Unusable {
        /// Which.
        field: &'static str,
        /// What is wrong, and the remedy.
        #[source]
        error: PkiError,
    },
    /// A CA could not be made.
    #[error("making a CA: {0}")]
    Making(#[source] PkiError),
    /// There is no next CA though it is its turn.
    #[error("Secret {SECRET} was changed during a CA rotation: data[{NEXT_CERTIFICATE}] is gone")]
    NoNext,
}

/// A CA for the Secret that is made when there is none.
pub(crate) fn make(now: Duration, labels: BTreeMap<String, String>) -> Result<Secret, CaError> {
    let ca = new_authority(now)?;
    let data = [(CERTIFICATE, certificate(&ca)), (KEY, key(&ca))];
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.into()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".into()),
        data: Some(data.map(|(name, value)| (name.to_owned(), value)).into()),
        ..Secret::default()
    })
}

fn new_authority(now: Duration) -> Result<Authority, CaError> {
    Authority::make(&Validity::starting(now, CA_DAYS)).map_err(CaError::Making)
}

fn certificate(ca: &Authority) -> ByteString {
    ByteString(ca.anchor().pem().into_bytes())
}

/// Not wiped: it goes to the API server's Secret, which holds it anyway.
fn key(ca: &Authority) -> ByteString {
    ByteString(ca.key_pem().expose().to_vec())
}

/// The CA that signs, and those around it.
#[derive(Debug)]
pub(crate) struct Ca {
    pub(crate) authority: Authority,
    pub(crate) authorities: Authorities,
}

impl Ca {
    /// Reads a Secret that the controller made and rotates.
    pub(crate) fn own(secret: &Secret, now: Duration) -> Result<Self, CaError> {
        let authority = authority(secret, CERTIFICATE, KEY)?;
        let next = match field(secret, NEXT_CERTIFICATE) {
            Some(_) => Some(authority_of_next(secret)?.anchor().clone()),
            None => None,
        };
        let previous = match field(secret, PREVIOUS) {
            Some(pem) => Bundle::read(pem)
                .map_err(|error| unusable(PREVIOUS, error))?
                .anchors()
                .to_vec(),
            None => Vec::new(),
        };
        let annotations = secret.metadata.annotations.as_ref();
        let asked = annotations.is_some_and(|all| all.contains_key(ROTATE));
        let asked = asked || is_due(authority.anchor(), now);
        Ok(Self {
            authorities: Authorities {
                signing: authority.anchor().clone(),
                next,
                previous,
                replaced: None,
                asked,
            },
            authority,
        })
    }

    /// Reads a Secret that others made and replace; what was before is known from what agents were told.
    pub(crate) fn given(
        secret: &Secret,
        told: Option<&Trust>,
        now: Duration,
    ) -> Result<Self, CaError> {
        let authority = authority(secret, CERTIFICATE, KEY)?;
        let signing = authority.anchor().fingerprint();
        let others = told.map_or(&[][..], |told| told.bundle.anchors());
        let previous: Vec<Anchor> = others
            .iter()
            .filter(|anchor| anchor.fingerprint() != signing && anchor.validity().until > now)
            .cloned()
            .collect();
        let replaced = told
            .map(|told| told.signer.clone())
            .filter(|signer| previous.iter().any(|ca| ca.fingerprint() == *signer));
        Ok(Self {
            authorities: Authorities {
                signing: authority.anchor().clone(),
                next: None,
                previous,
                replaced,
                asked: false,
            },
            authority,
        })
    }
}

/// The last fifth of a CA's life is for its successor.
fn is_due(anchor: &Anchor, now: Duration) -> bool {
    let Validity { from, until } = anchor.validity();
    now > until.saturating_sub(until.saturating_sub(from) / 5)
}

/// The Secret with the next CA in it; the wish for it is granted and gone.
pub(crate) fn begun(mut secret: Secret, now: Duration) -> Result<Secret, CaError> {
    let next = new_authority(now)?;
    let data = secret.data.get_or_insert_default();
    data.insert(NEXT_CERTIFICATE.into(), certificate(&next));
    data.insert(NEXT_KEY.into(), key(&next));
    if let Some(annotations) = &mut secret.metadata.annotations {
        annotations.remove(ROTATE);
    }
    Ok(secret)
}

/// The Secret with the next CA in the place of the one that signed; that one's key is forgotten.
pub(crate) fn switched(mut secret: Secret) -> Result<Secret, CaError> {
    let data = secret.data.get_or_insert_default();
    let (Some(certificate), Some(key)) = (data.remove(NEXT_CERTIFICATE), data.remove(NEXT_KEY))
    else {
        return Err(CaError::NoNext);
    };
    data.insert(KEY.into(), key);
    if let Some(mut previous) = data.insert(CERTIFICATE.into(), certificate) {
        if let Some(older) = data.remove(PREVIOUS) {
            previous.0.push(b'\n');
            previous.0.extend(older.0);
        }
        data.insert(PREVIOUS.into(), previous);
    }
    Ok(secret)
}

/// The Secret without CAs of before.
pub(crate) fn finished(mut secret: Secret) -> Secret {
    if let Some(data) = &mut secret.data {
        data.remove(PREVIOUS);
    }
    secret
}

fn field<'a>(secret: &'a Secret, name: &str) -> Option<&'a [u8]> {
    let value = secret.data.as_ref()?.get(name)?;
    (!value.0.is_empty()).then_some(value.0.as_slice())
}

fn unusable(field: &'static str, error: PkiError) -> CaError {
    CaError::Unusable { field, error }
}

fn authority_of_next(secret: &Secret) -> Result<Authority, CaError> {
    authority(secret, NEXT_CERTIFICATE, NEXT_KEY)
}

fn authority(
    secret: &Secret,
    certificate: &'static str,
    key: &'static str,
) -> Result<Authority, CaError> {
    let certificate_pem = field(secret, certificate).ok_or(CaError::Missing(certificate))?;
    let key_pem = field(secret, key).ok_or(CaError::Missing(key))?;
    Authority::from_pem(certificate_pem, key_pem).map_err(|error| {
        let of_key = matches!(error, PkiError::PrivateKey(_) | PkiError::KeyMismatch(_));
        unusable(if of_key { key } else { certificate }, error)
    })
}

/// What a ConfigMap tells agents; `None` when it is broken, as if there were none: it is written anew.
pub(crate) fn told(map: &ConfigMap) -> Option<Trust> {
    let pem = map.data.as_ref()?.get(BUNDLE)?;
    let signer = map.metadata.annotations.as_ref()?.get(SIGNER)?;
    Some(Trust {
        bundle: Bundle::read(pem.as_bytes()).ok()?,
        signer: signer.clone(),
    })
}

#[cfg(test)]
mod tests;
