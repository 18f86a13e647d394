//! `espalier pki`: CA, node certificates and pre-shared keys of a mesh without Kubernetes, as files.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use espalier_pki::{Authority, DAY, EKU_IPSEC_IKE, NodeKey, Validity, check_node_name};
use rand::TryRng;
use rand::rngs::SysRng;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{Pem, X509Certificate};
use zeroize::Zeroizing;

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
                _ => Validity::starting(now()?, *days),
            };
            issue(dir, node, uid.as_deref(), &validity)
        }
        PkiCommand::Psk { out } => psk(out),
        PkiCommand::Show { file } => show(file),
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
    let ca = Authority::make(&Validity::starting(now()?, days)).context("making the CA")?;
    write_new(&key_path, ca.key_pem().expose(), SECRET_MODE)?;
    write_new(
        &certificate_path,
        ca.anchor().pem().as_bytes(),
        CERTIFICATE_MODE,
    )?;
    println!(
        "CA made: {} goes to every node, {} stays here",
        certificate_path.display(),
        key_path.display()
    );
    Ok(())
}

fn issue(dir: &Path, node: &str, uid: Option<&str>, validity: &Validity) -> Result<()> {
    check_node_name(node)?;
    // It is a file name here, too.
    ensure!(
        node != "ca",
        "a node named \"ca\" would overwrite the CA's own files: rename the node"
    );
    uid.map_or(Ok(()), espalier_pki::check_uid)?;
    let (ca_pem, ca_key) = (read(&dir.join("ca.crt"))?, read(&dir.join("ca.key"))?);
    let ca = Authority::from_pem(ca_pem.as_bytes(), ca_key.as_bytes())
        .with_context(|| format!("ca.crt and ca.key in {}", dir.display()))?;

    let (certificate_path, key_path) = (
        dir.join(format!("{node}.crt")),
        dir.join(format!("{node}.key")),
    );
    let key = node_key(&key_path)?;
    let certificate = ca.issue(&key.spki(), node, uid, validity, now()?)?;
    replace(&certificate_path, certificate.as_bytes(), CERTIFICATE_MODE)?;
    println!(
        "issued {} with {}",
        certificate_path.display(),
        key_path.display()
    );
    Ok(())
}

/// The key of an earlier issue, or a new one. A renewal then changes one file only, at once: no moment with a wrong pair.
fn node_key(path: &Path) -> Result<NodeKey> {
    if path.exists() {
        return NodeKey::from_pem("it", read(path)?.as_bytes())
            .with_context(|| format!("{}: move it away, then a new one is made", path.display()));
    }
    let key = NodeKey::generate().context("making the node's key")?;
    write_new(path, key.pem().expose(), SECRET_MODE)?;
    Ok(key)
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

/// Wiped after use: it may hold a key.
fn read(path: &Path) -> Result<Zeroizing<String>> {
    fs::read_to_string(path)
        .map(Zeroizing::new)
        .with_context(|| {
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
