//! charon, told by swanctl.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};

use super::{Daemon, Place, Wish, beside, chrooted, copy};
use crate::command::{self, Output, capture, until};
use crate::lab::{OUR_NET, OURS, THEIR_NET, THEIRS};
use crate::matrix::{Auth, Foreign};
use crate::pki::{self, GATEWAY, NODE};

/// Not all that there are: each costs a library at every start, of swanctl too.
const PLUGINS: &str = "random nonce pem pkcs1 pkcs8 x509 constraints pubkey openssl curve25519 aes gcm hmac sha1 sha2 kdf \
                       drbg ml mgf1 kernel-netlink socket-default vici";

pub(super) struct Strongswan {
    place: Place,
    daemon: command::Daemon,
}

pub(super) fn start(place: &Place, wish: &Wish) -> Result<Box<dyn Daemon>> {
    let swanctl = place.folder.join("swanctl");
    std::fs::create_dir_all(&swanctl)?;
    std::fs::write(place.folder.join("strongswan.conf"), settings(wish))?;
    std::fs::write(swanctl.join("swanctl.conf"), connection(place, wish))?;
    if wish.auth == Auth::Ecdsa {
        copy(&place.pki.join("ca.crt"), &swanctl.join("x509ca/ca.crt"))?;
        let file = |kind| pki::file(&place.pki, GATEWAY, kind);
        copy(&file("crt"), &swanctl.join("x509/gateway.crt"))?;
        copy(&file("key"), &swanctl.join("private/gateway.key"))?;
    }
    let program = match place.foreign {
        Foreign::Strongswan5 => "/usr/lib/ipsec/charon",
        _ => "/usr/sbin/charon-systemd",
    };
    let mut command = chrooted(place, program);
    command.env("STRONGSWAN_CONF", "/mnt/strongswan.conf");
    let log = place.folder.join("charon.out");
    let mut this = Strongswan {
        place: place.clone(),
        daemon: command::Daemon::logged(&mut command, &log)?,
    };
    until("charon answers", command::STARTS, || {
        Ok(this.swanctl("--stats")?.ok || !this.daemon.running())
    })?;
    let loaded = this.swanctl("--load-all")?;
    if !loaded.ok || !loaded.text.contains("successfully loaded 1 connections") {
        let said: Vec<&str> = loaded
            .text
            .lines()
            .filter(|line| !line.contains("No such file"))
            .collect();
        bail!("swanctl --load-all: {}", said.join("; "));
    }
    Ok(Box::new(this))
}

fn settings(wish: &Wish) -> String {
    let mut text = format!(
        "swanctl {{\n  load = random pem pkcs1 pkcs8 x509 openssl\n}}\ncharon {{\n  load = {PLUGINS}\n  install_routes = no\n  retransmit_timeout = 1.0\n  retransmit_tries = 3\n",
    );
    if wish.cookies {
        text.push_str("  cookie_threshold = 1\n  cookie_threshold_ip = 1\n  block_threshold = 0\n");
    }
    if let Some(size) = wish.fragment {
        let _ok = writeln!(text, "  fragment_size = {size}");
    }
    // Level 4 shows keys: of secrets that end with the case.
    text.push_str(
        "  filelog {\n    log {\n      path = /mnt/charon.log\n      flush_line = yes\n      default = 1\n      ike = 4\n      chd = 4\n      cfg = 2\n      enc = 1\n    }\n  }\n",
    );
    text.push_str("  plugins {\n    vici {\n      socket = unix:///run/charon.vici\n    }\n  }\n}\ncharon-systemd : charon {\n}\n");
    text
}

