//! `ExternalPeer`: a gateway that is not ours, reached site to site by tunnel mode SAs.

#![allow(
    clippy::duplicated_attributes,
    reason = "print columns are of the same types"
)]
#![allow(unreachable_pub, reason = "KubeSchema copies a struct into a function")]

use std::net::IpAddr;

use espalier_peers::NodeSpec;
use ipnet::IpNet;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::manifest::{is_dns_name, read_cidrs};
use crate::snapshot::Policy;

/// An IPsec gateway outside of the mesh (strongSwan, Libreswan or another IKEv2 implementation). Nodes encrypt what their pods
/// send to its networks, in tunnel mode, each for its own pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema, CustomResource)]
#[kube(
    group = "espalier.dev",
    version = "v1alpha1",
    kind = "ExternalPeer",
    shortname = "extpeer",
    category = "espalier",
    doc = "An IPsec gateway outside of the mesh, reached site to site by tunnel mode SAs.",
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.gateway"),
    printcolumn(name = "Identity", type_ = "string", json_path = ".spec.identity"),
    printcolumn(name = "Auth", type_ = "string", json_path = ".spec.auth"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[x_kube(validation = Rule::new("self.remoteCIDRs.all(c, c != (self.gateway.contains(':') ? '::/0' : '0.0.0.0/0'))").message("remoteCIDRs may not hold the gateway itself: choose ranges without it"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalPeerSpec {
    /// Address of the gateway, such as 203.0.113.7.
    #[schemars(length(max = 45), regex(pattern = "^[0-9A-Fa-f:.]+$"))]
    #[x_kube(validation = Rule::new("!self.startsWith('127.') && self != '::1' && self != '::' && self != '0.0.0.0'").message("expected the address of another host"))]
    pub gateway: String,
    /// Its IKE identity, a name (ID_FQDN) such as gw.berlin.example. With certificates one of its DNS names.
    #[schemars(
        length(max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub identity: String,
    /// How it and this cluster's nodes prove who they are to each other. PSK: the key is in `<name of this object>.psk`.
    #[serde(default)]
    pub auth: ExternalAuth,
    /// Networks behind the gateway, such as 192.168.0.0/16.
    #[serde(rename = "remoteCIDRs")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 43), regex(pattern = "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"))
    )]
    #[x_kube(validation = Rule::new("self.all(c, self.exists_one(d, c == d))").message("name each network once"))]
    pub remote_cidrs: Vec<String>,
    /// Names of the nodes that have a tunnel with it; none: all. Pods of other nodes do not reach its networks.
    #[serde(default)]
    #[schemars(inner(length(max = 253)))]
    pub nodes: Vec<String>,
}

/// How a gateway is authenticated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExternalAuth {
    /// A key that both sides have.
    #[default]
    #[serde(rename = "PSK")]
    Psk,
    /// Certificates of an authority that both sides trust.
    Certificate,
}

/// A usable [`ExternalPeerSpec`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalGateway {
    /// metadata.name.
    pub name: String,
    /// Where it is.
    pub gateway: IpAddr,
    /// ID_FQDN.
    pub identity: String,
    /// How it is authenticated.
    pub auth: ExternalAuth,
    /// Networks behind it, none of which overlap.
    pub remote_cidrs: Vec<IpNet>,
    /// Nodes with a tunnel; empty: all.
    pub nodes: Vec<String>,
}

impl ExternalGateway {
    /// Whether the node of this name has a tunnel with it.
    #[must_use]
    pub fn concerns(&self, node: &str) -> bool {
        self.nodes.is_empty() || self.nodes.iter().any(|name| name == node)
    }

    /// What is wrong beside this policy, these nodes and these other gateways, which are in force: field, found, remedy.
    pub(crate) fn conflict(
        &self,
        policy: &Policy,
        nodes: &[NodeSpec],
        others: &[(&String, &Self)],
    ) -> Option<String> {
        let clusters = &policy.cluster_cidrs;
        let inside = |cidr: &&IpNet| clusters.iter().any(|cluster| overlap(cluster, cidr));
        if let Some(cidr) = self.remote_cidrs.iter().find(inside) {
            return Some(format!(
                "spec.remoteCIDRs: {cidr} overlaps the policy's clusterCIDRs; pods are reached by the mesh"
            ));
        }
        let clash = nodes.iter().find_map(|node| self.clash_with_node(node));
        clash.or_else(|| self.conflict_with(others))
    }

    /// What of its networks can be closed without harm to the mesh, when it is not in force itself.
    #[must_use]
    pub fn apart_from(&self, clusters: &[IpNet], nodes: &[NodeSpec]) -> Vec<IpNet> {
        let in_mesh = |cidr: &&IpNet| {
            let mut addresses = nodes.iter().flat_map(|node| &node.addresses);
            clusters.iter().any(|cluster| overlap(cluster, cidr))
                || addresses.any(|address| cidr.contains(address))
        };
        let all = self.remote_cidrs.iter();
        all.filter(|cidr| !in_mesh(cidr)).copied().collect()
    }

    /// IKE, the data plane and key files know peers by name; and what goes to nodes is host traffic.
    fn clash_with_node(&self, node: &NodeSpec) -> Option<String> {
        let name = &node.name;
        if self.name == *name {
            return Some(format!(
                "metadata.name: Node {name} has this name, and its PSK file, too; choose another"
            ));
        }
        if self.identity == *name {
            return Some(format!(
                "spec.identity: {name} is a Node's name; give the gateway an identity of its own"
            ));
        }
        if node.addresses.contains(&self.gateway) {
            return Some(format!(
                "spec.gateway: {} is an address of Node {name}; pods there are reached by the mesh",
                self.gateway
            ));
        }
        let holds = |cidr: &&IpNet| node.addresses.iter().any(|address| cidr.contains(address));
        let cidr = self.remote_cidrs.iter().find(holds)?;
        Some(format!(
            "spec.remoteCIDRs: {cidr} holds an address of Node {name}; choose ranges without nodes"
        ))
    }

    fn conflict_with(&self, others: &[(&String, &Self)]) -> Option<String> {
        others.iter().find_map(|(file, other)| {
            self.clash(other).map(|what| {
                let name = &other.name;
                format!("{what} (ExternalPeer {name} in {file}); this one is left out")
            })
        })
    }

    fn clash(&self, other: &Self) -> Option<String> {
        if self.name == other.name {
            return Some("metadata.name: there is another gateway of the same name".to_owned());
        }
        if self.gateway == other.gateway {
            return Some(format!("spec.gateway: {} is another one's", self.gateway));
        }
        if self.identity == other.identity {
            return Some(format!("spec.identity: {} is another one's", self.identity));
        }
        let theirs = |cidr: &&IpNet| other.remote_cidrs.iter().any(|other| overlap(other, cidr));
        let cidr = self.remote_cidrs.iter().find(theirs)?;
        Some(format!("spec.remoteCIDRs: {cidr} overlaps another one's"))
    }
}

/// Checks an object by itself.
///
/// # Errors
/// The field, what was expected and what was found.
pub(crate) fn read(peer: ExternalPeer) -> Result<ExternalGateway, String> {
    let name = peer.metadata.name.filter(|name| is_dns_name(name));
    let name = name.ok_or(
        "metadata.name: expected a DNS subdomain (lower case letters, digits, '-' and '.', at most 253)",
    )?;
    let spec = peer.spec;
    let gateway: IpAddr = spec.gateway.parse().map_err(|_| {
        let found = &spec.gateway;
        format!("spec.gateway: expected an IP address such as 203.0.113.7, found {found:?}")
    })?;
    if gateway.is_unspecified() || gateway.is_multicast() || gateway.is_loopback() {
        return Err(format!(
            "spec.gateway: expected the address of another host, found {gateway}"
        ));
    }
    if !is_dns_name(&spec.identity) {
        let found = &spec.identity;
        return Err(format!(
            "spec.identity: expected the name that the gateway gives in IKE (ID_FQDN), such as gw.berlin.example, found {found:?}"
        ));
    }
    Ok(ExternalGateway {
        name,
        gateway,
        identity: spec.identity,
        auth: spec.auth,
        remote_cidrs: remote_cidrs(&spec.remote_cidrs, gateway)?,
        nodes: spec.nodes,
    })
}

fn remote_cidrs(texts: &[String], gateway: IpAddr) -> Result<Vec<IpNet>, String> {
    const FIELD: &str = "spec.remoteCIDRs";
    let cidrs = read_cidrs(FIELD, texts)?;
    if cidrs.is_empty() {
        return Err(format!(
            "{FIELD}: expected the networks behind the gateway, as in [192.168.0.0/16], found none"
        ));
    }
    for (at, cidr) in cidrs.iter().enumerate() {
        // Its own packets would be routed into the tunnel that they are.
        if cidr.contains(&gateway) {
            return Err(format!(
                "{FIELD}[{at}]: {cidr} holds the gateway {gateway} itself; choose ranges without it"
            ));
        }
        let before = cidrs.iter().take(at);
        if let Some(other) = before.into_iter().find(|other| overlap(other, cidr)) {
            return Err(format!(
                "{FIELD}[{at}]: {cidr} overlaps {other}; remove one"
            ));
        }
    }
    Ok(cidrs)
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ExternalPeerSpec {
        ExternalPeerSpec {
            gateway: "203.0.113.7".into(),
            identity: "gw.berlin.example".into(),
            auth: ExternalAuth::Psk,
            remote_cidrs: vec!["192.168.0.0/16".into()],
            nodes: Vec::new(),
        }
    }

    fn read_with(change: impl FnOnce(&mut ExternalPeerSpec)) -> Result<ExternalGateway, String> {
        let mut spec = spec();
        change(&mut spec);
        read(ExternalPeer::new("berlin", spec))
    }

    #[test]
    fn a_good_one_is_read() {
        let good = read_with(|_| ()).unwrap();
        assert_eq!(
            (good.name.as_str(), good.auth),
            ("berlin", ExternalAuth::Psk)
        );
        assert!(good.concerns("any"));
        let one = read_with(|spec| spec.nodes = vec!["node-1".into()]).unwrap();
        assert!(one.concerns("node-1") && !one.concerns("node-2"));
    }

    #[test]
    fn a_bad_field_is_named() {
        let wrong = |change: fn(&mut ExternalPeerSpec)| read_with(change).unwrap_err();
        for (error, word) in [
            (wrong(|s| s.gateway = "gw".into()), "spec.gateway"),
            (wrong(|s| s.gateway = "127.0.0.1".into()), "spec.gateway"),
            (wrong(|s| s.identity = "C=DE, O=x".into()), "spec.identity"),
            (wrong(|s| s.remote_cidrs.clear()), "spec.remoteCIDRs"),
            (
                wrong(|s| s.remote_cidrs[0] = "203.0.0.0/8".into()),
                "spec.remoteCIDRs[0]",
            ),
            (
                wrong(|s| s.remote_cidrs.push("192.168.1.0/24".into())),
                "spec.remoteCIDRs[1]",
            ),
            (
                wrong(|s| s.remote_cidrs[0] = "203.0.113.0/24".into()),
                "holds the gateway",
            ),
        ] {
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn conflicts_with_the_policy_and_with_others_are_named() {
        let one = read_with(|_| ()).unwrap();
        let policy = Policy {
            cluster_cidrs: vec!["192.168.5.0/24".parse().unwrap()],
            ..Policy::default()
        };
        let conflict = one.conflict(&policy, &[], &[]).unwrap();
        assert!(conflict.contains("clusterCIDRs"), "{conflict}");
        let mut other = ExternalGateway {
            name: "paris".into(),
            identity: "gw.paris.example".into(),
            gateway: "203.0.113.8".parse().unwrap(),
            ..one.clone()
        };
        let file = "b.yaml".to_owned();
        let clash =
            |other: &ExternalGateway| one.conflict(&Policy::default(), &[], &[(&file, other)]);
        assert!(clash(&other).unwrap().contains("spec.remoteCIDRs"));
        other.remote_cidrs = vec!["172.16.0.0/12".parse().unwrap()];
        assert_eq!(clash(&other), None);
        other.gateway = one.gateway;
        assert!(clash(&other).unwrap().contains("spec.gateway"));
        other.gateway = "203.0.113.8".parse().unwrap();
        other.identity.clone_from(&one.identity);
        assert!(clash(&other).unwrap().contains("spec.identity"));
    }

    #[test]
    fn conflicts_with_nodes_are_named_and_their_networks_are_not_closed() {
        let one = read_with(|_| ()).unwrap();
        let node = |name: &str, address: &str| NodeSpec {
            name: name.to_owned(),
            uid: None,
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: Vec::new(),
        };
        let clash = |node| one.conflict(&Policy::default(), &[node], &[]);
        for (node, field) in [
            (node("berlin", "10.0.0.1"), "metadata.name"),
            (node("gw.berlin.example", "10.0.0.1"), "spec.identity"),
            (node("a", "203.0.113.7"), "spec.gateway"),
            (node("a", "192.168.0.1"), "spec.remoteCIDRs"),
        ] {
            let text = clash(node).unwrap();
            assert!(text.starts_with(field), "{text}");
        }
        assert_eq!(clash(node("a", "10.0.0.1")), None);
        let nodes = [node("a", "192.168.0.1")];
        assert_eq!(one.apart_from(&[], &nodes), []);
        assert_eq!(one.apart_from(&[], &[]), one.remote_cidrs);
    }
}
