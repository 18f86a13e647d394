//! `espalier pki`: CA, node certificates and pre-shared keys of a mesh without Kubernetes, as files.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use espalier_ike::Identity;
use espalier_ike::identity::{Credentials, NODE_URI_PREFIX, TrustAnchors};
use rand::TryRng;
use rand::rngs::SysRng;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{Pem, X509Certificate};

/// Clocks of nodes differ: a certificate is valid from this long before it was made.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// id-kp-ipsecIKE (RFC 4945 §5.1.3.12).
const EKU_IPSEC_IKE: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 17];
/// Bytes of a pre-shared key.
const PSK_LEN: usize = 32;
const CERTIFICATE_MODE: u32 = 0o644;
const SECRET_MODE: u32 = 0o600;

/// What to make or show.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum PkiCommand {
    /// Makes a CA: ca.crt, which goes to every node, and ca.key, which stays here. Never overwrites one.
    Init {
        /// Folder to write to; made when missing.
        #[arg(long)]
        dir: PathBuf,
        /// Validity.
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Issues a node's certificate: NAME.crt and NAME.key. Again for the same node: renews it and keeps the key.
    Issue {
        /// Folder with ca.crt and ca.key.
        #[arg(long)]
        dir: PathBuf,
        /// Name of the node's Node object, which is its IKE identity.
        #[arg(long)]
        node: String,
        /// UID of the node's Node object. Peers that know the Node by another UID refuse the certificate.
        #[arg(long)]
        uid: Option<String>,
        /// Validity.
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// For tests: valid until yesterday.
        #[arg(long, hide = true, conflicts_with = "not_yet_valid")]
        expired: bool,
        /// For tests: valid from tomorrow.
        #[arg(long, hide = true)]
        not_yet_valid: bool,
    },
    /// Makes a pre-shared key of 256 bits, in hex. Never overwrites one.
    Psk {
        /// File to write.
        #[arg(long)]
        out: PathBuf,
    },
    /// Shows what is in a certificate file. Private keys are not printed.
    Show {
        /// PEM file.
        file: PathBuf,
    },
}

/// Runs one of them.
pub(crate) fn run(command: &PkiCommand) -> Result<()> {
    match command {
        PkiCommand::Init { dir, days } => init(dir, *days),
        PkiCommand::Issue {
            dir,
            node,
            uid,
            days,
            expired,
            not_yet_valid,
        } => {
            let validity = match (expired, not_yet_valid) {
                (true, _) => Validity {
                    from: now()?.saturating_sub(2 * DAY),
                    until: now()?.saturating_sub(DAY),
                },
                (_, true) => Validity {
                    from: now()? + DAY,
                    until: now()? + 2 * DAY,
                },
                _ => Validity::from_now(*days)?,
            };
            issue(dir, node, uid.as_deref(), &validity)
        }
        PkiCommand::Psk { out } => psk(out),
        PkiCommand::Show { file } => show(file),
    }
}

/// Times since the epoch.
struct Validity {
    from: Duration,
    until: Duration,
}

impl Validity {
    fn from_now(days: u32) -> Result<Self> {
        let now = now()?;
        Ok(Self {
            from: now.saturating_sub(CLOCK_SKEW),
            until: now + DAY * days,
        })
    }

    fn contains(&self, time: Duration) -> bool {
        self.from <= time && time <= self.until
    }

    fn apply(&self, params: &mut CertificateParams) {
        let epoch = date_time_ymd(1970, 1, 1);
        params.not_before = epoch + self.from;
        params.not_after = epoch + self.until;
    }
}

fn now() -> Result<Duration> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970: set it right")?;
    Ok(Duration::from_secs(now.as_secs()))
}

fn init(dir: &Path, days: u32) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making folder {}", dir.display()))?;
    let (certificate_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
    for path in [&certificate_path, &key_path] {
        ensure!(
            !path.exists(),
            "{} is there already: every certificate issued so far depends on it. Use another --dir, or move it away first",
            path.display()
        );
    }
    let key = KeyPair::generate().context("making the CA's key")?;
    let certificate = ca_params(&Validity::from_now(days)?)?
        .self_signed(&key)
        .context("making the CA's certificate")?;
    write_new(&key_path, key.serialize_pem().as_bytes(), SECRET_MODE)?;
    write_new(
        &certificate_path,
        certificate.pem().as_bytes(),
        CERTIFICATE_MODE,
    )?;
    println!(
        "CA made: {} goes to every node, {} stays here",
        certificate_path.display(),
        key_path.display()
    );
    Ok(())
}

