//! Somebody else's implementation of ESP reads what is on the wire, with the keys that the kernel shows.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use espalier_e2e::exchange;
use serde_json::{Value, json};

use crate::ground::Ground;
use crate::tap::{Form, Tap, write_pcap};

/// scapy (scripts/kernel/decrypt.py) opens every ESP packet and finds the pods' packets in VXLAN in it.
pub(crate) fn decrypts(ground: &mut Ground<'_>) -> Result<String> {
    let on = ground.required(2, &[])?;
    let tap = Tap::start(&on.mesh.bridge)?;
    for _ in 0..5 {
        exchange(&on.pods[0], &on.pods[1], 20)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let frames = tap.frames();
    let is_esp = |form| matches!(form, Form::RawEsp { .. } | Form::UdpEsp { .. });
    let sealed = frames.iter().filter(|frame| is_esp(frame.form())).count();
    ensure!(
        sealed >= 200,
        "expected 200 ESP packets on the wire, found {sealed}"
    );

    let place = ground.bench.root.join("reader");
    std::fs::create_dir_all(&place)?;
    let (capture, keys) = (place.join("wire.pcap"), place.join("states.json"));
    write_pcap(&capture, &frames)?;
    // The sandbox's own memory: keys are on no disk.
    std::fs::write(
        &keys,
        serde_json::to_vec(&sas(&on.outbound(1)?, &on.outbound(2)?))?,
    )?;
    let output = Command::new("/usr/bin/python3")
        .arg(ground.plan.scripts.join("decrypt.py"))
        .args([&capture, &keys])
        .output()
        .context("starting python3")?;
    if !output.status.success() {
        bail!(
            "decrypt.py: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let found: Value = serde_json::from_slice(&output.stdout)?;
    for (what, least) in [("opened", sealed), ("pods", 200)] {
        let count = found[what].as_u64().unwrap_or_default();
        ensure!(
            count >= u64::try_from(least)?,
            "{what}: expected {least}, found {found}"
        );
    }
    ensure!(
        found["failed"] == 0,
        "packets that could not be opened: {found}"
    );
    Ok(found.to_string())
}

/// Each SA once, by its sender.
fn sas(ours: &[espalier_e2e::State], theirs: &[espalier_e2e::State]) -> Vec<Value> {
    let all = ours.iter().chain(theirs);
    let sa = |state: &espalier_e2e::State| {
        let (algorithm, key) = state.keys.first().cloned().unwrap_or_default();
        json!({
            "src": state.src, "dst": state.dst, "spi": state.spi,
            "algorithm": algorithm, "key": key, "mode": state.mode,
            "udp": state.encap.is_some(), "sent": state.sent,
        })
    };
    all.map(sa).collect()
}
