//! A CA and two ECDSA P-256 certificates for one run.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::command::run;

/// Folder of the large ones, in that of the others.
pub(crate) const LARGE: &str = "large";
/// Our identity.
pub(crate) const NODE: &str = "node.interop.test";
/// The foreign one.
pub(crate) const GATEWAY: &str = "gateway.interop.test";
/// id-kp-ipsecIKE (RFC 4945 §5.1.3.12).
const IPSEC_IKE: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 17];

/// Writes `ca.crt`, `<name>.crt`, `<name>.key` and, for NSS, `<gateway>.p12` without password into `folder`.
/// With `aliases`, further names, certificates can be made too large for one datagram.
pub(crate) fn make(folder: &Path, aliases: usize) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "interop CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(folder.join("ca.crt"), issuer.pem())?;
    for name in [NODE, GATEWAY] {
        let mut names = vec![name.to_owned()];
        names.extend((0..aliases).map(|number| format!("alias-{number}.{name}")));
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(IPSEC_IKE.to_vec())];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        std::fs::write(file(folder, name, "crt"), certificate.pem())?;
        std::fs::write(file(folder, name, "key"), key.serialize_pem())?;
    }
    let (ca, path) = (folder.join("ca.crt"), |kind| file(folder, GATEWAY, kind));
    run(&format!(
        "openssl pkcs12 -export -name {GATEWAY} -passout pass: -certfile {} -in {} -inkey {} -out {}",
        ca.display(),
        path("crt").display(),
        path("key").display(),
        path("p12").display()
    ))?;
    Ok(())
}

/// One of the files.
pub(crate) fn file(folder: &Path, name: &str, kind: &str) -> PathBuf {
    folder.join(format!("{name}.{kind}"))
}