/// The random part of the name tells CAs apart in messages about unknown issuers.
fn ca_params(validity: &Validity) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("Espalier CA {}", random_hex::<4>()?));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity.apply(&mut params);
    Ok(params)
}

fn issue(dir: &Path, node: &str, uid: Option<&str>, validity: &Validity) -> Result<()> {
    check_node_name(node)?;
    uid.map_or(Ok(()), check_uid)?;
    let ca_pem = read(&dir.join("ca.crt"))?;
    let ca_key =
        KeyPair::from_pem(&read(&dir.join("ca.key"))?).context("ca.key is no private key")?;
    let ca = Issuer::from_ca_cert_pem(&ca_pem, ca_key).context("ca.crt is no CA certificate")?;

    let (certificate_path, key_path) = (
        dir.join(format!("{node}.crt")),
        dir.join(format!("{node}.key")),
    );
    let key = node_key(&key_path)?;
    let certificate = node_params(node, uid, validity)?
        .signed_by(&key, &ca)
        .context("signing the certificate")?
        .pem();
    if validity.contains(now()?) {
        accepted(&ca_pem, &certificate, &key.serialize_pem(), node, uid)?;
    }
    replace(&certificate_path, certificate.as_bytes(), CERTIFICATE_MODE)?;
    println!(
        "issued {} with {}",
        certificate_path.display(),
        key_path.display()
    );
    Ok(())
}

/// RFC 1123 subdomain, as Kubernetes wants it; it is also a file name here.
fn check_node_name(node: &str) -> Result<()> {
    let label = |label: &str| {
        let inner = label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        inner
            && !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    ensure!(
        node.len() <= 253 && node.split('.').all(label),
        "{node:?} is no node name: expected lower-case letters, digits, '-' and '.', as in `kubectl get nodes`"
    );
    ensure!(
        node != "ca",
        "a node named \"ca\" would overwrite the CA's own files: rename the node"
    );
    Ok(())
}

fn check_uid(uid: &str) -> Result<()> {
    let fits = (1..=64).contains(&uid.len())
        && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    ensure!(
        fits,
        "{uid:?} is no UID: expected 1 to 64 letters, digits and '-', as in metadata.uid of the Node"
    );
    Ok(())
}

/// The key of an earlier issue, or a new one. A renewal then changes one file only, at once: no moment with a wrong pair.
fn node_key(path: &Path) -> Result<KeyPair> {
    if path.exists() {
        return KeyPair::from_pem(&read(path)?).with_context(|| {
            format!(
                "{} is no private key: move it away, then a new one is made",
                path.display()
            )
        });
    }
    let key = KeyPair::generate().context("making the node's key")?;
    write_new(path, key.serialize_pem().as_bytes(), SECRET_MODE)?;
    Ok(key)
}

fn node_params(node: &str, uid: Option<&str>, validity: &Validity) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(node);
    params.subject_alt_names = vec![SanType::DnsName(node.try_into()?)];
    if let Some(uid) = uid {
        let uri = format!("{NODE_URI_PREFIX}{node}/{uid}");
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(EKU_IPSEC_IKE.to_vec())];
    params.use_authority_key_identifier_extension = true;
    // Else it is made from the key, which a renewal keeps: RFC 5280 §4.1.2.2 wants it unique.
    params.serial_number = Some(random::<16>()?.to_vec().into());
    validity.apply(&mut params);
    Ok(params)
}

