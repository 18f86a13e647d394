//! What a node may be called, and how its certificate says it.

use espalier_ike::identity::NODE_URI_PREFIX;
use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};

use crate::PkiError;

/// RFC 1123 subdomain, as Kubernetes wants it.
///
/// # Errors
/// [`PkiError::NodeName`].
pub fn check_node_name(node: &str) -> Result<(), PkiError> {
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if node.len() <= 253 && node.split('.').all(label) {
        Ok(())
    } else {
        Err(PkiError::NodeName(node.to_owned()))
    }
}

/// metadata.uid: letters, digits and `-`.
///
/// # Errors
/// [`PkiError::Uid`].
pub fn check_uid(uid: &str) -> Result<(), PkiError> {
    let fits = (1..=64).contains(&uid.len())
        && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if fits {
        Ok(())
    } else {
        Err(PkiError::Uid(uid.to_owned()))
    }
}

/// Binds a certificate to a Node object.
pub(crate) fn node_uri(node: &str, uid: &str) -> String {
    format!("{NODE_URI_PREFIX}{node}/{uid}")
}

/// Subject and SANs of a node's certificate and of the request for it; nothing else is set.
pub(crate) fn node_params(node: &str, uid: Option<&str>) -> Result<CertificateParams, PkiError> {
    check_node_name(node)?;
    uid.map_or(Ok(()), check_uid)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(node);
    params.subject_alt_names = vec![SanType::DnsName(node.try_into()?)];
    if let Some(uid) = uid {
        let uri = node_uri(node, uid).try_into()?;
        params.subject_alt_names.push(SanType::URI(uri));
    }
    Ok(params)
}

pub(crate) fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_and_uids_are_those_of_kubernetes() {
        for good in ["a", "node-1.example", "10.0.0.1"] {
            check_node_name(good).unwrap();
        }
        for bad in ["", "A", "../x", "a/b", "-a", "a-", "a..b", "a_b", "*.a"] {
            let refused = check_node_name(bad).unwrap_err().to_string();
            assert!(refused.contains("node name"), "{bad:?}: {refused}");
        }
        check_node_name(&"a".repeat(64)).unwrap_err();
        check_uid("11111111-2222").unwrap();
        for bad in ["", "a/b", "a b"] {
            let refused = check_uid(bad).unwrap_err().to_string();
            assert!(refused.contains("is no UID"), "{refused}");
        }
    }
}
