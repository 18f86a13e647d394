//! Requests for certificates (PKCS#10, RFC 2986): made by a node, read by who signs.

use espalier_ike::crypto::PublicKey;
use espalier_secret::SecretBytes;
use sha2::{Digest as _, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, Pem};

use crate::names::{node_params, node_uri};
use crate::{NodeKey, PkiError, hex};

/// Longest PEM that is read: a node's request has about 600 bytes.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;
const LABEL: &str = "CERTIFICATE REQUEST";
/// Object names in Kubernetes.
const MAX_OBJECT_NAME: usize = 253;
/// Bytes of the key's hash in an object's name, ten digits.
const HASH_BYTES: usize = 5;

/// Makes a new key and a request of `node`, whose Node object has `uid`. Returns the key (PKCS#8 PEM) and the request (PEM).
///
/// # Errors
/// Names that are none, [`PkiError::Making`].
pub fn make(node: &str, uid: &str) -> Result<(SecretBytes, String), PkiError> {
    let key = NodeKey::generate()?;
    let request = request(&key, node, uid)?;
    Ok((key.pem(), request))
}

/// A request for a key that there is already.
///
/// # Errors
/// As [`make`].
pub fn request(key: &NodeKey, node: &str, uid: &str) -> Result<String, PkiError> {
    let params = node_params(node, Some(uid))?;
    Ok(params.serialize_request(&key.0)?.pem()?)
}

/// Name of the CertificateSigningRequest object for the key `spki` (DER) of `node`: one for each key, so that asking again is
/// no second request.
#[must_use]
pub fn object_name(node: &str, spki: &[u8]) -> String {
    let hash = hex(&Sha256::digest(spki)[..HASH_BYTES]);
    let room = MAX_OBJECT_NAME - "espalier--".len() - hash.len();
    let node = node.get(..room).unwrap_or(node);
    format!("espalier-{node}-{hash}")
}

/// A request whose signature is right and whose key is of an accepted kind. Its names are only what somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// DER of the SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    /// The subject as text, such as `CN=node-a`.
    pub subject: String,
    /// SANs as text with their kind, such as `DNS:node-a`, sorted.
    pub names: Vec<String>,
    /// Asks to be a CA.
    pub ca: bool,
}

impl Request {
    /// See [`object_name`].
    #[must_use]
    pub fn object_name(&self, node: &str) -> String {
        object_name(node, &self.spki)
    }

    /// Whether it asks for exactly the names that the node's certificate has.
    ///
    /// # Errors
    /// [`PkiError::RequestNames`].
    pub fn check_names(&self, node: &str, uid: &str) -> Result<(), PkiError> {
        let subject = format!("CN={node}");
        let names = [
            format!("DNS:{node}"),
            format!("URI:{}", node_uri(node, uid)),
        ];
        if self.subject == subject && self.names == names && !self.ca {
            return Ok(());
        }
        let ca = if self.ca { ", to be a CA" } else { "" };
        Err(PkiError::RequestNames {
            found: format!("{} with {}{ca}", self.subject, self.names.join(", ")),
            expected: format!("{subject} with {}", names.join(", ")),
        })
    }
}

/// Reads a request and checks its signature. It may come from anybody.
///
/// # Errors
/// Anything but one well-formed request of an accepted key, signed by that key.
pub fn read(pem: &[u8]) -> Result<Request, PkiError> {
    let der = section(pem)?;
    let malformed = |why: String| PkiError::Malformed {
        what: "the request",
        why,
    };
    let (rest, csr) =
        X509CertificationRequest::from_der(&der).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes after its end", rest.len())));
    }
    let info = &csr.certification_request_info;
    PublicKey::from_spki(info.subject_pki.raw).map_err(|_| PkiError::PublicKey("the request"))?;
    csr.verify_signature()
        .map_err(|_| PkiError::RequestSignature)?;

    let (mut names, mut ca) = (Vec::new(), false);
    for extension in csr.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(san) => {
                names.extend(san.general_names.iter().map(shown));
            }
            ParsedExtension::BasicConstraints(constraints) => ca |= constraints.ca,
            _ => {}
        }
    }
    names.sort();
    Ok(Request {
        spki: info.subject_pki.raw.to_vec(),
        subject: info.subject.to_string(),
        names,
        ca,
    })
}

fn section(pem: &[u8]) -> Result<Vec<u8>, PkiError> {
    let wrong = |why: String| PkiError::Pem {
        what: "the request",
        why,
        expected: LABEL,
    };
    if pem.len() > MAX_REQUEST_BYTES {
        return Err(wrong(format!(
            "it has {} bytes, at most {MAX_REQUEST_BYTES} are read",
            pem.len()
        )));
    }
    let mut sections = Pem::iter_from_buffer(pem);
    let first = match sections.next() {
        None => return Err(wrong("no PEM section found".into())),
        Some(first) => first.map_err(|error| wrong(error.to_string()))?,
    };
    if sections.next().is_some() {
        return Err(wrong("more than one section found".into()));
    }
    if first.label != LABEL {
        return Err(wrong(format!("found a section {:?}", first.label)));
    }
    Ok(first.contents)
}

fn shown(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => format!("DNS:{name}"),
        GeneralName::URI(name) => format!("URI:{name}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
