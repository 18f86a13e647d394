//! pluto, told by whack.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Daemon, Place, Wish, beside, chrooted, copy};
use crate::command::{self, Output, capture, until};
use crate::lab::{OUR_NET, OURS, THEIR_NET, THEIRS};
use crate::matrix::{Auth, Foreign};
use crate::pki::{self, GATEWAY, NODE};

const BIN: &str = "/usr/libexec/ipsec";

pub(super) struct Libreswan {
    place: Place,
    daemon: command::Daemon,
}

pub(super) fn start(place: &Place, wish: &Wish) -> Result<Box<dyn Daemon>> {
    std::fs::write(
        place.folder.join("ipsec.conf"),
        connection(place.foreign, wish),
    )?;
    std::fs::write(place.folder.join("ipsec.secrets"), secrets(place, wish))?;
    std::fs::create_dir_all(place.folder.join("nss"))?;
    if wish.auth == Auth::Ecdsa {
        copy(
            &pki::file(&place.pki, GATEWAY, "p12"),
            &place.folder.join("gateway.p12"),
        )?;
        copy(&place.pki.join("ca.crt"), &place.folder.join("ca.crt"))?;
    }
    let prepare = if wish.auth == Auth::Ecdsa {
        "&& pk12util -i /mnt/gateway.p12 -d sql:/mnt/nss -W '' && certutil -A -n ca -t CT,, -d sql:/mnt/nss -i /mnt/ca.crt"
    } else {
        ""
    };
    let pluto = format!(
        "/bin/sh -c \"mkdir -p /run/pluto && certutil -N -d sql:/mnt/nss --empty-password {prepare} && \
         exec {BIN}/pluto --config /mnt/ipsec.conf --secretsfile /mnt/ipsec.secrets --nssdir /mnt/nss --nofork --stderrlog\""
    );
    let log = place.folder.join("pluto.log");
    let mut this = Libreswan {
        place: place.clone(),
        daemon: command::Daemon::logged(&mut chrooted(place, &pluto), &log)?,
    };
    until("pluto answers", command::STARTS, || {
        Ok(this.whack("--globalstatus")?.ok || !this.daemon.running())
    })?;
    this.must("--listen")?;
    let added = capture(&mut this.command("addconn --config /mnt/ipsec.conf net"))?;
    if !added.ok {
        bail!("ipsec addconn: {}", added.text.trim());
    }
    Ok(Box::new(this))
}

fn connection(foreign: Foreign, wish: &Wish) -> String {
    let mut text = String::from("version 2\nconfig setup\n  plutodebug=none\n");
    if wish.cookies {
        text.push_str("  ddos-mode=busy\n");
    }
    let (kind, auth) = match (wish.transport, wish.auth) {
        (true, Auth::Psk) => ("transport", "secret"),
        (false, Auth::Psk) => ("tunnel", "secret"),
        (true, Auth::Ecdsa) => ("transport", "ecdsa-sha2_256"),
        (false, Auth::Ecdsa) => ("tunnel", "ecdsa-sha2_256"),
    };
    let _ok = write!(
        text,
        "conn net\n  left={THEIRS}\n  leftid=@{GATEWAY}\n  right={OURS}\n  rightid=@{NODE}\n  type={kind}\n  \
         authby={auth}\n  rekey=no\n  pfs=yes\n  mobike=no\n  auto=ignore\n  esn=either\n  retransmit-timeout=20s\n  \
         leftupdown=%disabled\n"
    );
    if foreign == Foreign::Libreswan4 {
        text.push_str("  ikev2=insist\n");
    }
    if wish.auth == Auth::Ecdsa {
        let _ok = writeln!(text, "  leftcert={GATEWAY}\n  leftsendcert=always");
    }
    if !wish.transport {
        let _ok = writeln!(
            text,
            "  leftsubnet={THEIR_NET}/32\n  rightsubnet={OUR_NET}/32"
        );
    }
    let ml_kem = if wish.ml_kem { "-ml_kem_768" } else { "" };
    let _ok = writeln!(text, "  ike=aes_gcm256-sha2_256-dh31{ml_kem}");
    if wish.ah {
        text.push_str("  phase2=ah\n  ah=sha2_256;dh31\n");
    } else {
        let many = wish.fragment.map(|_| many_proposals()).unwrap_or_default();
        let _ok = writeln!(text, "  esp=aes_gcm256-none;dh31{many}");
    }
    if wish.encap {
        text.push_str("  encapsulation=yes\n");
    }
    if let Some(seconds) = wish.dpd {
        let _ok = writeln!(
            text,
            "  dpddelay={seconds}\n  dpdtimeout={}\n  dpdaction=clear",
            seconds * 3
        );
    }
    if wish.fragment.is_some() {
        text.push_str("  fragmentation=force\n");
    }
    if wish.ppk.is_some() {
        text.push_str("  ppk=insist\n");
    }
    text
}

