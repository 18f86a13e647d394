//! What nodes claim, by name, address and pod CIDR: whether one more can stand beside thousands is asked of these, not of each
//! node.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use espalier_peers::NodeSpec;
use ipnet::IpNet;

/// Nodes that do not conflict, each with its file.
#[derive(Debug, Default)]
pub(crate) struct Claims<'a> {
    nodes: Vec<(&'a String, &'a NodeSpec)>,
    /// Each says which of `nodes`.
    names: HashMap<&'a str, usize>,
    addresses: HashMap<IpAddr, usize>,
    /// None overlaps another one, but of the same node.
    cidrs: BTreeMap<IpAddr, (IpNet, usize)>,
}

impl<'a> Claims<'a> {
    /// Takes a node.
    ///
    /// # Errors
    /// Whose claim is in its way: the node is left out.
    pub(crate) fn take(&mut self, file: &'a String, node: &'a NodeSpec) -> Result<(), String> {
        if let Some((what, other)) = self.clash(node) {
            let holder = self.nodes.get(other);
            return Err(holder.map_or(what.clone(), |(file, other)| {
                format!(
                    "{what} (Node {} in {file}); this one is left out",
                    other.name
                )
            }));
        }
        let index = self.nodes.len();
        self.nodes.push((file, node));
        self.names.insert(&node.name, index);
        for address in &node.addresses {
            self.addresses.insert(*address, index);
        }
        for cidr in &node.pod_cidrs {
            self.claim(*cidr, index);
        }
        Ok(())
    }

    /// All that were taken, by name.
    pub(crate) fn into_nodes(self) -> Vec<NodeSpec> {
        let mut nodes: Vec<NodeSpec> = self
            .nodes
            .into_iter()
            .map(|(_, node)| node.clone())
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    fn clash(&self, node: &NodeSpec) -> Option<(String, usize)> {
        if let Some(other) = self.names.get(node.name.as_str()) {
            let what = "metadata.name: there is another node of the same name";
            return Some((what.to_owned(), *other));
        }
        let mut addresses = node.addresses.iter();
        let taken = |address: &IpAddr| Some((*address, *self.addresses.get(address)?));
        if let Some((address, other)) = addresses.find_map(taken) {
            return Some((
                format!("status.addresses: {address} is another node's"),
                other,
            ));
        }
        let mut cidrs = node.pod_cidrs.iter();
        let (cidr, (taken, other)) =
            cidrs.find_map(|cidr| Some((cidr, self.overlapping(*cidr)?)))?;
        let what = format!("spec.podCIDRs: {cidr} overlaps {taken} of another node");
        Some((what, other))
    }

    /// Of two CIDRs that overlap one contains the other: it begins at or before it. Since those here do not overlap, only the
    /// next one before and the next one behind can.
    fn overlapping(&self, cidr: IpNet) -> Option<(IpNet, usize)> {
        let first = cidr.network();
        let before = self.cidrs.range(..=first).next_back();
        let behind = self.cidrs.range(first..).next();
        let mut both = before.into_iter().chain(behind).map(|(_, found)| *found);
        both.find(|(other, _)| other.contains(&cidr) || cidr.contains(other))
    }

    /// A node's own may overlap: of these the largest counts.
    fn claim(&mut self, cidr: IpNet, index: usize) {
        if let Some((own, _)) = self.overlapping(cidr) {
            if own.contains(&cidr) {
                return;
            }
            self.cidrs.retain(|_, (other, _)| !cidr.contains(&*other));
        }
        self.cidrs.insert(cidr.network(), (cidr, index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, address: &str, cidrs: &[&str]) -> NodeSpec {
        NodeSpec {
            name: name.to_owned(),
            uid: None,
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        }
    }

    fn refusal(nodes: &[NodeSpec]) -> Option<String> {
        let file = "nodes.yaml".to_owned();
        let mut claims = Claims::default();
        let taken: Result<Vec<()>, String> =
            nodes.iter().map(|node| claims.take(&file, node)).collect();
        taken.err()
    }

    #[test]
    fn overlaps_are_found_on_either_side_and_neighbours_are_none() {
        let with = |cidr: &str| {
            refusal(&[
                node("a", "192.0.2.1", &["10.0.1.0/24"]),
                node("b", "192.0.2.2", &["10.0.3.0/24"]),
                node("c", "192.0.2.3", &[cidr]),
            ])
        };
        for fine in ["10.0.2.0/24", "10.0.0.0/24", "10.0.4.0/22", "fd00::/64"] {
            assert_eq!(with(fine), None, "{fine}");
        }
        for bad in ["10.0.1.0/24", "10.0.1.128/25", "10.0.0.0/16", "10.0.2.0/23"] {
            assert!(with(bad).unwrap().contains("overlaps"), "{bad}");
        }
    }

    #[test]
    fn a_node_may_have_a_smaller_one_inside_its_own() {
        for own in [
            ["10.0.0.0/16", "10.0.1.0/24"],
            ["10.0.1.0/24", "10.0.0.0/16"],
        ] {
            let other = node("b", "192.0.2.2", &["10.0.9.0/24"]);
            let said = refusal(&[node("a", "192.0.2.1", &own), other]).unwrap();
            assert!(said.contains("Node a in nodes.yaml"), "{said}");
        }
    }
}
