//! From the policy, and what the data plane can, to what is negotiated with peers; and why it cannot be.

use std::net::IpAddr;

use espalier_api::{
    DataplaneKind, OverlayKind, PerCpu, Protection, Protocol, SuiteName, UdpEncapsulation,
};
use espalier_dataplane_core::{Capabilities, Encapsulation, Hello, Overlay, SaMode, Suite};
use espalier_ike::{
    ChildConfig, ChildSa, ChildSuite, Encapsulations, EspSuite, Integrity, TrafficSelector,
};
use espalier_overlay::{Framing, PROBE_PORT};
use espalier_peers::NodeSpec;
use ipnet::IpNet;

use super::peer::{NAT_T_PORT, VNI, VXLAN_PORT};

const IPV4: u8 = 4;
const UDP: u8 = 17;
const IPV6: u8 = 41;
/// Selectors may name any protocol.
const ANY: u8 = 0;

/// SAs of single CPUs with one peer, at most: each is negotiated and replaced by itself.
const CPUS_MAX: usize = 16;
/// With all peers together: two states each, of some 2 kB of the kernel's memory.
const CPUS_OF_ALL: usize = 8192;

/// How many SAs of single CPUs a peer may have in a mesh of so many nodes. In steps: it does not change with every node.
pub(crate) fn cpus_among(nodes: usize) -> u32 {
    let each = CPUS_OF_ALL / nodes.next_power_of_two();
    u32::try_from(each.min(CPUS_MAX)).unwrap_or_default()
}

/// What holds on this node for all peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) protection: Protection,
    pub(crate) can: Capabilities,
    /// SAs of single CPUs with one peer, at most: [`cpus_among`].
    pub(crate) cpus: u32,
}

/// Both ends of a pair, with their addresses towards each other.
pub(crate) struct Ends<'a> {
    pub(crate) own: &'a NodeSpec,
    pub(crate) peer: &'a NodeSpec,
    pub(crate) local: IpAddr,
    pub(crate) remote: IpAddr,
}

impl Terms {
    /// What is offered and accepted; no suites when the data plane has none of the policy's.
    pub(crate) fn child(&self, ends: &Ends<'_>) -> ChildConfig {
        let (local_ts, remote_ts) = self.selectors(ends);
        ChildConfig {
            transport: self.mode() == SaMode::Transport,
            suites: self.suites().map(child_suite).collect(),
            esn: self.can.esn,
            per_cpu: self.per_cpu(),
            encapsulations: Some(Encapsulations {
                raw: self.raw(),
                udp: self.udp(),
            }),
            ..ChildConfig::new(local_ts, remote_ts)
        }
    }

    /// Beside a raw one that does not arrive.
    pub(crate) fn fallback(&self, ends: &Ends<'_>) -> ChildConfig {
        ChildConfig {
            encapsulations: Some(Encapsulations {
                raw: false,
                udp: true,
            }),
            per_cpu: None,
            ..self.child(ends)
        }
    }

    /// How many SAs of single CPUs (RFC 9611) to have with a peer, and to grant it.
    fn per_cpu(&self) -> Option<u32> {
        let wanted = self.protection.per_cpu == PerCpu::Auto;
        let cpus = self.can.cpus.min(self.cpus);
        (wanted && cpus > 1).then_some(cpus)
    }

    /// Raw ESP is used where it passes, else UDP.
    pub(crate) fn tries(&self) -> bool {
        self.raw() && self.udp()
    }

    pub(crate) fn ah(&self) -> bool {
        self.protection.protocol == Protocol::Ah
    }

    fn selectors(&self, ends: &Ends<'_>) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
        let host = |address| match self.protection.overlay {
            OverlayKind::Vxlan => vec![any_port(address, UDP)],
            OverlayKind::Ipip => vec![
                any_port(address, IPV4),
                any_port(address, IPV6),
                probes(address),
            ],
            OverlayKind::None => vec![probes(address)],
        };
        let pods = |node: &NodeSpec| match self.protection.overlay {
            OverlayKind::None => node.pod_cidrs.iter().map(whole).collect(),
            _ => Vec::new(),
        };
        (
            [pods(ends.own), host(ends.local)].concat(),
            [pods(ends.peer), host(ends.remote)].concat(),
        )
    }

