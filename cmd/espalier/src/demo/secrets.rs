//! Looks for key material in the logs, which were written at level debug.
//!
//! The session keys are not known here, so anything that looks like one counts: long runs of hex digits or base64 that
//! are not among the public values that logs may hold. The private keys of the certificates are known and looked for.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::node::Shared;

/// 128 bits in hex; a line with a longer run is suspicious.
const HEX_RUN: usize = 32;
/// 240 bits in base64.
const BASE64_RUN: usize = 40;

/// One text per suspicious line: file and line number, never the line itself.
pub(super) fn in_logs(shared: &Shared, public: &[String]) -> Result<Vec<String>> {
    let private = private_lines(&shared.pki)?;
    let mut found = Vec::new();
    for path in files(&shared.logs, "log")? {
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        for (number, line) in (1..).zip(String::from_utf8_lossy(&text).lines()) {
            let line = public
                .iter()
                .fold(line.to_owned(), |line, public| line.replace(public, ""));
            if let Some(why) = suspicious(&line, &private) {
                found.push(format!("{}:{number}: {why}", path.display()));
            }
        }
    }
    Ok(found)
}

fn suspicious(line: &str, private: &[String]) -> Option<&'static str> {
    if line.contains("PRIVATE KEY") || private.iter().any(|secret| line.contains(secret)) {
        return Some("a private key");
    }
    let hex = longest_run(line, |c| c.is_ascii_hexdigit());
    if hex.len() >= HEX_RUN {
        return Some("a long run of hex digits");
    }
    let base64 = longest_run(line, |c| c.is_ascii_alphanumeric() || c == '+');
    let mixed = [char::is_uppercase, char::is_lowercase, |c: char| {
        c.is_ascii_digit()
    }];
    let all = mixed
        .iter()
        .all(|kind: &fn(char) -> bool| base64.contains(*kind));
    (base64.len() >= BASE64_RUN && all).then_some("a long run of base64")
}

fn longest_run(line: &str, of: impl Fn(char) -> bool) -> &str {
    let runs = line.split(|c| !of(c));
    runs.max_by_key(|run| run.len()).unwrap_or_default()
}

/// The lines of base64 in all key files.
fn private_lines(pki: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for path in files(pki, "key")? {
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let secret = text
            .lines()
            .filter(|line| line.len() >= 16 && !line.starts_with("-----"));
        lines.extend(secret.map(str::to_owned));
    }
    anyhow::ensure!(
        !lines.is_empty(),
        "expected key files in {}, found none",
        pki.display()
    );
    Ok(lines)
}

fn files(dir: &Path, extension: &str) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_noticed_and_ordinary_lines_are_not() {
        let private = vec!["MIGHAgEAMBMGByqGSM49".to_owned()];
        let suspicious = |line: &str| suspicious(line, &private);
        assert!(suspicious("key=000102030405060708090a0b0c0d0e0f").is_some());
        assert!(suspicious("x MIGHAgEAMBMGByqGSM49 y").is_some());
        assert!(suspicious("-----BEGIN PRIVATE KEY-----").is_some());
        assert!(suspicious("sk=Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZmdoaWprbG1ub3A3").is_some());
        assert!(suspicious("spi_in=1a2b3c4d spi_out=aabbccdd peer=node-2 uid=01234567-89ab-4cde-8f01-23456789abcd").is_none());
        assert!(
            suspicious(
                "reading /run/demo/node-1/manifests/some/very/long/folder/of/manifests/node.yaml"
            )
            .is_none()
        );
    }
}