/// So many that IKE_AUTH with a PSK does not fit one datagram.
fn many_proposals() -> String {
    let ciphers = [
        "aes128",
        "aes192",
        "aes256",
        "aes_ctr128",
        "aes_ctr192",
        "aes_ctr256",
        "camellia128",
        "camellia256",
        "3des",
    ];
    let hashes = ["sha1", "sha2_256", "sha2_384", "sha2_512"];
    let pairs = ciphers
        .iter()
        .flat_map(|cipher| hashes.map(|hash| format!(",{cipher}-{hash};dh31")));
    // Our limit is 32, to bound work before authentication.
    pairs.take(28).collect()
}

fn secrets(place: &Place, wish: &Wish) -> String {
    let mut text = String::new();
    if wish.auth == Auth::Psk {
        let _ok = writeln!(text, "@{GATEWAY} @{NODE} : PSK 0x{}", place.psk);
    }
    if let Some(ppk) = &wish.ppk {
        let _ok = writeln!(
            text,
            "@{GATEWAY} @{NODE} : PPKS \"{}\" 0x{}",
            ppk.id, ppk.hex
        );
    }
    text
}

impl Libreswan {
    fn command(&self, line: &str) -> Command {
        beside(&self.place, self.daemon.pid(), &format!("{BIN}/{line}"))
    }

    fn whack(&self, words: &str) -> Result<Output> {
        capture(&mut self.command(&format!("whack {words}")))
    }

    fn must(&self, words: &str) -> Result<()> {
        self.whack(words)?.must(&format!("whack {words}")).map(drop)
    }
}

impl Daemon for Libreswan {
    fn initiate(&mut self) -> Result<()> {
        self.must("--name net --initiate")
    }

    fn rekey_child(&mut self) -> Result<()> {
        self.must(match self.place.foreign {
            Foreign::Libreswan4 => "--name net --rekey-ipsec --asynchronous",
            _ => "--name net --rekey-child --asynchronous",
        })
    }

    fn rekey_ike(&mut self) -> Result<()> {
        self.must("--name net --rekey-ike --asynchronous")
    }

    fn delete_child(&mut self) -> Result<()> {
        let states = self.whack("--showstates")?.text;
        let child = states
            .lines()
            .find(|line| line.contains("ESTABLISHED_CHILD_SA"));
        let number = child.and_then(|line| line.split('#').nth(1)?.split(':').next());
        let number = number.with_context(|| format!("no CHILD_SA among {states:?}"))?;
        self.must(&format!("--deletestate {number}"))
    }

    fn delete_ike(&mut self) -> Result<()> {
        self.must("--name net --terminate")
    }

    fn key_exchanges(&mut self) -> Result<String> {
        let said = self.whack("--status")?.text;
        let lines = said
            .lines()
            .filter(|line| line.contains("IKE DH Key Exchange"));
        let names = lines.filter_map(|line| line.split("name=").nth(1)?.split(',').next());
        let names: Vec<&str> = names.collect();
        if names.is_empty() {
            bail!("no key exchange methods in its status");
        }
        Ok(names.join(", "))
    }

    fn ike_algorithms(&mut self) -> Result<String> {
        let said = self.whack("--status")?.text;
        let line = said
            .lines()
            .find(|line| line.contains("IKE algorithm newest"));
        Ok(line
            .with_context(|| format!("no algorithms in {said}"))?
            .trim()
            .to_owned())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.folder.join("pluto.log")).unwrap_or_default()
    }

    fn kill(&mut self) {
        self.daemon.kill();
    }

    fn ike_sas(&mut self) -> Result<usize> {
        let said = self.whack("--showstates")?;
        let established = |line: &&str| line.contains("ESTABLISHED_IKE_SA");
        Ok(said.text.lines().filter(established).count())
    }
}