    /// The policy's suites that the data plane has, in the policy's order.
    fn suites(&self) -> impl Iterator<Item = Suite> {
        let wanted = match self.protection.protocol {
            Protocol::Ah => vec![Suite::AhHmacSha256],
            Protocol::Esp => self.protection.suites.iter().map(suite_named).collect(),
        };
        wanted
            .into_iter()
            .filter(|suite| self.can.suites.contains(suite))
    }

    /// What a tunnel with a gateway outside of the mesh may have: it is encrypted, whatever the mesh has.
    pub(crate) fn tunnel_suites(&self) -> Vec<Suite> {
        let usable = |suite: &Suite| suite.encrypts() && self.can.suites.contains(suite);
        let wanted = self.protection.suites.iter().map(suite_named);
        let wanted: Vec<Suite> = wanted.filter(usable).collect();
        if wanted.is_empty() {
            return Suite::ALL.into_iter().filter(usable).collect();
        }
        wanted
    }

    /// The same in IKE's words.
    pub(crate) fn offered_to_gateways(&self) -> Vec<ChildSuite> {
        self.tunnel_suites().into_iter().map(child_suite).collect()
    }

    pub(crate) fn mode(&self) -> SaMode {
        match self.protection.overlay {
            OverlayKind::None => SaMode::Tunnel,
            OverlayKind::Vxlan | OverlayKind::Ipip => SaMode::Transport,
        }
    }

    pub(crate) fn plane_overlay(&self) -> Overlay {
        match self.protection.overlay {
            OverlayKind::Vxlan => Overlay::Vxlan {
                vni: VNI,
                port: VXLAN_PORT,
            },
            OverlayKind::Ipip => Overlay::Ipip,
            OverlayKind::None => Overlay::Native,
        }
    }

    pub(crate) fn framing(&self) -> Framing {
        match self.protection.overlay {
            OverlayKind::Vxlan => Framing::Vxlan,
            OverlayKind::Ipip => Framing::Ipip,
            OverlayKind::None => Framing::Native,
        }
    }

    /// SAs of these terms cannot carry what those of `new` are for.
    pub(crate) fn needs_other_sas(&self, new: &Self) -> bool {
        let of = |terms: &Self| (terms.protection.protocol, terms.protection.overlay);
        of(self) != of(new)
    }

    /// Raw ESP, or AH, may be used with peers.
    pub(crate) fn raw(&self) -> bool {
        match self.protection.udp_encapsulation {
            UdpEncapsulation::Always => false,
            UdpEncapsulation::Never => self.can.raw || self.can.raw_untried,
            // Untried it is not used; and in userspace ESP in UDP is the faster one, since it has offloads.
            UdpEncapsulation::Auto => self.can.raw,
        }
    }

    /// ESP in UDP may be used with peers.
    pub(crate) fn udp(&self) -> bool {
        let wanted = self.protection.udp_encapsulation != UdpEncapsulation::Never;
        self.can.udp && wanted && self.protection.protocol == Protocol::Esp
    }

    /// What is around ESP of a negotiated SA.
    pub(crate) fn encapsulation(&self, child: &ChildSa) -> Encapsulation {
        if let Some(path) = child.udp_encapsulation {
            return Encapsulation::Udp {
                local_port: path.local.port(),
                remote_port: path.remote.port(),
            };
        }
        // Not agreed: the peer says nothing of it, as the userspace data plane of older versions.
        if child.encapsulation.is_none() && self.udp() {
            return Encapsulation::Udp {
                local_port: NAT_T_PORT,
                remote_port: NAT_T_PORT,
            };
        }
        Encapsulation::Raw
    }

