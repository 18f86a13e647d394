//! Pods that outlived their Node: it was deleted and made anew with other pod CIDRs, and they kept their addresses, which other nodes
//! now look for elsewhere or nowhere.

use std::sync::Arc;
use std::time::Duration;

use espalier_ipam::Lease;
use ipnet::IpNet;
use tokio::sync::watch;

use super::Pods;
use crate::news;

/// How often leases are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Pods that are named; more are counted.
const NAMED: usize = 5;

impl Pods {
    /// Complains of them for as long as they are there, until the agent ends.
    pub(crate) async fn complain_of_strays(
        self: Arc<Self>,
        complaints: watch::Sender<Vec<String>>,
    ) {
        let mut facts = self.facts.clone();
        loop {
            let found: Vec<String> = self.stray_pods().into_iter().collect();
            news::tell(&complaints, found);
            if let Ok(Err(_)) = tokio::time::timeout(LOOK, facts.changed()).await {
                return;
            }
        }
    }

    fn stray_pods(&self) -> Option<String> {
        let open = self.lock();
        let (cidrs, store) = open.as_ref()?;
        complaint(cidrs, store.leases())
    }
}

/// Names the pods with an address outside of `cidrs`, with the remedy.
fn complaint<'a>(cidrs: &[IpNet], leases: impl Iterator<Item = &'a Lease>) -> Option<String> {
    let mut strays: Vec<(String, String)> = leases
        .filter_map(|lease| {
            let outside = |leased: &&espalier_ipam::LeasedAddress| {
                !cidrs.iter().any(|cidr| cidr.contains(&leased.address))
            };
            let address = lease.addresses.iter().find(outside)?.address;
            let owner = &lease.owner;
            let name = match owner.pod_name.as_str() {
                "" => format!("the container {}", lease.key),
                pod => format!("{}/{pod}", owner.pod_namespace),
            };
            let delete = match owner.pod_name.as_str() {
                "" => format!("the container {}", lease.key),
                pod => format!(
                    "kubectl delete pod --namespace {} {pod}",
                    owner.pod_namespace
                ),
            };
            Some((format!("{name} ({address})"), delete))
        })
        .collect();
    strays.sort();
    let (_, remedy) = strays.first()?;
    let named: Vec<&str> = strays
        .iter()
        .take(NAMED)
        .map(|(name, _)| name.as_str())
        .collect();
    let more = match strays.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let now: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
    Some(format!(
        "pods have addresses that are not this node's any more, whose pod CIDRs are now {}: {}{more}; its Node was made anew, and other nodes do not reach these pods: delete them, so that they are made anew, as in `{remedy}`",
        now.join(", "),
        named.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use espalier_ipam::{Key, Owner, Store};

    use super::*;

    #[test]
    fn pods_of_the_node_before_are_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leases");
        let (old, new): (IpNet, IpNet) = (
            "10.244.1.0/24".parse().unwrap(),
            "10.244.5.0/24".parse().unwrap(),
        );
        let mut store = Store::open(&path, &[old], Duration::ZERO).unwrap();
        for name in ["web-2", "web-1"] {
            let owner = Owner {
                pod_namespace: "shop".into(),
                pod_name: name.into(),
                ..Owner::default()
            };
            store
                .allocate(&Key::new(name, "eth0"), owner, SystemTime::now())
                .unwrap();
        }
        assert_eq!(complaint(&[old], store.leases()), None);
        drop(store);
        // The Node was made anew; the leases are still there.
        let mut store = Store::open(&path, &[new], Duration::ZERO).unwrap();
        let said = complaint(&[new], store.leases()).unwrap();
        for words in [
            "10.244.5.0/24",
            "shop/web-1 (10.244.1.",
            "shop/web-2",
            "kubectl delete pod --namespace shop web-1",
        ] {
            assert!(said.contains(words), "{said}");
        }
        for name in ["web-1", "web-2"] {
            store
                .release(&Key::new(name, "eth0"), SystemTime::now())
                .unwrap();
        }
        assert_eq!(complaint(&[new], store.leases()), None);
    }
}
