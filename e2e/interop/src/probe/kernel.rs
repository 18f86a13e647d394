//! CHILD_SAs in the kernel, by `ip -batch` (keys on its stdin, not among its arguments).
//!
//! The outbound policy names the SPI that is sealed with, so a switch is one replacement of it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use espalier_ike::{ChildKeys, ChildSa, ChildSuite, EspSuite, Integrity, Path, TrafficSelector};

/// Marks the probe's states, to be told from the daemon's on one host.
const REQID: u32 = 7;
/// Packets that may come out of order.
const REPLAY_WINDOW: u32 = 128;

/// What is installed.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    children: Vec<ChildSa>,
    path: Option<Path>,
    /// What is sealed with.
    current: Option<u32>,
}

impl Kernel {
    /// IKE goes around the policies, as the daemons' sockets do.
    pub(super) fn let_ike_through() -> Result<()> {
        let mut batch = String::new();
        for port in [500, 4500] {
            for (dir, side) in [("out", "sport"), ("in", "dport")] {
                writeln!(
                    batch,
                    "xfrm policy add proto udp {side} {port} dir {dir} priority 1"
                )?;
            }
        }
        ip(&batch)
    }

    /// Installs both directions. Packets go to it at once if `switch`.
    pub(super) fn add(&mut self, child: &ChildSa, path: Path, switch: bool) -> Result<()> {
        let mut batch = state(child, path, true)?;
        batch.push_str(&state(child, path, false)?);
        batch.push_str(&inward(child, path)?);
        ip(&batch)?;
        self.children.push(child.clone());
        self.path = Some(path);
        if switch {
            self.switch(child.spi_out)?;
        }
        Ok(())
    }

    pub(super) fn current(&self) -> Option<u32> {
        self.current
    }

    /// Seals with `spi_out` from now on.
    pub(super) fn switch(&mut self, spi_out: u32) -> Result<()> {
        let child = self.children.iter().find(|child| child.spi_out == spi_out);
        let (Some(child), Some(path)) = (child, self.path) else {
            bail!("no CHILD_SA with outbound SPI {spi_out:08x}");
        };
        ip(&outward(child, path)?)?;
        self.current = Some(spi_out);
        Ok(())
    }

    /// Removes both directions; what is sealed with is another one then, if there is one. Returns it.
    pub(super) fn remove(&mut self, spi_in: u32) -> Result<Option<u32>> {
        let Some(at) = self
            .children
            .iter()
            .position(|child| child.spi_in == spi_in)
        else {
            bail!("no CHILD_SA with inbound SPI {spi_in:08x}");
        };
        let child = self.children.remove(at);
        let next = self.children.last().map(|child| child.spi_out);
        let mut switched = None;
        if self.current == Some(child.spi_out) {
            self.current = None;
            if let Some(next) = next {
                self.switch(next)?;
                switched = Some(next);
            }
        }
        let path = self.path.context("no path")?;
        ip(&deletion(&child, path))?;
        Ok(switched)
    }

    /// CHILD_SAs that are not sealed with yet, by (inbound SPI, outbound SPI), and whether a packet came in on them.
    pub(super) fn waiting(&self) -> Result<Vec<(u32, u32, bool)>> {
        let newest = self.children.last();
        let newest = newest.filter(|child| self.current != Some(child.spi_out));
        let Some((child, path)) = newest.zip(self.path) else {
            return Ok(Vec::new());
        };
        let (from, to) = (path.remote.ip(), path.local.ip());
        let spi = format!("0x{:08x}", child.spi_in);
        let output = Command::new("ip")
            .args(["-s", "xfrm", "state", "get", "src", &from.to_string()])
            .args([
                "dst",
                &to.to_string(),
                "proto",
                protocol(child),
                "spi",
                &spi,
            ])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let used = text.lines().skip_while(|l| !l.contains("lifetime current"));
        let used = used
            .take(2)
            .any(|l| l.contains("(packets)") && !l.contains(" 0(packets)"));
        Ok(vec![(child.spi_in, child.spi_out, used)])
    }
}