fn connection(place: &Place, wish: &Wish) -> String {
    let auth = match wish.auth {
        Auth::Psk => "psk",
        Auth::Ecdsa => "pubkey",
    };
    let certs = match wish.auth {
        Auth::Psk => "",
        Auth::Ecdsa => "\n      certs = gateway.crt",
    };
    let mut ike = String::from("aes256gcm16-prfsha256-x25519");
    let mut esp = String::from("aes256gcm16-x25519-esn-noesn");
    if wish.ml_kem {
        ike.push_str("-ke1_mlkem768");
        esp = "aes256gcm16-x25519-ke1_mlkem768-esn-noesn".into();
    }
    let proposals = if wish.ah {
        "ah_proposals = sha256-x25519-esn-noesn".into()
    } else {
        format!("esp_proposals = {esp}")
    };
    let (mode, local_ts, remote_ts) = if wish.transport {
        ("transport", THEIRS, OURS)
    } else {
        ("tunnel", THEIR_NET, OUR_NET)
    };
    let mut more = String::new();
    if wish.encap {
        more.push_str("    encap = yes\n");
    }
    if let Some(seconds) = wish.dpd {
        let _ok = writeln!(more, "    dpd_delay = {seconds}s");
    }
    if let Some(ppk) = &wish.ppk {
        let _ok = writeln!(more, "    ppk_id = {}\n    ppk_required = yes", ppk.id);
    }
    let mut text = format!(
        "connections {{\n  gw {{\n    version = 2\n    local_addrs = {THEIRS}\n    remote_addrs = {OURS}\n    \
         proposals = {ike}\n    mobike = no\n    fragmentation = yes\n    rekey_time = 0\n    reauth_time = 0\n{more}    \
         local {{\n      auth = {auth}\n      id = {GATEWAY}{certs}\n    }}\n    \
         remote {{\n      auth = {auth}\n      id = {NODE}\n    }}\n    \
         children {{\n      net {{\n        local_ts = {local_ts}/32\n        remote_ts = {remote_ts}/32\n        \
         mode = {mode}\n        {proposals}\n        rekey_time = 0\n        start_action = none\n      }}\n    }}\n  }}\n}}\n\
         secrets {{\n"
    );
    if wish.auth == Auth::Psk {
        let psk = &place.psk;
        let _ok = writeln!(
            text,
            "  ike-node {{\n    id-a = {GATEWAY}\n    id-b = {NODE}\n    secret = 0x{psk}\n  }}"
        );
    }
    if let Some(ppk) = &wish.ppk {
        let _ok = writeln!(
            text,
            "  ppk-node {{\n    id = {}\n    secret = 0x{}\n  }}",
            ppk.id, ppk.hex
        );
    }
    text.push_str("}\n");
    text
}

impl Strongswan {
    fn swanctl(&mut self, words: &str) -> Result<Output> {
        let line = format!("swanctl {words} --uri unix:///run/charon.vici");
        let mut command = beside(&self.place, self.daemon.pid(), &line);
        capture(
            command
                .env("SWANCTL_DIR", "/mnt/swanctl")
                .env("STRONGSWAN_CONF", "/mnt/strongswan.conf"),
        )
    }

    fn ask(&mut self, words: &str) -> Result<()> {
        self.swanctl(words)?
            .must(&format!("swanctl {words}"))
            .map(drop)
    }
}

impl Daemon for Strongswan {
    fn initiate(&mut self) -> Result<()> {
        self.ask("--initiate --child net --timeout 20")
    }

    fn rekey_child(&mut self) -> Result<()> {
        self.ask("--rekey --child net")
    }

    fn rekey_ike(&mut self) -> Result<()> {
        self.ask("--rekey --ike gw")
    }

    fn delete_child(&mut self) -> Result<()> {
        self.ask("--terminate --child net")
    }

    fn delete_ike(&mut self) -> Result<()> {
        self.ask("--terminate --ike gw")
    }

    fn key_exchanges(&mut self) -> Result<String> {
        let said = self.swanctl("--list-algs")?.text;
        // Called dh: before there was more than Diffie-Hellman.
        let list = said
            .lines()
            .skip_while(|line| *line != "ke:" && *line != "dh:");
        let list = list.skip(1).take_while(|line| line.starts_with(' '));
        let names: Vec<&str> = list
            .filter_map(|l| l.split('[').next())
            .map(str::trim)
            .collect();
        if names.is_empty() {
            bail!("no key exchange methods in {said}");
        }
        Ok(names.join(", "))
    }

    fn ike_algorithms(&mut self) -> Result<String> {
        let said = self.swanctl("--list-sas")?.text;
        let line = said.lines().find(|line| line.contains("/PRF_"));
        Ok(line
            .with_context(|| format!("no algorithms in {said}"))?
            .trim()
            .to_owned())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.folder.join("charon.log")).unwrap_or_default()
    }

    fn kill(&mut self) {
        self.daemon.kill();
    }

    fn ike_sas(&mut self) -> Result<usize> {
        let said = self.swanctl("--list-sas")?;
        Ok(said
            .text
            .lines()
            .filter(|line| line.contains("ESTABLISHED"))
            .count())
    }
}
