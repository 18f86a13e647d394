//! Looks for keys in logs. Private keys and PSKs of the test are known; session keys are not, so everything that looks
//! like one counts: long runs of hex digits or base64, and lists of octets as `Debug` prints them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// 128 bits in hex.
const HEX_RUN: usize = 32;
/// 240 bits in base64.
const BASE64_RUN: usize = 40;
/// Octets in a printed list.
const LIST_RUN: usize = 12;

/// The secret lines of all key files among `files`.
pub(crate) fn known(files: &[PathBuf]) -> Result<Vec<String>> {
    let secret = |path: &&PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "key" || extension == "psk")
    };
    let mut lines = Vec::new();
    for path in files.iter().filter(secret) {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let long = |line: &&str| line.len() >= 16 && !line.starts_with("-----");
        lines.extend(text.lines().filter(long).map(str::to_owned));
    }
    Ok(lines)
}

/// One text per suspicious line: file and number, never the line itself.
pub(crate) fn in_files(files: &[PathBuf], known: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in files {
        let text = fs::read(path).with_context(|| path.display().to_string())?;
        for (number, line) in (1..).zip(String::from_utf8_lossy(&text).lines()) {
            if let Some(why) = suspicious(line, known) {
                found.push(format!("{}:{number}: {why}", shown(path)));
            }
        }
    }
    Ok(found)
}

fn shown(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn suspicious(line: &str, known: &[String]) -> Option<&'static str> {
    if line.contains("PRIVATE KEY") || known.iter().any(|secret| line.contains(secret)) {
        return Some("a key of the test");
    }
    if longest_run(line, |c| c.is_ascii_hexdigit()).len() >= HEX_RUN {
        return Some("a long run of hex digits");
    }
    let list = longest_run(line, |c| c.is_ascii_digit() || c == ',' || c == ' ');
    if list.matches(", ").count() >= LIST_RUN {
        return Some("a list of octets");
    }
    let base64 = longest_run(line, |c| c.is_ascii_alphanumeric() || c == '+');
    let digits = base64.chars().any(|c| c.is_ascii_digit());
    let upper = base64.chars().any(|c| c.is_ascii_uppercase());
    (base64.len() >= BASE64_RUN && digits && upper).then_some("a long run of base64")
}

fn longest_run(line: &str, of: impl Fn(char) -> bool) -> &str {
    let runs = line.split(|c| !of(c));
    runs.max_by_key(|run| run.len()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_noticed_and_ordinary_lines_are_not() {
        let known = vec!["MIGHAgEAMBMGByqGSM49".to_owned()];
        for bad in [
            "key=000102030405060708090a0b0c0d0e0f",
            "x MIGHAgEAMBMGByqGSM49 y",
            "-----BEGIN PRIVATE KEY-----",
            "sk=Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZmdoaWprbG1ub3A3",
            "key: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]",
        ] {
            assert!(suspicious(bad, &known).is_some(), "{bad}");
        }
        for good in [
            "spi_in=1a2b3c4d spi_out=aabbccdd uid=01234567-89ab-4cde-8f01-23456789abcd",
            "2026-01-01T00:00:00.000000Z DEBUG espalier_agent::mesh: pods=10.244.1.0/24, 10.244.2.0/24",
        ] {
            assert_eq!(suspicious(good, &known), None, "{good}");
        }
    }
}
