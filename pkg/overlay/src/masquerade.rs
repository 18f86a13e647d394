//! What pods send out of the cluster has the node's address: nobody out there has a route to pods. Answers then come to the node as
//! what they are, host traffic, and connection tracking gives them back to the pod.

use std::os::fd::OwnedFd;

use espalier_netlink::{Error, Masquerade, Socket};
use ipnet::IpNet;
use tracing::{info, warn};

use crate::{
    Desired, Engine, Framing, PROBE_PORT, devices,
    nftables::{self, Nftables},
    plan,
};

/// IPv4 and IPv6 in IP.
const IN_IP: [u8; 2] = [4, 41];

/// The rules in the kernel. Where it has no nf_tables there are none, and pods are as well off as without them.
#[derive(Debug)]
pub(crate) struct Nat {
    tables: Nftables,
    /// What was last said about it.
    note: Option<String>,
}

impl Nat {
    pub(crate) fn new(netns: Option<OwnedFd>) -> Self {
        Self {
            tables: Nftables::new(netns),
            note: None,
        }
    }

    pub(crate) fn writes(&self) -> usize {
        self.tables.writes()
    }

    /// Brings the rules in line. It fails no apply, since nothing that is secret or closed depends on it: what is wrong is given
    /// in words.
    pub(crate) fn settle(&mut self, desired: &Desired) -> Option<String> {
        let rules = wanted(desired);
        let done = match &rules {
            Some(rules) => self.tables.counted(|socket| socket.put_masquerade(rules)),
            None => self.remove(),
        };
        let note = match done {
            Ok(true) => {
                info!(on = rules.is_some(), "masquerade: rules brought in line");
                None
            }
            Ok(false) => None,
            Err(e) if nftables::lacks(&e) => rules.map(|_| {
                "masquerade: this kernel has no nf_tables with NAT; pods reach addresses outside of the cluster only if packets \
                 for pods are routed back to this node (modprobe nft_masq, or policy masquerade: Never)"
                    .to_owned()
            }),
            Err(e) if rules.is_none() => Some(format!(
                "masquerade: {e}; pods may still have the node's address outside of the cluster. Trying again"
            )),
            Err(e) => Some(format!(
                "masquerade: {e}; pods may not reach addresses outside of the cluster. Trying again"
            )),
        };
        if let Some(note) = note
            .as_ref()
            .filter(|note| self.note.as_ref() != Some(note))
        {
            warn!("{note}");
        }
        self.note.clone_from(&note);
        note
    }

    /// True: there was something.
    pub(crate) fn remove(&mut self) -> Result<bool, Error> {
        nftables::none_is_fine(self.tables.counted(Socket::remove_masquerade))
    }
}

/// The mesh's own packets are left alone, and so is what a pod makes look like them: with the node's address the policies between
/// hosts would seal it, and the peer would take it for the node's.
fn wanted(desired: &Desired) -> Option<Masquerade> {
    if !desired.masquerade || desired.pod_cidrs.is_empty() {
        return None;
    }
    let mut devices: Vec<String> = devices::OURS.map(|(_, name, _)| name.to_owned()).into();
    if let Engine::Tun(name) = &desired.engine {
        devices.push(name.clone());
    }
    let (vxlan, in_ip) = match desired.framing {
        Framing::Vxlan => (Some(desired.vtep.port), &[][..]),
        Framing::Ipip => (None, &IN_IP[..]),
        Framing::Native => (None, &[][..]),
    };
    Some(Masquerade {
        sources: desired.pod_cidrs.iter().map(IpNet::trunc).collect(),
        excluded: excluded(desired),
        devices,
        udp_ports: vxlan.into_iter().chain([PROBE_PORT]).collect(),
        protocols: in_ip.to_vec(),
    })
}

/// All that pods speak with as pods: the cluster, pods outside of its networks, and what is behind external gateways.
fn excluded(desired: &Desired) -> Vec<IpNet> {
    let cluster = plan::refusals(desired).into_iter().map(|route| route.to);
    let own = desired.pod_cidrs.iter();
    let behind = desired.externals.values();
    let behind = behind.flat_map(|external| &external.remote_cidrs);
    let all = cluster.chain(own.chain(behind).map(IpNet::trunc)).collect();
    IpNet::aggregate(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired() -> Desired {
        let net = |text: &str| text.parse().unwrap();
        let external = crate::ExternalRoute {
            remote_cidrs: vec![net("192.168.7.0/24")],
            tunnel: None,
        };
        Desired {
            masquerade: true,
            pod_cidrs: vec![net("10.244.1.0/24"), net("10.9.1.0/24")],
            externals: [("berlin".to_owned(), external)].into(),
            ..plan::tests::desired(&[])
        }
    }

    #[test]
    fn pods_and_external_networks_keep_pods_addresses() {
        let rules = wanted(&desired()).unwrap();
        let excluded: Vec<_> = rules.excluded.iter().map(ToString::to_string).collect();
        assert_eq!(excluded, ["10.9.1.0/24", "10.244.0.0/16", "192.168.7.0/24"]);
        assert_eq!(rules.sources.len(), 2);
    }

    #[test]
    fn what_looks_like_the_mesh_is_left_alone() {
        let mut desired = desired();
        desired.engine = Engine::Tun("espalier.tun".to_owned());
        let rules = wanted(&desired).unwrap();
        assert_eq!(rules.udp_ports, [4789, PROBE_PORT]);
        assert!(rules.devices.contains(&"espalier.tun".to_owned()));
        desired.framing = Framing::Ipip;
        assert_eq!(wanted(&desired).unwrap().protocols, IN_IP);
    }

    #[test]
    fn without_pods_or_when_not_asked_for_there_is_nothing() {
        let (mut never, mut none) = (desired(), desired());
        never.masquerade = false;
        none.pod_cidrs.clear();
        assert_eq!((wanted(&never), wanted(&none)), (None, None));
    }
}
