//! Certificates and PSKs from files, read again when they change: a renewed certificate needs no restart.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use espalier_api::{CertificateStatus, conditions};
use espalier_ike::Identity;
use espalier_ike::identity::{Credentials, TrustAnchors};
use espalier_ike::limits::PSK_MIN;
use espalier_pki::{Bundle, Leaf};
use espalier_secret::SecretBytes;

use crate::args::Args;

/// How this node and its peers prove who they are.
#[derive(Debug, Default)]
pub(crate) struct Keyring {
    pub(crate) credentials: Option<Credentials>,
    /// What is told of the certificate.
    pub(crate) certificate: Option<CertificateStatus>,
    pub(crate) trust: TrustAnchors,
    /// PSKs by peer.
    pub(crate) psks: BTreeMap<String, SecretBytes>,
    /// What could not be read, each with its remedy.
    pub(crate) problems: Vec<String>,
    /// The cluster's controller is to sign this node's first certificate.
    pub(crate) awaited: bool,
}

impl Keyring {
    /// Why peers would refuse this node's certificate at the time `unix` (since the epoch), if they would.
    pub(crate) fn own_problem(&self, node: &str, unix: Duration) -> Option<String> {
        let credentials = self.credentials.as_ref()?;
        let refused = credentials
            .check(&self.trust, &Identity(node.into()), None, unix)
            .err()?;
        Some(format!("peers refuse this node's certificate: {refused}"))
    }
}

/// The files behind a [`Keyring`].
#[derive(Clone, Debug)]
pub(crate) struct KeyFiles {
    /// Certificate, key and CA.
    certificate: Option<[PathBuf; 3]>,
    psk_dir: Option<PathBuf>,
    /// The files of the certificate come by enrolment.
    enrols: bool,
}

impl KeyFiles {
    pub(crate) fn new(args: &Args) -> Self {
        let given = match (&args.cert, &args.key, &args.ca) {
            (Some(cert), Some(key), Some(ca)) => Some([cert.clone(), key.clone(), ca.clone()]),
            _ => None,
        };
        let enrols = given.is_none() && args.kubernetes;
        let enrolled = || ["node.crt", "node.key", "ca.crt"].map(|name| args.pki_dir().join(name));
        Self {
            certificate: given.or_else(|| enrols.then(enrolled)),
            psk_dir: args.psk_dir.clone(),
            enrols,
        }
    }

    /// Reads everything that can be read; the rest is in `problems`.
    pub(crate) fn load(&self) -> Keyring {
        let mut keyring = Keyring::default();
        match self.load_certificate() {
            Ok(None) => {}
            Ok(Some((credentials, trust, told))) => {
                (keyring.credentials, keyring.trust) = (Some(credentials), trust);
                keyring.certificate = told;
            }
            // What stands in the way of it enrolment tells.
            Err(_) if self.enrols && !self.is_there() => keyring.awaited = true,
            Err(e) => keyring.problems.push(format!("{e:#}")),
        }
        for file in self.psk_files() {
            match read_psk(&file) {
                Ok((peer, psk)) => drop(keyring.psks.insert(peer, psk)),
                Err(e) => keyring.problems.push(format!("{e:#}")),
            }
        }
        keyring.awaited &= keyring.psks.is_empty();
        let nothing = keyring.credentials.is_none() && keyring.psks.is_empty();
        if nothing && keyring.problems.is_empty() && !keyring.awaited {
            let remedy = "give --cert, --key and --ca, or --psk-dir with <peer>.psk files (espalier pki makes both)";
            keyring.problems.push(format!(
                "this node has neither a certificate nor a PSK; {remedy}"
            ));
        }
        keyring
    }

    /// Changes when a file comes, goes or is written.
    pub(crate) fn fingerprint(&self) -> Vec<(PathBuf, Option<SystemTime>)> {
        let files = self
            .certificate
            .iter()
            .flatten()
            .cloned()
            .chain(self.psk_files());
        files
            .map(|file| {
                (
                    file.clone(),
                    fs::metadata(&file).and_then(|meta| meta.modified()).ok(),
                )
            })
            .collect()
    }

    fn is_there(&self) -> bool {
        let mut files = self.certificate.iter().flatten();
        files.any(|file| file.exists())
    }

