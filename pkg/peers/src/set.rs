use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// What a Node object says that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// metadata.name: also its IKE identity.
    pub name: String,
    /// metadata.uid, when there is one.
    pub uid: Option<String>,
    /// status.addresses of type InternalIP, in order.
    pub addresses: Vec<IpAddr>,
    /// spec.podCIDRs.
    pub pod_cidrs: Vec<IpNet>,
}

impl NodeSpec {
    /// The address to reach this node at from `other`: the first one of the family of `other`'s first address.
    #[must_use]
    pub fn address_towards(&self, other: &Self) -> Option<IpAddr> {
        let family = other.addresses.first()?.is_ipv4();
        self.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == family)
    }
}

/// All nodes as one of them sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSet {
    /// The node itself; `None` until its Node object is there.
    pub own: Option<NodeSpec>,
    /// Every other node that can be a peer: it has an address of the own family and a pod CIDR.
    pub peers: BTreeMap<String, NodeSpec>,
}

/// One step from an older set to a newer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This peer is new.
    Added(NodeSpec),
    /// This peer is the same node with other addresses or pod CIDRs.
    Changed(NodeSpec),
    /// This peer is gone, or came back as another object of the same name (another UID): then `Added` follows.
    Removed(String),
}

impl PeerSet {
    /// The set that `own` sees among `nodes`.
    #[must_use]
    pub fn new(own: &str, nodes: &[NodeSpec]) -> Self {
        let Some(me) = nodes
            .iter()
            .find(|node| node.name == own)
            .filter(|node| !node.addresses.is_empty())
        else {
            return Self::default();
        };
        let reachable = |node: &&NodeSpec| {
            node.name != own && !node.pod_cidrs.is_empty() && node.address_towards(me).is_some()
        };
        let peers = nodes
            .iter()
            .filter(reachable)
            .map(|node| (node.name.clone(), node.clone()))
            .collect();
        Self {
            own: Some(me.clone()),
            peers,
        }
    }

    /// What leads from `old` to this set, removals first.
    #[must_use]
    pub fn changes_since(&self, old: &Self) -> Vec<Change> {
        let replaced = |name: &String, node: &NodeSpec| {
            self.peers
                .get(name)
                .is_none_or(|new| new.uid.is_some() && node.uid.is_some() && new.uid != node.uid)
        };
        let removed: Vec<&String> = old
            .peers
            .iter()
            .filter(|(name, node)| replaced(name, node))
            .map(|(n, _)| n)
            .collect();
        let mut changes: Vec<Change> = removed
            .iter()
            .map(|name| Change::Removed((*name).clone()))
            .collect();
        for (name, node) in &self.peers {
            match old.peers.get(name).filter(|_| !removed.contains(&name)) {
                None => changes.push(Change::Added(node.clone())),
                Some(before) if before != node => changes.push(Change::Changed(node.clone())),
                Some(_) => {}
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, uid: &str, address: &str, cidr: &str) -> NodeSpec {
        NodeSpec {
            name: name.into(),
            uid: (!uid.is_empty()).then(|| uid.into()),
            addresses: address
                .split(',')
                .filter(|a| !a.is_empty())
                .map(|a| a.parse().unwrap())
                .collect(),
            pod_cidrs: cidr
                .split(',')
                .filter(|c| !c.is_empty())
                .map(|c| c.parse().unwrap())
                .collect(),
        }
    }

    #[test]
    fn own_node_is_no_peer_and_unreachable_nodes_are_left_out() {
        let nodes = [
            node("a", "", "10.0.0.1", "10.244.1.0/24"),
            node("b", "", "10.0.0.2", "10.244.2.0/24"),
            node("no-address", "", "", "10.244.3.0/24"),
            node("no-cidr", "", "10.0.0.4", ""),
            node("other-family", "", "fd00::5", "10.244.5.0/24"),
        ];
        let set = PeerSet::new("a", &nodes);
        assert_eq!(set.peers.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(set.own.unwrap().name, "a");
        assert_eq!(PeerSet::new("absent", &nodes), PeerSet::default());
    }

    #[test]
    fn dual_stack_peers_are_reached_in_the_own_family() {
        let me = node("a", "", "fd00::1,10.0.0.1", "10.244.1.0/24");
        let peer = node("b", "", "10.0.0.2,fd00::2", "10.244.2.0/24");
        assert_eq!(peer.address_towards(&me).unwrap().to_string(), "fd00::2");
    }

    #[test]
    fn changes_are_minimal_and_a_new_uid_is_a_new_peer() {
        let me = node("a", "", "10.0.0.1", "10.244.1.0/24");
        let b = node("b", "1", "10.0.0.2", "10.244.2.0/24");
        let c = node("c", "1", "10.0.0.3", "10.244.3.0/24");
        let old = PeerSet::new("a", &[me.clone(), b.clone(), c.clone()]);
        assert_eq!(old.changes_since(&old), []);

        let moved = node("b", "1", "10.0.0.22", "10.244.2.0/24");
        let reborn = node("c", "2", "10.0.0.3", "10.244.3.0/24");
        let new = PeerSet::new("a", &[me, moved.clone(), reborn.clone()]);
        let expected = [
            Change::Removed("c".into()),
            Change::Changed(moved),
            Change::Added(reborn),
        ];
        assert_eq!(new.changes_since(&old), expected);
        let gone = PeerSet::default().changes_since(&old);
        assert_eq!(
            gone,
            [Change::Removed("b".into()), Change::Removed("c".into())]
        );
    }
}
