//! What is told to the command line and to the pod side.

use std::collections::HashMap;

use espalier_api::{OverlayKind, Protocol};
use espalier_dataplane_core::{Capabilities, Dataplane, Direction, Dump, Encapsulation, SaInfo};
use espalier_ike::{Identity, IkeStatus};
use espalier_ike_io::unix_now;
use espalier_peers::{Mode, Sends};
use espalier_rpc::agent::{Capabilities as CapabilitiesSaid, PeerStatus, StatusReply};
use ipnet::IpNet;

use super::peer::PeerState;
use super::{Kernel, Mesh, Query};
use crate::news;

/// What the pod side needs to know of the node. Default: nothing is known yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) pod_cidrs: Vec<IpNet>,
    pub(crate) mtu: u32,
    /// Why no pod can be wired now, each with its remedy; empty: ready.
    pub(crate) not_ready: Vec<String>,
}

impl NodeFacts {
    /// Also before anything is known.
    pub(crate) fn why_not_ready(&self) -> Vec<String> {
        match self.not_ready.is_empty() && self.mtu == 0 {
            true => vec!["the agent is starting".to_owned()],
            false => self.not_ready.clone(),
        }
    }
}

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    // Nobody waits for an answer any more: nothing to tell.
    pub(super) async fn answer(&mut self, query: Query) {
        match query {
            Query::Summary(reply) => drop(reply.send(self.summary())),
            Query::Status(reply) => {
                let dump = match self.uplink.answers() {
                    true => self.parts.plane.dump().await.ok(),
                    false => None,
                };
                dump.iter()
                    .for_each(|dump| self.parts.counters.take_dump(dump));
                let _ = reply.send(self.status(dump.as_ref()));
            }
        }
    }

    pub(super) fn publish_facts(&mut self) {
        let facts = NodeFacts {
            pod_cidrs: self
                .set
                .own
                .as_ref()
                .map(|own| own.pod_cidrs.clone())
                .unwrap_or_default(),
            mtu: self.pod_mtu,
            not_ready: self.not_ready(),
        };
        news::tell(&self.parts.facts, facts);
    }

    /// S8: a node that cannot enforce its policy takes no pods.
    pub(super) fn not_ready(&self) -> Vec<String> {
        let mut why = Vec::new();
        match &self.set.own {
            None if self.snapshot.policy.cluster_cidrs.is_empty() => {
                let what = self.snapshot.problem_texts().join("; ");
                why.push(format!("there is no policy in force yet: {what}"));
            }
            None => why.push(format!(
                "no usable Node object named {}; it needs an InternalIP address and a pod CIDR inside clusterCIDRs",
                self.parts.node
            )),
            Some(own) if own.pod_cidrs.is_empty() => {
                why.push(format!("Node {} has no spec.podCIDRs; give it one inside clusterCIDRs", own.name));
            }
            Some(_) => {}
        }
        why.extend(self.kernel_problem.clone());
        why.extend(self.no_identity());
        if self.pod_mtu == 0 && self.kernel_problem.is_none() && self.set.own.is_some() {
            why.push("the overlay is not set up yet; try again in a moment".to_owned());
        }
        if let Some(hello) = &self.uplink.hello {
            why.extend(self.terms.problems(hello));
        } else if !self.uplink.is_kernel() && self.snapshot.policy.mode != Mode::Disabled {
            let socket = self.parts.run_dir.join("dataplane.sock");
            why.push(format!(
                "the data plane does not answer on {}; is espalier-dataplane running?",
                socket.display()
            ));
        }
        why
    }

    /// A node on its way into a cluster: without a certificate it could do nothing but block under Required.
    fn no_identity(&self) -> Option<String> {
        let needed = self.snapshot.policy.mode == Mode::Required;
        (self.keyring.awaited && needed).then(|| {
            "this node has no certificate yet, and the policy is Required; see the problems for what it waits for".to_owned()
        })
    }

    pub(super) fn problems(&self, not_ready: Vec<String>) -> Vec<String> {
        let port = self.parts.io.problem().into_iter().collect();
        let complaints = self.parts.complaints.iter();
        let complaints = complaints.flat_map(|seen| seen.borrow().clone()).collect();
        let own = self
            .keyring
            .own_problem(&self.parts.node, unix_now())
            .into_iter()
            .collect();
        [
            not_ready,
            self.uplink.problem().into_iter().collect(),
            self.keyring.problems.clone(),
            own,
            self.snapshot.problem_texts(),
            self.gateway_problems(),
            port,
            complaints,
        ]
        .concat()
    }

    /// What a reader of the status should know, and need not mend.
    fn notes(&self) -> Vec<String> {
        let of_plane = self
            .uplink
            .hello
            .iter()
            .flat_map(|hello| hello.can.notes.clone());
        let of_kernel = self.kernel_note.clone();
        let own = self.demand_note().into_iter().chain(of_kernel);
        own.chain(of_plane).collect()
    }

    fn status(&self, dump: Option<&Dump>) -> StatusReply {
        let not_ready = self.not_ready();
        let own = self.set.own.as_ref();
        let hello = self.uplink.hello.as_ref();
        let words = |cidrs: &[IpNet]| cidrs.iter().map(ToString::to_string).collect();
        StatusReply {
            node: self.parts.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            dataplane: hello.map_or("unreachable".to_owned(), |hello| hello.kind.clone()),
            dataplane_version: hello.map(|hello| hello.version.clone()).unwrap_or_default(),
            mode: self.snapshot.policy.mode.to_string(),
            ready: not_ready.is_empty(),
            problems: self.problems(not_ready.clone()),
            peers: self.peer_statuses(dump),
            leases: 0, // filled in by the pod side, which owns them
            uptime_s: self.started.elapsed().as_secs(),
            pid: std::process::id(),
            pod_cidrs: own.map(|own| words(&own.pod_cidrs)).unwrap_or_default(),
            cluster_cidrs: words(&self.snapshot.policy.cluster_cidrs),
            underlay: own
                .and_then(|own| own.addresses.first())
                .map(ToString::to_string)
                .unwrap_or_default(),
            mtu: self.pod_mtu,
            can: hello.map(|hello| capabilities(&hello.can)),
            notes: self.notes(),
            protocol: match self.terms.protection.protocol {
                Protocol::Esp => "ESP",
                Protocol::Ah => "AH",
            }
            .to_owned(),
            overlay: match self.terms.protection.overlay {
                OverlayKind::Vxlan => "VXLAN",
                OverlayKind::Ipip => "IPIP",
                OverlayKind::None => "None",
            }
            .to_owned(),
            drops: dump
                .map(|dump| dump.drops.iter().cloned().collect::<HashMap<_, _>>())
                .unwrap_or_default(),
        }
    }

    fn peer_statuses(&self, dump: Option<&Dump>) -> Vec<PeerStatus> {
        let peers = self.peers.values().map(|peer| self.peer_status(peer, dump));
        let gateways = self.gateways.values();
        let gateways = gateways.map(|gateway| self.gateway_status(gateway, dump));
        peers.chain(gateways).collect()
    }

    fn peer_status(&self, peer: &PeerState, dump: Option<&Dump>) -> PeerStatus {
        let view = peer.pair.view();
        let name = &peer.spec.name;
        let sas: Vec<&SaInfo> = dump
            .iter()
            .flat_map(|dump| &dump.sas)
            .filter(|sa| sa.peer.0 == *name)
            .collect();
        let sum = |direction, field: fn(&SaInfo) -> u64| -> u64 {
            sas.iter()
                .filter(|sa| sa.direction == direction)
                .map(|sa| field(sa))
                .sum()
        };
        let active = sas
            .iter()
            .find(|sa| sa.direction == Direction::Out && sa.active);
        let expired = "Required, but no SA came up before the deadline: the pair is blocked; see the handshake's problem";
        let problem = peer.config_problem.clone().or(peer.problem.clone());
        let tried = self.terms.tries().then(|| peer.way.problem()).flatten();
        let sends_esp = view.sends == Sends::Esp;
        let in_use = active
            .map(|sa| (sa.suite, sa.encapsulation))
            .filter(|_| sends_esp);
        let encrypted = sends_esp && in_use.is_none_or(|(suite, _)| suite.encrypts());
        PeerStatus {
            name: name.clone(),
            kind: "node".to_owned(),
            address: peer.addresses.1.to_string(),
            pod_cidrs: peer
                .spec
                .pod_cidrs
                .iter()
                .map(ToString::to_string)
                .collect(),
            effective_mode: view.effective.to_string(),
            path: match view.sends {
                // Closed, and the first packet asks for SAs.
                Sends::Nothing if self.is_idle(peer, &view) => "OnDemand",
                Sends::Nothing => "Blocked",
                Sends::Clear => "Clear",
                Sends::Esp if encrypted => "Encrypted",
                Sends::Esp => "Authenticated",
            }
            .to_owned(),
            encapsulation: in_use
                .map_or("", |(_, encapsulation)| match encapsulation {
                    Encapsulation::Raw => "raw",
                    Encapsulation::Udp { .. } => "UDP",
                })
                .to_owned(),
            protocol: in_use
                .map_or("", |(suite, _)| if suite.is_ah() { "AH" } else { "ESP" })
                .to_owned(),
            encrypted,
            authenticated: sends_esp,
            accepts_clear: view.accepts_clear,
            enforced: view.enforced,
            ike: match self.parts.endpoint.status(&Identity(name.as_str().into())) {
                IkeStatus::None => "none",
                IkeStatus::Connecting => "connecting",
                IkeStatus::Established => "established",
            }
            .to_owned(),
            suite: active
                .map(|sa| format!("{:?}", sa.suite))
                .unwrap_or_default(),
            spi_in: peer.opens(),
            spi_out: peer.active.map_or(0, |spi| spi.0),
            age_s: active.map_or(0, |sa| sa.age_s),
            packets_in: sum(Direction::In, |sa| sa.packets),
            packets_out: sum(Direction::Out, |sa| sa.packets),
            bytes_in: sum(Direction::In, |sa| sa.bytes),
            bytes_out: sum(Direction::Out, |sa| sa.bytes),
            drops: sas.iter().map(|sa| sa.drops).sum(),
            handshake_us: peer
                .handshake
                .map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            problem: problem
                .or(view.expired.then(|| expired.to_owned()))
                .or(tried)
                .unwrap_or_default(),
            sas: u32::try_from(sas.len()).unwrap_or(u32::MAX),
            cpus: if sends_esp { peer.cpus() } else { 0 },
        }
    }
}

fn capabilities(can: &Capabilities) -> CapabilitiesSaid {
    CapabilitiesSaid {
        suites: can
            .suites
            .iter()
            .map(|suite| format!("{suite:?}"))
            .collect(),
        raw: can.raw || can.raw_untried,
        udp: can.udp,
        tunnel: can.tunnel,
        esn: can.esn,
        max_replay_window: can.max_replay_window,
        cpus: can.cpus,
    }
}