    /// S8: what of the policy this data plane cannot do, each with its remedy.
    pub(crate) fn problems(&self, hello: &Hello) -> Vec<String> {
        let Protection {
            protocol,
            overlay,
            udp_encapsulation,
            dataplane,
            ..
        } = &self.protection;
        let kind = &hello.kind;
        let mut why = Vec::new();
        let wanted = match dataplane {
            DataplaneKind::Auto => None,
            DataplaneKind::Kernel => Some("kernel"),
            DataplaneKind::Userspace => Some("userspace"),
        };
        if let Some(wanted) = wanted.filter(|wanted| wanted != kind) {
            why.push(format!(
                "the policy wants dataplane {dataplane:?}, this node has {kind}; start espalier-dataplane with --dataplane {wanted}, or set dataplane: Auto"
            ));
        }
        let mut lacks = |field: &str, what: &str, remedy: &str| {
            why.push(format!(
                "{field} needs {what}, which the {kind} data plane of this node cannot do; {remedy}"
            ));
        };
        if self.suites().next().is_none() {
            match protocol {
                Protocol::Ah => lacks(
                    "protocol: AH",
                    "AH with HMAC-SHA2-256-128",
                    "use protocol: ESP",
                ),
                Protocol::Esp => lacks(
                    "suites",
                    &format!("one of {}", names(&self.protection.suites)),
                    "add AES-256-GCM",
                ),
            }
        }
        if *overlay == OverlayKind::None && !self.can.tunnel {
            lacks("overlay: None", "tunnel mode", "use overlay: VXLAN or IPIP");
        }
        if !self.raw() && !self.udp() {
            let what = match (protocol, udp_encapsulation) {
                (Protocol::Ah, _) | (_, UdpEncapsulation::Never) => "raw packets",
                _ => "ESP in UDP",
            };
            lacks(
                &format!("protocol {protocol:?} with udpEncapsulation: {udp_encapsulation:?}"),
                what,
                "use udpEncapsulation: Auto; raw ESP of the userspace data plane needs CAP_NET_RAW",
            );
        }
        why
    }
}

fn names(suites: &[SuiteName]) -> String {
    let words: Vec<&str> = suites.iter().map(|suite| suite.as_str()).collect();
    words.join(", ")
}

fn suite_named(name: &SuiteName) -> Suite {
    match name {
        SuiteName::Aes256Gcm => Suite::Aes256Gcm16,
        SuiteName::Aes128Gcm => Suite::Aes128Gcm16,
        SuiteName::ChaCha20Poly1305 => Suite::ChaCha20Poly1305,
        SuiteName::Aes256Gmac => Suite::Aes256Gmac,
        SuiteName::Aes128Gmac => Suite::Aes128Gmac,
    }
}

fn child_suite(suite: Suite) -> ChildSuite {
    match suite {
        Suite::Aes256Gcm16 => EspSuite::Aes256Gcm16.into(),
        Suite::Aes128Gcm16 => EspSuite::Aes128Gcm16.into(),
        Suite::ChaCha20Poly1305 => EspSuite::ChaCha20Poly1305.into(),
        Suite::Aes256Gmac => EspSuite::Aes256Gmac.into(),
        Suite::Aes128Gmac => EspSuite::Aes128Gmac.into(),
        Suite::AhHmacSha256 => ChildSuite::Ah(Integrity::HmacSha256),
    }
}

/// The data plane's word for what was negotiated; `None` for what no data plane here has.
pub(crate) fn plane_suite(suite: ChildSuite) -> Option<Suite> {
    Suite::ALL
        .into_iter()
        .find(|known| child_suite(*known) == suite)
}

fn any_port(address: IpAddr, protocol: u8) -> TrafficSelector {
    TrafficSelector {
        protocol,
        start_port: 0,
        end_port: u16::MAX,
        start: address,
        end: address,
    }
}

/// VXLAN's source ports are hashed and both ends send to 4789, so there one CHILD_SA carries UDP of any port between the hosts,
/// probes too. With other overlays probes have a selector of their own.
fn probes(address: IpAddr) -> TrafficSelector {
    TrafficSelector {
        start_port: PROBE_PORT,
        end_port: PROBE_PORT,
        ..any_port(address, UDP)
    }
}

