//! The cluster's own CA: API server, kubelets and everybody who talks to them. Nothing of Espalier's.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// A CA with its files in a folder.
pub(crate) struct Pki {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Makes it: `ca.crt`, `ca.key`.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).context("making the folder of certificates")?;
        let key = KeyPair::generate().context("making a key")?;
        let mut params = named("e2e-cluster", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params.self_signed(&key).context("signing the CA")?;
        write(&folder.join("ca.crt"), &certificate.pem())?;
        write(&folder.join("ca.key"), &key.serialize_pem())?;
        Ok(Self {
            folder: folder.to_owned(),
            issuer: Issuer::new(params, key),
        })
    }

    /// One of its files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A client's certificate `FILE.crt` with `FILE.key`: user and group, as Kubernetes reads them.
    pub(crate) fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<()> {
        let mut params = named(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(file, params)
    }

    /// A server's.
    pub(crate) fn server(&self, file: &str, names: &[&str], addresses: &[IpAddr]) -> Result<()> {
        let mut params = named(file, None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            let name = SanType::DnsName((*name).try_into()?);
            params.subject_alt_names.push(name);
        }
        let addresses = addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        self.issue(file, params)
    }

    /// The key pair that signs service account tokens: `sa.key` and `sa.pub`.
    pub(crate) fn service_accounts(&self) -> Result<()> {
        let key = KeyPair::generate().context("making a key")?;
        write(&self.file("sa.key"), &key.serialize_pem())?;
        write(&self.file("sa.pub"), &key.public_key_pem())
    }

    /// A kubeconfig for the client whose certificate is `file`.
    pub(crate) fn kubeconfig(&self, file: &str, server: &str) -> Result<PathBuf> {
        let path = self.file(&format!("{file}.kubeconfig"));
        let of = |name: &str| self.file(name).display().to_string();
        let (ca, certificate, key) = (
            of("ca.crt"),
            of(&format!("{file}.crt")),
            of(&format!("{file}.key")),
        );
        let text = format!(
            "apiVersion: v1\nkind: Config\n\
             clusters: [{{name: e2e, cluster: {{server: \"{server}\", certificate-authority: {ca}}}}}]\n\
             users: [{{name: me, user: {{client-certificate: {certificate}, client-key: {key}}}}}]\n\
             contexts: [{{name: e2e, context: {{cluster: e2e, user: me}}}}]\n\
             current-context: e2e\n"
        );
        write(&path, &text)?;
        Ok(path)
    }

    fn issue(&self, file: &str, mut params: CertificateParams) -> Result<()> {
        let key = KeyPair::generate().context("making a key")?;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        let certificate = params.signed_by(&key, &self.issuer).context("signing")?;
        write(&self.file(&format!("{file}.crt")), &certificate.pem())?;
        write(&self.file(&format!("{file}.key")), &key.serialize_pem())
    }
}

fn named(user: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name = name;
    params
}

fn write(path: &Path, text: &str) -> Result<()> {
    let done = fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)));
    done.with_context(|| format!("writing {}", path.display()))
}
