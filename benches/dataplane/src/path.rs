//! Two namespaces and what connects them.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use espalier_dataplane_core::{Encapsulation, Overlay};
use espalier_testnet::{Netns, Process, VethEnd, address, sysctl, veth};

use crate::espalier::IN_UDP;
use crate::{Arguments, cost, espalier, load, wireguard};

/// gotatun reads each packet into a buffer of 4,096 bytes, its own headers included: what is larger stands still (0.10.2).
const GOTATUN_MTU: u16 = 4000;

/// A way from one namespace to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    /// Nothing between.
    PlainVeth,
    /// The kernel's VXLAN, in clear.
    PlainVxlan,
    /// Espalier: VXLAN in ESP in UDP.
    EspalierVxlanUdp,
    /// Espalier: IP in ESP in UDP.
    EspalierIpipUdp,
    /// Espalier: VXLAN in raw ESP, with the pod MTU of ESP in UDP.
    EspalierVxlanRaw,
    /// WireGuard in Go.
    WireguardGo,
    /// WireGuard in Rust.
    Boringtun,
    /// WireGuard in Rust, another one.
    Gotatun,
}

impl Name {
    pub(crate) const ALL: [Self; 8] = [
        Self::PlainVeth,
        Self::PlainVxlan,
        Self::EspalierVxlanUdp,
        Self::EspalierIpipUdp,
        Self::EspalierVxlanRaw,
        Self::WireguardGo,
        Self::Boringtun,
        Self::Gotatun,
    ];
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::PlainVeth => "plain-veth",
            Self::PlainVxlan => "plain-vxlan",
            Self::EspalierVxlanUdp => "espalier-vxlan-udp",
            Self::EspalierIpipUdp => "espalier-ipip-udp",
            Self::EspalierVxlanRaw => "espalier-vxlan-raw",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
            Self::Gotatun => "gotatun",
        })
    }
}

/// One end.
pub(crate) struct End {
    pub(crate) netns: Netns,
    /// 1 or 2, or more where there are several peers.
    pub(crate) n: u8,
    /// Of the underlay.
    pub(crate) underlay: Ipv4Addr,
    /// What the loads use.
    pub(crate) pod: Ipv4Addr,
}

impl End {
    pub(crate) fn new(n: u8) -> Result<Self> {
        let name = match n {
            1 => "a".to_owned(),
            2 => "b".to_owned(),
            n => format!("n{n}"),
        };
        Ok(Self {
            netns: Netns::new(&name)?,
            n,
            underlay: Ipv4Addr::new(192, 0, 2, n),
            pod: Ipv4Addr::new(10, 244, n, 1),
        })
    }

    /// Runs `ip` with these words.
    pub(crate) fn ip(&self, words: &str) -> Result<()> {
        let mut command = Command::new("ip");
        self.netns.output(command.args(words.split_whitespace()))?;
        Ok(())
    }

    pub(crate) fn addresses(&self) -> Result<()> {
        self.netns.run(|| {
            address("eth0", IpAddr::V4(self.underlay), 24)?;
            address("lo", IpAddr::V4(self.pod), 32)?;
            // So that ICMP sockets need no privilege.
            sysctl("ipv4/ping_group_range", "0 0")
        })?
    }
}

/// Both ends, connected.
pub(crate) struct Site {
    pub(crate) ends: [End; 2],
    daemons: Vec<Process>,
}

impl Site {
    /// Connects two new namespaces, and waits until a packet gets through.
    pub(crate) fn new(name: Name, mtu: u16, arguments: &Arguments) -> Result<Self> {
        let ends = [End::new(1)?, End::new(2)?];
        let [a, b] = &ends;
        let end = |end: &'_ End| -> Result<()> { end.addresses() };
        veth(
            VethEnd {
                netns: &a.netns,
                name: "eth0",
            },
            VethEnd {
                netns: &b.netns,
                name: "eth0",
            },
            mtu.into(),
        )?;
        end(a)?;
        end(b)?;
        let daemons = connect(name, mtu, arguments, [a, b])?;
        let site = Self { ends, daemons };
        load::arrive(site.pair()).with_context(|| format!("{name} with MTU {mtu}"))?;
        Ok(site)
    }