pub(crate) fn whole(cidr: &IpNet) -> TrafficSelector {
    TrafficSelector {
        start: cidr.network(),
        end: cidr.broadcast(),
        ..any_port(cidr.network(), ANY)
    }
}

#[cfg(test)]
mod tests {
    use espalier_dataplane_core::{KERNEL, USERSPACE};

    use super::*;

    fn hello(kind: &str, suites: &[Suite], raw: bool) -> Hello {
        Hello {
            instance: 1,
            version: String::new(),
            digest: String::new(),
            kind: kind.to_owned(),
            device: None,
            pid: 1,
            can: Capabilities {
                suites: suites.to_vec(),
                raw: raw && kind == KERNEL,
                raw_untried: raw && kind == USERSPACE,
                udp: true,
                tunnel: kind == KERNEL,
                esn: true,
                max_replay_window: 4096,
                cpus: 0,
                notes: Vec::new(),
            },
        }
    }

    fn kernel() -> Hello {
        hello(KERNEL, &Suite::ALL, true)
    }

    fn userspace() -> Hello {
        hello(USERSPACE, &[Suite::Aes256Gcm16, Suite::Aes128Gcm16], true)
    }

    fn terms(hello: &Hello, change: impl FnOnce(&mut Protection)) -> Terms {
        let mut protection = Protection::default();
        change(&mut protection);
        Terms {
            protection,
            can: hello.can.clone(),
            cpus: cpus_among(2),
        }
    }

    fn node(name: &str, address: &str, cidr: &str) -> NodeSpec {
        NodeSpec {
            name: name.to_owned(),
            uid: None,
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: vec![cidr.parse().unwrap()],
        }
    }

    fn child(terms: &Terms) -> ChildConfig {
        let own = node("a", "10.0.0.1", "10.244.1.0/24");
        let peer = node("b", "10.0.0.2", "10.244.2.0/24");
        let ends = Ends {
            own: &own,
            peer: &peer,
            local: own.addresses[0],
            remote: peer.addresses[0],
        };
        terms.child(&ends)
    }

    #[test]
    fn suites_are_those_of_the_policy_that_the_data_plane_has() {
        let offered =
            |hello: &Hello, change: fn(&mut Protection)| child(&terms(hello, change)).suites;
        let gcm: [ChildSuite; 2] = [EspSuite::Aes256Gcm16.into(), EspSuite::Aes128Gcm16.into()];
        assert_eq!(offered(&userspace(), |_| {}), gcm);
        assert_eq!(offered(&kernel(), |_| {}).len(), 3);
        let gmac = |p: &mut Protection| p.suites = vec![SuiteName::Aes128Gmac];
        assert_eq!(offered(&kernel(), gmac), [EspSuite::Aes128Gmac.into()]);
        let ah = |p: &mut Protection| p.protocol = Protocol::Ah;
        assert_eq!(
            offered(&kernel(), ah),
            [ChildSuite::Ah(Integrity::HmacSha256)]
        );
    }

    #[test]
    fn raw_esp_is_tried_by_the_kernel_and_used_in_userspace_where_it_must() {
        let of = |hello: &Hello, udp_encapsulation| {
            let terms = terms(hello, |p| p.udp_encapsulation = udp_encapsulation);
            let Encapsulations { raw, udp } = child(&terms).encapsulations.unwrap();
            (raw, udp, terms.tries())
        };
        for (hello, auto) in [
            (kernel(), (true, true, true)),
            (userspace(), (false, true, false)),
        ] {
            assert_eq!(of(&hello, UdpEncapsulation::Auto), auto);
            let always = of(&hello, UdpEncapsulation::Always);
            assert_eq!(always, (false, true, false));
            let never = of(&hello, UdpEncapsulation::Never);
            assert_eq!(never, (true, false, false));
        }
    }