/// Peers will run the same check: better to fail here than in every handshake.
fn accepted(ca: &str, certificate: &str, key: &str, node: &str, uid: Option<&str>) -> Result<()> {
    let anchors = TrustAnchors::from_pem(ca.as_bytes())?;
    let credentials = Credentials::from_pem(certificate.as_bytes(), key.as_bytes())?;
    credentials
        .check(&anchors, &Identity(node.into()), uid, now()?)
        .context("peers would refuse this certificate")?;
    Ok(())
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn psk(out: &Path) -> Result<()> {
    write_new(
        out,
        format!("{}\n", random_hex::<PSK_LEN>()?).as_bytes(),
        SECRET_MODE,
    )?;
    println!(
        "pre-shared key made: copy {} to both nodes over a safe channel",
        out.display()
    );
    Ok(())
}

fn random_hex<const N: usize>() -> Result<String> {
    Ok(random::<N>()?
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| anyhow!("the system gives no random bytes: {error}"))?;
    Ok(bytes)
}

fn show(file: &Path) -> Result<()> {
    let text = read(file)?;
    print!(
        "{}",
        describe(&text).with_context(|| format!("in {}", file.display()))?
    );
    Ok(())
}

fn describe(pem: &str) -> Result<String> {
    let mut shown = String::new();
    for section in Pem::iter_from_buffer(pem.as_bytes()) {
        let section = section.map_err(|error| anyhow!("broken PEM: {error}"))?;
        if section.label == "CERTIFICATE" {
            let certificate = section
                .parse_x509()
                .map_err(|error| anyhow!("certificate cannot be read: {error}"))?;
            shown += &describe_certificate(&certificate, now()?);
        } else {
            shown += &format!("{} (not shown)\n", section.label.to_lowercase());
        }
    }
    if shown.is_empty() {
        bail!("no PEM section found: expected a certificate as `espalier pki issue` writes it");
    }
    Ok(shown)
}

fn describe_certificate(certificate: &X509Certificate<'_>, now: Duration) -> String {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names
        .iter()
        .flat_map(|san| &san.value.general_names)
        .map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => (*name).to_owned(),
            other => other.to_string(),
        });
    let validity = certificate.validity();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let state = match () {
        () if seconds < validity.not_before.timestamp() => "not yet valid",
        () if seconds > validity.not_after.timestamp() => "expired",
        () => "valid now",
    };
    let rows = [
        ("subject", certificate.subject().to_string()),
        ("issuer", certificate.issuer().to_string()),
        ("names", names.collect::<Vec<_>>().join(", ")),
        ("from", validity.not_before.to_string()),
        ("until", format!("{} ({state})", validity.not_after)),
        ("made for", purpose(certificate).into()),
        ("serial", certificate.raw_serial_as_string()),
    ];
    let lines = rows
        .iter()
        .map(|(label, value)| format!("  {label:<9}{value}\n"));
    format!("certificate\n{}", lines.collect::<String>())
}

fn purpose(certificate: &X509Certificate<'_>) -> &'static str {
    let eku = certificate.extended_key_usage().ok().flatten();
    let ike = eku.is_some_and(|eku| {
        eku.value.other.iter().any(|oid| {
            oid.iter()
                .is_some_and(|arcs| arcs.eq(EKU_IPSEC_IKE.iter().copied()))
        })
    });
    match (certificate.is_ca(), ike) {
        (true, _) => "CA",
        (false, true) => "IKE (id-kp-ipsecIKE)",
        (false, false) => "neither CA nor IKE: peers refuse it",
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| {
        format!(
            "reading {}; make it with `espalier pki init` or `espalier pki issue`",
            path.display()
        )
    })
}

/// The mode is set as the file is made: a key is never readable by others, not even for a moment.
fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    let mut file = file.with_context(|| {
        format!(
            "making {} (it is never overwritten: move it away first)",
            path.display()
        )
    })?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("writing {}", path.display()))
}

/// By rename: a reader sees the old file or the new one.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let beside = path.with_file_name(format!(".{}.new", random_hex::<8>()?));
    write_new(&beside, content, mode)?;
    fs::rename(&beside, path)
        .with_context(|| format!("replacing {}", path.display()))
        .inspect_err(|_| {
            // Nothing is lost when this fails too: the next issue picks another name.
            let _ = fs::remove_file(&beside);
        })
}

#[cfg(test)]
mod tests;
