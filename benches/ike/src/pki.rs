//! The benchmark's CA: one for both processes, and for charon's load-tester, which issues from it, too.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use espalier_ike::identity::{Credentials, TrustAnchors};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// id-kp-ipsecIKE (RFC 4945 §5.1.3.12).
const IPSEC_IKE: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 17];
/// Files in the benchmark's folder.
pub const CA_CERT: &str = "ca.pem";
/// See [`CA_CERT`].
pub const CA_KEY: &str = "ca.key";

/// Makes a CA with an ECDSA P-256 key in `folder`. Its certificate may stand for the load-tester's nodes as well.
///
/// # Errors
/// Those of the file system.
pub fn make(folder: &Path) -> Result<()> {
    let key = KeyPair::generate().context("making the CA's key")?;
    let mut params = params("bench CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let cert = params
        .self_signed(&key)
        .context("making the CA's certificate")?;
    fs::write(folder.join(CA_CERT), cert.pem())?;
    fs::write(folder.join(CA_KEY), key.serialize_pem())?;
    Ok(())
}

/// The CA as the node processes use it.
#[derive(Debug)]
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    /// For [`espalier_ike::Config::trust`].
    pub trust: TrustAnchors,
}

impl Ca {
    /// Reads what [`make`] wrote.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let cert = fs::read_to_string(folder.join(CA_CERT)).context("reading the CA")?;
        let key = KeyPair::from_pem(&fs::read_to_string(folder.join(CA_KEY))?)?;
        let trust = TrustAnchors::from_pem(cert.as_bytes())?;
        let issuer = Issuer::from_ca_cert_pem(&cert, key)?;
        Ok(Self { issuer, trust })
    }

    /// A node's key and certificate.
    ///
    /// # Errors
    /// The name cannot stand in a certificate.
    pub fn issue(&self, name: &str) -> Result<Credentials> {
        let [cert, key] = self.issue_pem(name)?;
        Ok(Credentials::from_pem(cert.as_bytes(), key.as_bytes())?)
    }

    /// A node's certificate and its key, as the agent reads them from files.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn issue_pem(&self, name: &str) -> Result<[String; 2]> {
        let key = KeyPair::generate()?;
        let mut params = params(name);
        params.subject_alt_names = CertificateParams::new([name.to_owned()])?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(IPSEC_IKE.to_vec())];
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok([cert.pem(), key.serialize_pem()])
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params
}
