//! What crosses the cable, as tcpdump names it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::command::{Daemon, STARTS, inside, until};

/// A running capture of what both ends send. (What comes in is shown again after a tunnel has been taken off.)
#[derive(Debug)]
pub(crate) struct Capture {
    ends: [(Daemon, PathBuf); 2],
}

/// How packets of an SA look on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Esp,
    EspInUdp,
    Ah,
}

impl Capture {
    pub(crate) fn start(namespaces: [&str; 2], folder: &Path) -> Result<Self> {
        let [ours, theirs] = namespaces;
        let ends = [
            end(ours, folder.join("sent-by-us.txt"))?,
            end(theirs, folder.join("sent-by-them.txt"))?,
        ];
        for (_, file) in &ends {
            let listening = || Ok(std::fs::read_to_string(file)?.contains("listening on"));
            until("tcpdump listens", STARTS, listening)?;
        }
        Ok(Self { ends })
    }

    fn lines(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for (_, file) in &self.ends {
            let text = std::fs::read_to_string(file)?;
            lines.extend(text.lines().map(str::to_owned));
        }
        Ok(lines)
    }

    /// At least `least` packets with this SPI went by, and all of them in this form.
    pub(crate) fn check(&self, form: Form, spi: &str, least: usize) -> Result<()> {
        let enough = || {
            let lines = self.lines()?;
            Ok(lines.iter().filter(|line| has_spi(line, spi)).count() >= least)
        };
        let what = format!("{least} packets with SPI {spi} in the capture");
        until(&what, Duration::from_secs(3), enough)?;
        let lines = self.lines()?;
        let other = lines
            .iter()
            .find(|line| has_spi(line, spi) && form_of(line) != Some(form));
        if let Some(other) = other {
            bail!("a packet of SPI {spi} is no {form:?}: {other}");
        }
        Ok(())
    }

    /// No echo request or answer went by in clear.
    pub(crate) fn check_no_clear(&self) -> Result<()> {
        let lines = self.lines()?;
        match lines
            .iter()
            .find(|line| line.contains("ICMP echo") && form_of(line).is_none())
        {
            Some(line) => bail!("a clear packet: {line}"),
            None => Ok(()),
        }
    }
}

fn end(namespace: &str, file: PathBuf) -> Result<(Daemon, PathBuf)> {
    let mut command = inside(namespace, "tcpdump");
    command.args([
        "-nn",
        "-l",
        "-U",
        "-Q",
        "out",
        "-i",
        "v0",
        "--immediate-mode",
        "ip",
    ]);
    Ok((Daemon::logged(&mut command, &file)?, file))
}

fn has_spi(line: &str, spi: &str) -> bool {
    line.contains(&format!("spi=0x{spi}"))
}

fn form_of(line: &str) -> Option<Form> {
    if line.contains("AH(spi=") {
        Some(Form::Ah)
    } else if line.contains("UDP-encap: ESP(spi=") {
        Some(Form::EspInUdp)
    } else if line.contains("ESP(spi=") {
        Some(Form::Esp)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcpdumps_lines_are_told_apart() {
        let esp = "10:00:00.1 IP 10.78.0.1 > 10.78.0.2: ESP(spi=0xc0ffee01,seq=0x1), length 120";
        let udp = "10:00:00.1 IP 10.78.0.1.4500 > 10.78.0.2.4500: UDP-encap: ESP(spi=0xc0ffee01,seq=0x1), length 120";
        let ah = "10:00:00.1 IP 10.78.0.1 > 10.78.0.2: AH(spi=0xc0ffee01,seq=0x1,icv=0x00): ICMP echo request";
        let clear =
            "10:00:00.1 IP 10.78.0.1 > 10.78.0.2: ICMP echo request, id 1, seq 1, length 64";
        assert_eq!(form_of(esp), Some(Form::Esp));
        assert_eq!(form_of(udp), Some(Form::EspInUdp));
        assert_eq!(form_of(ah), Some(Form::Ah));
        assert_eq!(form_of(clear), None);
        assert!(has_spi(esp, "c0ffee01") && !has_spi(esp, "c0ffee02"));
    }
}
