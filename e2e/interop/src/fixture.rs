//! Makes a test's fixture out of a kept case with strongSwan: the messages, and the secrets as charon's log shows them. All
//! of them ended with the case.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use crate::probe::ProbeConfig;

/// What to read and to write.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Folder of a case that was run with --keep.
    case: PathBuf,
    /// JSON file.
    out: PathBuf,
}

/// Writes the fixture.
///
/// # Errors
/// Files that are not there or not understood.
pub fn run(options: &Options) -> Result<()> {
    let config = ProbeConfig::read(&options.case.join("probe.json"))?;
    let log = std::fs::read_to_string(options.case.join("charon.log")).context("charon.log")?;
    let first = log.lines().next().unwrap_or_default();
    let version = first.split_once("(strongSwan ").map(|(_, rest)| rest);
    let version = version.and_then(|rest| rest.split(',').next());
    let recorded = std::fs::read_to_string(options.case.join("ike.jsonl")).context("ike.jsonl")?;
    let (ike, children) = secrets(&log)?;
    let fixture = json!({
        "peer": format!("strongSwan {}", version.context("no version in charon.log")?),
        "case": options.case.file_name().and_then(|name| name.to_str()),
        "psk": config.psk,
        "ike": ike,
        "children": children,
        "messages": messages(&recorded)?,
    });
    let mut text = serde_json::to_string_pretty(&fixture)?;
    text.push('\n');
    std::fs::write(&options.out, text).context("writing the fixture")
}

/// Without repetitions.
fn messages(recorded: &str) -> Result<Vec<Value>> {
    let mut messages = Vec::new();
    for line in recorded.lines() {
        let value: Value = serde_json::from_str(line)?;
        let message = json!({"dir": value["dir"], "message": value["message"]});
        if !messages.contains(&message) {
            messages.push(message);
        }
    }
    Ok(messages)
}

/// Keys of IKE SAs and of CHILD_SAs, in the order in which they were made.
fn secrets(log: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut ike, mut children) = (Vec::new(), Vec::new());
    // By thread: their lines may alternate.
    let mut open: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for (thread, what, bytes) in dumps(log) {
        let current = open.entry(thread).or_default();
        let field = match what {
            "key exchange secret" | "shared Diffie Hellman secret" => "shared",
            "SKEYSEED" => "skeyseed",
            "Sk_d secret" => "sk_d",
            "Sk_ei secret" => "sk_ei",
            "Sk_er secret" => "sk_er",
            "Sk_pi secret" => "sk_pi",
            "Sk_pr secret" => "sk_pr",
            "encryption initiator key" => "initiator",
            "encryption responder key" => "responder",
            _ => continue,
        };
        if let Some(before) = current.insert(field.into(), hex::encode(bytes).into()) {
            bail!("charon's thread {thread} has two of {field}: {before}");
        }
        let done = std::mem::take(current);
        match field {
            "sk_pr" => ike.push(done.into()),
            "responder" => children.push(done.into()),
            _ => *current = done,
        }
    }
    Ok((ike, children))
}

/// `12[IKE] name => 32 bytes @ 0x…` and the lines of hexadecimal digits below it.
fn dumps(log: &str) -> Vec<(&str, &str, Vec<u8>)> {
    let mut found: Vec<(&str, &str, Vec<u8>)> = Vec::new();
    for line in log.lines() {
        let Some((thread, text)) = line.split_once('[') else {
            continue;
        };
        let Some((_, text)) = text.split_once("] ") else {
            continue;
        };
        if let Some((what, _)) = text
            .split_once(" => ")
            .filter(|(_, l)| l.contains(" bytes @"))
        {
            found.push((thread, what, Vec::new()));
            continue;
        }
        let digits = text.split_once(": ").filter(|(at, _)| {
            let at = at.trim();
            !at.is_empty() && at.bytes().all(|byte| byte.is_ascii_digit())
        });
        let last = found.iter_mut().rev().find(|(of, ..)| *of == thread);
        if let (Some((_, digits)), Some((.., bytes))) = (digits, last) {
            let digits = digits.split("  ").next().unwrap_or_default();
            let parsed = digits.split(' ').map(|byte| u8::from_str_radix(byte, 16));
            bytes.extend(parsed.filter_map(Result::ok));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_of_two_threads_are_told_apart() {
        let log = "\
01[IKE] Sk_d secret => 17 bytes @ 0x1
02[CHD] encryption initiator key => 2 bytes @ 0x2
01[IKE]    0: D8 F6 BB 67 A3 E6 FD DA EC 3E F9 0B 52 2C D1 A0  ...g.....>..R,..
02[CHD]    0: 01 02                                            ..
01[IKE]   16: FF                                               .
";
        let found = dumps(log);
        assert_eq!(found[0].2.len(), 17);
        assert_eq!((found[0].0, found[0].1), ("01", "Sk_d secret"));
        assert_eq!(found[1], ("02", "encryption initiator key", vec![1, 2]));
    }
}
