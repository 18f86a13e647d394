//! The kernel's states as `ip` lists them, and as commands that add them.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use espalier_testnet::Netns;

/// One command each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct States(BTreeSet<String>);

impl States {
    /// All of a namespace.
    pub(crate) fn of(netns: &Netns) -> Result<Self> {
        let text = netns.output(Command::new("ip").args(["xfrm", "state"]))?;
        let mut entries: Vec<Vec<&str>> = Vec::new();
        for line in text.lines() {
            match entries
                .last_mut()
                .filter(|_| line.starts_with(char::is_whitespace))
            {
                Some(entry) => entry.extend(line.split_whitespace()),
                None => entries.push(line.split_whitespace().collect()),
            }
        }
        let commands = entries.iter().map(|words| command(words));
        commands.collect::<Result<_>>().map(Self)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// As a file for `ip -batch`.
    pub(crate) fn write(&self) -> Result<String> {
        let path = "/run/states.batch".to_owned();
        let text: String = self.0.iter().flat_map(|line| [line, "\n"]).collect();
        std::fs::write(&path, text)?;
        Ok(path)
    }
}

/// Runs it to its end.
pub(crate) fn run(netns: &Netns, file: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command
        .args(["-batch", "-"])
        .stdin(Stdio::from(File::open(file)?));
    let output = netns.run(|| command.output())??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip -batch: {}", said.trim());
    Ok(())
}

/// What a listed state would be added with. An ESN state's window is told in a place of its own.
fn command(words: &[&str]) -> Result<String> {
    let after = |key: &str, count: usize| {
        let at = words.iter().position(|word| *word == key)?;
        Some(words.get(at + 1..at + 1 + count)?.join(" "))
    };
    let need = |key: &str, count| after(key, count).with_context(|| format!("no {key}: {words:?}"));
    let window = after("replay_window", 1).or_else(|| after("replay-window", 1));
    let window = window.unwrap_or_default();
    let esn = if words.contains(&"esn") {
        " flag esn"
    } else {
        ""
    };
    Ok(format!(
        "xfrm state add src {} dst {} proto {} spi {} reqid {} mode {} replay-window {}{esn} aead {}",
        need("src", 1)?,
        need("dst", 1)?,
        need("proto", 1)?,
        need("spi", 1)?,
        need("reqid", 1)?,
        need("mode", 1)?,
        window.trim_end_matches(','),
        need("aead", 3)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_state_becomes_a_command() {
        let listed = "src 10.77.0.1 dst 10.77.0.2 proto esp spi 0x20000001 reqid 7 mode transport replay-window 0 flag esn \
            aead rfc4106(gcm(aes)) 0x00ff 128 anti-replay esn context: seq-hi 0x0, seq 0x0, replay_window 4096, \
            bitmap-length 128 sel src 0.0.0.0/0 dst 0.0.0.0/0";
        let words: Vec<&str> = listed.split_whitespace().collect();
        assert_eq!(
            command(&words).unwrap(),
            "xfrm state add src 10.77.0.1 dst 10.77.0.2 proto esp spi 0x20000001 reqid 7 mode transport replay-window 4096 \
             flag esn aead rfc4106(gcm(aes)) 0x00ff 128"
        );
        assert!(command(&["src"]).is_err());
    }
}
