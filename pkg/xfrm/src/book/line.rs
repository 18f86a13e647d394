use std::collections::BTreeMap;
use std::net::IpAddr;

use espalier_dataplane_core::{Overlay, Peer, PeerId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::reqid::PEERS;

const VERSION: u32 = 1;

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// By reqid.
    pub peers: BTreeMap<u32, Peer>,
    /// Lines that could not be read.
    pub skipped: usize,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    instance: String,
}

/// One change.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Put(Box<Stored>),
    Remove(String),
}

#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    reqid: u32,
    id: String,
    local: IpAddr,
    remote: IpAddr,
    pod_cidrs: Vec<IpNet>,
    own_cidrs: Vec<IpNet>,
    overlay: StoredOverlay,
    local_mac: [u8; 6],
    remote_mac: [u8; 6],
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredOverlay {
    Vxlan { vni: u32, port: u16 },
    Ipip,
    Native,
}

impl Line {
    pub(super) fn put(reqid: u32, peer: &Peer) -> Self {
        Self::Put(Box::new(Stored {
            reqid,
            id: peer.id.0.clone(),
            local: peer.local,
            remote: peer.remote,
            pod_cidrs: peer.pod_cidrs.clone(),
            own_cidrs: peer.own_cidrs.clone(),
            overlay: match peer.overlay {
                Overlay::Vxlan { vni, port } => StoredOverlay::Vxlan { vni, port },
                Overlay::Ipip => StoredOverlay::Ipip,
                Overlay::Native => StoredOverlay::Native,
            },
            local_mac: peer.local_mac,
            remote_mac: peer.remote_mac,
        }))
    }

    pub(super) fn to_text(&self) -> String {
        text(self)
    }
}

impl From<Stored> for Peer {
    fn from(stored: Stored) -> Self {
        Self {
            id: PeerId(stored.id),
            local: stored.local,
            remote: stored.remote,
            pod_cidrs: stored.pod_cidrs,
            own_cidrs: stored.own_cidrs,
            overlay: match stored.overlay {
                StoredOverlay::Vxlan { vni, port } => Overlay::Vxlan { vni, port },
                StoredOverlay::Ipip => Overlay::Ipip,
                StoredOverlay::Native => Overlay::Native,
            },
            local_mac: stored.local_mac,
            remote_mac: stored.remote_mac,
        }
    }
}

pub(super) fn header(instance: u64) -> String {
    text(&Header {
        version: VERSION,
        instance: format!("{instance:016x}"),
    })
}

/// Numbers, strings and lists always have a JSON form.
fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

/// Reads the file's bytes; nothing of a file of another kernel (`instance`) or version.
pub fn parse(bytes: &[u8], instance: u64) -> Contents {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let ours = serde_json::from_slice(first).is_ok_and(|header: Header| {
        header.version == VERSION && header.instance == format!("{instance:016x}")
    });
    let mut contents = Contents::default();
    if !ours {
        return contents;
    }
    for line in lines.filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Line::Put(stored)) if PEERS.contains(&stored.reqid) => {
                let reqid = stored.reqid;
                contents.put(reqid, (*stored).into());
            }
            Ok(Line::Remove(id)) => contents.peers.retain(|_, peer| peer.id.0 != id),
            _ => contents.skipped += 1,
        }
    }
    contents
}

impl Contents {
    /// One reqid for each peer and one peer for each reqid, the later line wins.
    fn put(&mut self, reqid: u32, peer: Peer) {
        if self.peers.get(&reqid).is_none_or(|old| old.id != peer.id) {
            self.peers.retain(|_, old| old.id != peer.id);
        }
        self.peers.insert(reqid, peer);
    }
}