    #[test]
    fn selectors_follow_the_overlay() {
        let of = |overlay| {
            let child = child(&terms(&kernel(), |p| p.overlay = overlay));
            let text = |side: &[TrafficSelector]| {
                let one = |ts: &TrafficSelector| {
                    format!("{}-{}/{}:{}", ts.start, ts.end, ts.protocol, ts.start_port)
                };
                side.iter().map(one).collect::<Vec<_>>().join(" ")
            };
            (
                child.transport,
                text(&child.local_ts),
                text(&child.remote_ts),
            )
        };
        let (transport, local, remote) = of(OverlayKind::Vxlan);
        assert!(transport);
        assert_eq!(local, "10.0.0.1-10.0.0.1/17:0");
        assert_eq!(remote, "10.0.0.2-10.0.0.2/17:0");
        let (transport, local, _) = of(OverlayKind::Ipip);
        assert!(transport);
        let expected = "10.0.0.1-10.0.0.1/4:0 10.0.0.1-10.0.0.1/41:0 10.0.0.1-10.0.0.1/17:4788";
        assert_eq!(local, expected);
        let (transport, local, remote) = of(OverlayKind::None);
        assert!(!transport);
        assert_eq!(
            local,
            "10.244.1.0-10.244.1.255/0:0 10.0.0.1-10.0.0.1/17:4788"
        );
        assert_eq!(
            remote,
            "10.244.2.0-10.244.2.255/0:0 10.0.0.2-10.0.0.2/17:4788"
        );
    }

    #[test]
    fn s8_what_the_data_plane_cannot_do_is_said_with_a_remedy() {
        type Case = (fn(&mut Protection), &'static str);
        let cases: [Case; 4] = [
            (
                |p| p.dataplane = DataplaneKind::Kernel,
                "--dataplane kernel",
            ),
            (|p| p.protocol = Protocol::Ah, "protocol: ESP"),
            (
                |p| p.suites = vec![SuiteName::Aes256Gmac],
                "add AES-256-GCM",
            ),
            (|p| p.overlay = OverlayKind::None, "VXLAN or IPIP"),
        ];
        for (change, remedy) in cases {
            let why = terms(&userspace(), change)
                .problems(&userspace())
                .join("; ");
            assert!(why.contains(remedy) && why.contains("userspace"), "{why}");
            assert_eq!(terms(&kernel(), change).problems(&kernel()), [""; 0]);
        }
        assert_eq!(terms(&userspace(), |_| {}).problems(&userspace()), [""; 0]);
        let never = |p: &mut Protection| p.udp_encapsulation = UdpEncapsulation::Never;
        assert_eq!(terms(&userspace(), never).problems(&userspace()), [""; 0]);
        let mut no_raw = userspace();
        no_raw.can.raw_untried = false;
        let why = terms(&no_raw, never).problems(&no_raw).join("; ");
        for said in ["raw packets", "udpEncapsulation: Auto", "CAP_NET_RAW"] {
            assert!(why.contains(said), "{why}");
        }
        let only_userspace = terms(&kernel(), |p| p.dataplane = DataplaneKind::Userspace);
        assert_eq!(only_userspace.problems(&kernel()).len(), 1);
    }

    #[test]
    fn every_suite_has_its_word_on_both_sides() {
        for suite in Suite::ALL {
            assert_eq!(plane_suite(child_suite(suite)), Some(suite));
        }
        assert_eq!(plane_suite(ChildSuite::Ah(Integrity::HmacSha512)), None);
    }

    #[test]
    fn sas_of_single_cpus_are_had_where_they_help_and_not_by_the_thousand() {
        let mut hello = hello(KERNEL, &Suite::ALL, true);
        let of = |hello: &Hello, nodes| {
            let terms = Terms {
                cpus: cpus_among(nodes),
                ..terms(hello, |_| {})
            };
            terms.per_cpu()
        };
        for (cpus, expected) in [(0, None), (1, None), (2, Some(2)), (64, Some(16))] {
            hello.can.cpus = cpus;
            assert_eq!(of(&hello, 3), expected);
        }
        for (nodes, expected) in [(0, Some(16)), (600, Some(8)), (4096, Some(2)), (5000, None)] {
            assert_eq!(of(&hello, nodes), expected);
        }
        let never = terms(&hello, |protection| protection.per_cpu = PerCpu::Never);
        assert_eq!(never.per_cpu(), None);
    }
}