fn state(child: &ChildSa, path: Path, inbound: bool) -> Result<String> {
    let (local, remote) = (path.local.ip(), path.remote.ip());
    let (from, to, spi, keys) = if inbound {
        (remote, local, child.spi_in, &child.keys_in)
    } else {
        (local, remote, child.spi_out, &child.keys_out)
    };
    let mut line = format!(
        "xfrm state add src {from} dst {to} proto {} spi 0x{spi:08x} reqid {REQID} mode {} replay-window {REPLAY_WINDOW}",
        protocol(child),
        mode(child)
    );
    if child.esn {
        line.push_str(" flag esn");
    }
    if protocol(child) == "ah" && from.is_ipv4() {
        // Without it Linux pads the ICV to 8 bytes, which RFC 4302 §3.3.3.2.1 asks for with IPv6 only.
        line.push_str(" flag align4");
    }
    line.push_str(&algorithms(child, keys)?);
    if let Some(path) = child.udp_encapsulation {
        let (local, remote) = (path.local.port(), path.remote.port());
        let (sport, dport) = if inbound {
            (remote, local)
        } else {
            (local, remote)
        };
        write!(line, " encap espinudp {sport} {dport} 0.0.0.0")?;
    }
    if child.transport {
        write!(line, " sel src {from} dst {to}")?;
    }
    line.push('\n');
    Ok(line)
}

fn algorithms(child: &ChildSa, keys: &ChildKeys) -> Result<String> {
    let key = hex::encode(keys.key.expose());
    let integrity = |kind| {
        let (hash, bits) = match kind {
            Integrity::HmacSha256 => ("sha256", 128),
            Integrity::HmacSha384 => ("sha384", 192),
            Integrity::HmacSha512 => ("sha512", 256),
        };
        let key = hex::encode(keys.integrity.expose());
        format!(" auth-trunc hmac({hash}) 0x{key} {bits}")
    };
    Ok(match child.suite {
        ChildSuite::Ah(kind) => integrity(kind),
        ChildSuite::Esp(EspSuite::Aes256Gcm16 | EspSuite::Aes128Gcm16) => {
            format!(" aead rfc4106(gcm(aes)) 0x{key} 128")
        }
        ChildSuite::Esp(EspSuite::Aes256Cbc(kind) | EspSuite::Aes128Cbc(kind)) => {
            format!(" enc cbc(aes) 0x{key}{}", integrity(kind))
        }
        other => bail!("no case uses {other:?}"),
    })
}

fn protocol(child: &ChildSa) -> &'static str {
    match child.suite {
        ChildSuite::Ah(_) => "ah",
        ChildSuite::Esp(_) => "esp",
    }
}

fn deletion(child: &ChildSa, path: Path) -> String {
    let (local, remote) = (path.local.ip(), path.remote.ip());
    let one = |from: IpAddr, to: IpAddr, spi: u32| {
        let protocol = protocol(child);
        format!("xfrm state delete src {from} dst {to} proto {protocol} spi 0x{spi:08x}\n")
    };
    one(local, remote, child.spi_out) + &one(remote, local, child.spi_in)
}

fn outward(child: &ChildSa, path: Path) -> Result<String> {
    let template = format!(
        "tmpl src {} dst {} proto {} spi 0x{:08x} reqid {REQID} mode {}",
        path.local.ip(),
        path.remote.ip(),
        protocol(child),
        child.spi_out,
        mode(child)
    );
    policies(&child.local_ts, &child.remote_ts, &["out"], &template)
}

fn inward(child: &ChildSa, path: Path) -> Result<String> {
    let template = format!(
        "tmpl src {} dst {} proto {} reqid {REQID} mode {}",
        path.remote.ip(),
        path.local.ip(),
        protocol(child),
        mode(child)
    );
    policies(&child.remote_ts, &child.local_ts, &["in", "fwd"], &template)
}

fn policies(
    from: &[TrafficSelector],
    to: &[TrafficSelector],
    directions: &[&str],
    template: &str,
) -> Result<String> {
    let mut batch = String::new();
    for (from, to) in from.iter().flat_map(|a| to.iter().map(move |b| (a, b))) {
        for direction in directions {
            let (from, to) = (prefix(from)?, prefix(to)?);
            writeln!(
                batch,
                "xfrm policy update src {from} dst {to} dir {direction} priority 100 {template}"
            )?;
        }
    }
    Ok(batch)
}

/// The selectors of the cases are whole prefixes of any protocol.
fn prefix(selector: &TrafficSelector) -> Result<String> {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let ((first, width), (last, _)) = (bits(selector.start), bits(selector.end));
    let host = 128 - (first ^ last).leading_zeros();
    if host > width || (last - first).count_ones() != host || selector.protocol != 0 {
        bail!("selector {selector:?} is no prefix of any protocol");
    }
    Ok(format!("{}/{}", selector.start, width - host))
}

fn mode(child: &ChildSa) -> &'static str {
    if child.transport {
        "transport"
    } else {
        "tunnel"
    }
}

fn ip(batch: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
