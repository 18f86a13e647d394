//! Reading a node's certificate.

use std::time::Duration;

use espalier_ike::identity::NODE_URI_PREFIX;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::bundle::{certificates, parse, validity};
use crate::{Bundle, PkiError, Validity};

/// What a node's certificate says. Reading it proves nothing: peers do that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Since the epoch.
    pub not_before: Duration,
    /// Since the epoch.
    pub not_after: Duration,
    /// The node's name: its first DNS SAN.
    pub node: Option<String>,
    /// UID of its Node object, from the URI SAN.
    pub uid: Option<String>,
    /// The issuer's name as text.
    pub issuer: String,
    /// DER of the SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    /// The whole certificate.
    pub der: Vec<u8>,
}

impl Leaf {
    /// The first certificate in `pem`.
    ///
    /// # Errors
    /// [`PkiError::Pem`], [`PkiError::Malformed`].
    pub fn read(pem: &[u8]) -> Result<Self, PkiError> {
        let found = certificates("the node's certificate", pem)?;
        Self::from_der(found.first().map_or(&[], Vec::as_slice))
    }

    /// From DER.
    ///
    /// # Errors
    /// [`PkiError::Malformed`].
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let certificate = parse(der)?;
        let Validity { from, until } = validity(&certificate);
        let (node, uid) = names(&certificate);
        Ok(Self {
            not_before: from,
            not_after: until,
            node,
            uid,
            issuer: certificate.issuer().to_string(),
            spki: certificate.tbs_certificate.subject_pki.raw.to_vec(),
            der: der.to_vec(),
        })
    }

    /// Fingerprint of the CA in `bundle` that signed this; its signature is checked. None: no CA of the bundle did.
    #[must_use]
    pub fn issued_by(&self, bundle: &Bundle) -> Option<String> {
        let certificate = parse(&self.der).ok()?;
        let mut anchors = bundle.anchors().iter();
        let issuer = anchors.find(|anchor| anchor.signed(&certificate))?;
        Some(issuer.fingerprint())
    }

    /// When to ask for the next one: at half of its life.
    #[must_use]
    pub fn renew_at(&self) -> Duration {
        self.not_before + self.not_after.saturating_sub(self.not_before) / 2
    }
}

fn names(certificate: &X509Certificate<'_>) -> (Option<String>, Option<String>) {
    let san = certificate.subject_alternative_name().ok().flatten();
    let names = san.map_or(&[][..], |san| &san.value.general_names);
    let node = names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let uid = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => {
            let (_, uid) = uri.strip_prefix(NODE_URI_PREFIX)?.split_once('/')?;
            Some(uid.to_owned())
        }
        _ => None,
    });
    (node, uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, DAY, NodeKey};

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn a_certificate_that_was_issued_is_read_with_its_issuer() {
        let make = || Authority::make(&Validity::starting(NOW, 100)).unwrap();
        let (old, new) = (make(), make());
        let spki = NodeKey::generate().unwrap().spki();
        let validity = Validity::starting(NOW, 10);
        let pem = new
            .issue(&spki, "node-a", Some("u-1"), &validity, NOW)
            .unwrap();
        let leaf = Leaf::read(pem.as_bytes()).unwrap();
        assert_eq!(
            (leaf.node.as_deref(), leaf.uid.as_deref()),
            (Some("node-a"), Some("u-1"))
        );
        assert_eq!(
            (leaf.not_before, leaf.not_after),
            (validity.from, NOW + 10 * DAY)
        );
        assert_eq!(leaf.spki, spki);
        assert!(leaf.renew_at() > NOW + 4 * DAY && leaf.renew_at() < NOW + 5 * DAY);
        let bundle = Bundle::new([old.anchor().clone(), new.anchor().clone()]);
        assert_eq!(leaf.issued_by(&bundle), Some(new.anchor().fingerprint()));
        assert_eq!(leaf.issued_by(&Bundle::new([old.anchor().clone()])), None);
    }

    #[test]
    fn what_is_no_certificate_is_said_to_be_none() {
        let key = NodeKey::generate().unwrap().pem();
        for bad in [&b""[..], b"nothing", key.expose()] {
            let error = Leaf::read(bad).unwrap_err().to_string();
            assert!(
                error.contains("the node's certificate") && error.contains("CERTIFICATE"),
                "{error}"
            );
        }
    }
}
