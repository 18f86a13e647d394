//! What a node's agent says, owned: as `-o json` prints it here, and as it is read from the nodes of a cluster. Fields are those of
//! `agent.proto`. One that an older node does not send has its default.

use std::collections::BTreeMap;

use espalier_rpc::agent::{Capabilities, PeerStatus, StatusReply};
use serde::{Deserialize, Serialize};

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) node: String,
    pub(crate) version: String,
    pub(crate) dataplane: String,
    pub(crate) dataplane_version: String,
    pub(crate) mode: String,
    pub(crate) ready: bool,
    pub(crate) problems: Vec<String>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) leases: u32,
    pub(crate) uptime_s: u64,
    pub(crate) pid: u32,
    pub(crate) pod_cidrs: Vec<String>,
    pub(crate) cluster_cidrs: Vec<String>,
    pub(crate) underlay: String,
    pub(crate) mtu: u32,
    pub(crate) drops: BTreeMap<String, u64>,
    pub(crate) protocol: String,
    pub(crate) overlay: String,
    pub(crate) can: Option<Can>,
    pub(crate) notes: Vec<String>,
}

impl Node {
    /// Those that are nodes, not gateways outside of the mesh.
    pub(crate) fn node_peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.kind != "external")
    }
}

/// What a data plane was found to be able to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Can {
    pub(crate) suites: Vec<String>,
    pub(crate) raw: bool,
    pub(crate) udp: bool,
    pub(crate) tunnel: bool,
    pub(crate) esn: bool,
    pub(crate) max_replay_window: u32,
    pub(crate) cpus: u32,
}

/// A peer as a node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) address: String,
    pub(crate) pod_cidrs: Vec<String>,
    pub(crate) effective_mode: String,
    pub(crate) path: String,
    pub(crate) accepts_clear: bool,
    pub(crate) enforced: bool,
    pub(crate) ike: String,
    pub(crate) suite: String,
    pub(crate) protocol: String,
    pub(crate) encapsulation: String,
    pub(crate) encrypted: bool,
    pub(crate) authenticated: bool,
    pub(crate) spi_in: u32,
    pub(crate) spi_out: u32,
    pub(crate) sas: u32,
    pub(crate) cpus: u32,
    pub(crate) age_s: u64,
    pub(crate) packets_in: u64,
    pub(crate) packets_out: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) drops: u64,
    pub(crate) handshake_us: Option<u64>,
    pub(crate) problem: String,
}

impl Peer {
    /// What is sent to it is encrypted, or nothing is before the first packet has asked for SAs.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.path.as_str(), "Encrypted" | "OnDemand")
    }
}

impl From<StatusReply> for Node {
    fn from(status: StatusReply) -> Self {
        Self {
            node: status.node,
            version: status.version,
            dataplane: status.dataplane,
            dataplane_version: status.dataplane_version,
            mode: status.mode,
            ready: status.ready,
            problems: status.problems,
            peers: status.peers.into_iter().map(Peer::from).collect(),
            leases: status.leases,
            uptime_s: status.uptime_s,
            pid: status.pid,
            pod_cidrs: status.pod_cidrs,
            cluster_cidrs: status.cluster_cidrs,
            underlay: status.underlay,
            mtu: status.mtu,
            drops: status.drops.into_iter().collect(),
            protocol: status.protocol,
            overlay: status.overlay,
            can: status.can.map(Can::from),
            notes: status.notes,
        }
    }
}

impl From<Capabilities> for Can {
    fn from(can: Capabilities) -> Self {
        Self {
            suites: can.suites,
            raw: can.raw,
            udp: can.udp,
            tunnel: can.tunnel,
            esn: can.esn,
            max_replay_window: can.max_replay_window,
            cpus: can.cpus,
        }
    }
}

impl From<PeerStatus> for Peer {
    fn from(peer: PeerStatus) -> Self {
        Self {
            name: peer.name,
            kind: peer.kind,
            address: peer.address,
            pod_cidrs: peer.pod_cidrs,
            effective_mode: peer.effective_mode,
            path: peer.path,
            accepts_clear: peer.accepts_clear,
            enforced: peer.enforced,
            ike: peer.ike,
            suite: peer.suite,
            protocol: peer.protocol,
            encapsulation: peer.encapsulation,
            encrypted: peer.encrypted,
            authenticated: peer.authenticated,
            spi_in: peer.spi_in,
            spi_out: peer.spi_out,
            sas: peer.sas,
            cpus: peer.cpus,
            age_s: peer.age_s,
            packets_in: peer.packets_in,
            packets_out: peer.packets_out,
            bytes_in: peer.bytes_in,
            bytes_out: peer.bytes_out,
            drops: peer.drops,
            handshake_us: peer.handshake_us,
            problem: peer.problem,
        }
    }
}
