//! Certificates for tests, made fresh: nothing that expires is committed.

use std::time::Duration;

use espalier_ike::identity::{Credentials, TrustAnchors};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

/// "Now" for certificates: 2026-06-01.
pub const NOW: Duration = Duration::from_secs(1_780_272_000);

/// A CA.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    /// With this subject.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2040, 1, 1);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn trust(&self) -> TrustAnchors {
        TrustAnchors::from_pem(self.0.pem().as_bytes()).unwrap()
    }

    /// All of these are trusted.
    pub fn trust_all(all: &[&Self]) -> TrustAnchors {
        let pem: String = all.iter().map(|ca| ca.0.pem()).collect();
        TrustAnchors::from_pem(pem.as_bytes()).unwrap()
    }

    /// A node's certificate, valid until this year.
    pub fn issue_until(&self, name: &str, year: i32) -> Credentials {
        self.issue_for(vec![name.to_owned()], year)
    }

    /// A node's certificate of at least `bytes` bytes: it has many other names.
    pub fn issue_large(&self, name: &str, bytes: usize) -> Credentials {
        let other = |n: usize| format!("a-long-name-that-nobody-ever-looks-at-{n:04}.{name}");
        let names = (0..bytes / 45).map(other);
        self.issue_for([name.to_owned()].into_iter().chain(names).collect(), 2030)
    }

    /// For names, the node's own first.
    fn issue_for(&self, names: Vec<String>, year: i32) -> Credentials {
        let name = &names[0].clone();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        let uri = format!("espalier://node/{name}/uid-of-{name}");
        params
            .subject_alt_names
            .push(SanType::URI(uri.try_into().unwrap()));
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let ipsec_ike = vec![1, 3, 6, 1, 5, 5, 7, 3, 17];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(ipsec_ike)];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let cert = params.signed_by(&key, &self.0).unwrap();
        Credentials::from_pem(cert.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    /// A node's certificate that is valid.
    pub fn issue(&self, name: &str) -> Credentials {
        self.issue_until(name, 2030)
    }
}