    fn load_certificate(&self) -> Result<Option<Loaded>> {
        let Some(files) = &self.certificate else {
            return Ok(None);
        };
        // A folder that is replaced as a whole (a symbolic link to it) is the same one for all three.
        let [cert, key, ca] = files.clone().map(|path| in_real_folder(&path));
        let credentials =
            Credentials::from_files(&cert, &key).context("certificate of this node")?;
        let trust = TrustAnchors::from_file(&ca).context("CA")?;
        Ok(Some((credentials, trust, told(&cert, &ca))))
    }

    fn psk_files(&self) -> Vec<PathBuf> {
        let Some(Ok(entries)) = self.psk_dir.as_ref().map(fs::read_dir) else {
            return Vec::new();
        };
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "psk"));
        files.sort();
        files
    }
}

type Loaded = (Credentials, TrustAnchors, Option<CertificateStatus>);

fn in_real_folder(path: &Path) -> PathBuf {
    let folder = path
        .parent()
        .and_then(|folder| fs::canonicalize(folder).ok());
    let real = folder
        .zip(path.file_name())
        .map(|(folder, name)| folder.join(name));
    real.unwrap_or_else(|| path.to_owned())
}

/// For status and metrics; what cannot be told is a problem elsewhere.
fn told(cert: &Path, ca: &Path) -> Option<CertificateStatus> {
    let leaf = Leaf::read(&fs::read(cert).ok()?).ok()?;
    let bundle = Bundle::read(&fs::read(ca).ok()?).ok()?;
    Some(CertificateStatus {
        not_after: conditions::at(leaf.not_after),
        issuer: leaf.issued_by(&bundle).unwrap_or_default(),
        trust: bundle.hash(),
    })
}

fn read_psk(path: &Path) -> Result<(String, SecretBytes)> {
    let peer = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .context("a PSK file is named <peer>.psk")?;
    let text = SecretBytes::new(fs::read(path).with_context(|| format!("PSK {}", path.display()))?);
    let psk = decode_hex(text.expose().trim_ascii())
        .with_context(|| format!("PSK {}", path.display()))?;
    Ok((peer.to_owned(), psk))
}

fn decode_hex(text: &[u8]) -> Result<SecretBytes> {
    let remedy = "expected one line of at least 64 hex digits; make one with `espalier pki psk`";
    if text.len() < 2 * PSK_MIN || text.len() % 2 == 1 {
        bail!("{} characters: {remedy}", text.len());
    }
    let digit = |byte: &u8| {
        char::from(*byte)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    let mut bytes = Vec::with_capacity(text.len() / 2);
    for pair in text.chunks_exact(2) {
        match (pair.first().and_then(digit), pair.last().and_then(digit)) {
            (Some(high), Some(low)) => bytes.push(high << 4 | low),
            _ => bail!("not a hex digit: {remedy}"),
        }
    }
    Ok(SecretBytes::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psks_are_hex_of_256_bits_at_least() {
        let good = "00ff".repeat(16);
        assert_eq!(
            decode_hex(good.as_bytes()).unwrap().expose(),
            [0, 0xff].repeat(16)
        );
        for (bad, why) in [
            ("ab".repeat(31), "62 characters"),
            ("zz".repeat(32), "not a hex digit"),
        ] {
            let error = decode_hex(bad.as_bytes()).unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("espalier pki psk"),
                "{error}"
            );
            assert!(!error.contains(&bad), "no key in an error");
        }
    }

    #[test]
    fn a_missing_certificate_is_a_problem_with_a_remedy() {
        let missing = |name: &str| PathBuf::from("/nonexistent").join(name);
        let certificate = Some([missing("a.crt"), missing("a.key"), missing("ca.crt")]);
        let keyring = KeyFiles {
            certificate: certificate.clone(),
            psk_dir: None,
            enrols: false,
        }
        .load();
        assert!(keyring.credentials.is_none() && !keyring.awaited);
        let [problem] = &keyring.problems[..] else {
            panic!("{:?}", keyring.problems)
        };
        assert!(
            problem.contains("/nonexistent/a.crt") && problem.contains("espalier pki issue"),
            "{problem}"
        );
        let awaits = KeyFiles {
            certificate,
            psk_dir: None,
            enrols: true,
        };
        let keyring = awaits.load();
        assert!(keyring.awaited && keyring.problems.is_empty());
    }
}