    /// Who sends, and who receives.
    pub(crate) fn pair(&self) -> [&End; 2] {
        self.ends.each_ref()
    }

    pub(crate) fn has_daemons(&self) -> bool {
        !self.daemons.is_empty()
    }

    /// CPU time of the daemons until now, seconds; none without daemons.
    pub(crate) fn cost(&self) -> Result<Option<f64>> {
        let all = self.daemons.iter().map(|daemon| cost::cpu(daemon.id()));
        let sum = all.sum::<Result<f64>>()?;
        Ok(self.has_daemons().then_some(sum))
    }

    /// Resident memory of one daemon, KB.
    pub(crate) fn rss_kb(&self) -> Result<f64> {
        let all = self.daemons.iter().map(|daemon| cost::rss_kb(daemon.id()));
        Ok(all.sum::<Result<f64>>()? / self.daemons.len().max(1) as f64)
    }

    /// Streams, and says who works.
    pub(crate) fn profile(&self, seconds: f64) -> Result<()> {
        let bytes = load::tcp(&[self.pair()], seconds)?;
        let cpu = self.cost()?.unwrap_or_default();
        eprintln!("{:.2} Gbit/s", bytes.per_second * 8.0 / 1e9);
        eprintln!("{:.2} CPU-s/GB", cpu / (bytes.total / 1e9));
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.daemons.iter_mut().for_each(end);
    }
}

/// Ends a daemon.
pub(crate) fn end(daemon: &mut Process) {
    let _ended = daemon.terminate(Duration::from_secs(3));
}

fn connect(name: Name, mtu: u16, arguments: &Arguments, ends: [&End; 2]) -> Result<Vec<Process>> {
    let vxlan = Overlay::Vxlan {
        vni: 4789,
        port: 4789,
    };
    match name {
        Name::PlainVeth => plain(ends, "eth0"),
        Name::PlainVxlan => plain_vxlan(ends, mtu),
        Name::EspalierVxlanUdp => espalier::connect(ends, mtu - 92, (vxlan, IN_UDP)),
        Name::EspalierIpipUdp => espalier::connect(ends, mtu - 62, (Overlay::Ipip, IN_UDP)),
        Name::EspalierVxlanRaw => espalier::connect(ends, mtu - 92, (vxlan, Encapsulation::Raw)),
        Name::WireguardGo => {
            let folder = arguments.wireguard.as_deref();
            wireguard::connect(ends, mtu - 60, folder, folder, "wireguard-go")
        }
        Name::Boringtun => wireguard::connect(
            ends,
            mtu - 60,
            arguments.wireguard.as_deref(),
            arguments.tools.as_deref(),
            "boringtun-cli",
        ),
        Name::Gotatun => wireguard::connect(
            ends,
            (mtu - 60).min(GOTATUN_MTU),
            arguments.wireguard.as_deref(),
            arguments.tools.as_deref(),
            "gotatun",
        ),
    }
}

/// Routes to each other's pods over `device`.
pub(crate) fn plain([a, b]: [&End; 2], device: &str) -> Result<Vec<Process>> {
    for (own, other) in [(a, b), (b, a)] {
        let via = match device {
            "eth0" => format!("via {} dev eth0", other.underlay),
            _ => format!("dev {device}"),
        };
        own.ip(&format!("route add {}/32 {via} src {}", other.pod, own.pod))?;
    }
    Ok(Vec::new())
}

fn plain_vxlan([a, b]: [&End; 2], mtu: u16) -> Result<Vec<Process>> {
    for (own, other) in [(a, b), (b, a)] {
        own.ip(&format!(
            "link add vx type vxlan id 4789 dstport 4789 local {} remote {} dev eth0",
            own.underlay, other.underlay
        ))?;
        own.ip(&format!("link set vx mtu {} up", mtu - 50))?;
    }
    plain([a, b], "vx")
}
