//! Userspace WireGuards that are set up with `wg`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use espalier_bench_ike::wireguard::{Keys, start};
use espalier_testnet::Process;

use crate::path::End;

const PORT: u16 = 51820;

/// Two daemons of `program`, found in `folder`, with a tunnel.
pub(crate) fn connect(
    [a, b]: [&End; 2],
    mtu: u16,
    wg: Option<&Path>,
    folder: Option<&Path>,
    program: &str,
) -> Result<Vec<Process>> {
    let wg = wg.context("expected --wireguard FOLDER")?.join("wg");
    let folder = folder.with_context(|| format!("expected the folder of {program}"))?;
    let keys = [Keys::new(&wg)?, Keys::new(&wg)?];
    let mut daemons = Vec::new();
    for ((own, other), [mine, theirs]) in [
        ((a, b), [&keys[0], &keys[1]]),
        ((b, a), [&keys[1], &keys[0]]),
    ] {
        let device = format!("wg{}", own.n);
        daemons.push(start(&folder.join(program), &own.netns, &device)?);
        let private = format!("/run/{device}.key");
        fs::write(&private, &mine.private)?;
        let words = format!(
            "set {device} listen-port {PORT} private-key {private} peer {} endpoint {}:{PORT} allowed-ips 10.244.0.0/16",
            theirs.public, other.underlay
        );
        own.netns
            .output(Command::new(&wg).args(words.split_whitespace()))?;
        own.ip(&format!("link set {device} mtu {mtu} up"))?;
        own.ip(&format!(
            "route add {}/32 dev {device} src {}",
            other.pod, own.pod
        ))?;
    }
    Ok(daemons)
}
