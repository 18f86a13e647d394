//! What native routing with the userspace data plane refuses. Pods' packets come in by the underlay as they are, or out of the TUN
//! when they were opened. Policies cannot tell the one from the other; rules of nf_tables can. Where a kernel has none, routing rules
//! do it for what is forwarded.

use std::os::fd::OwnedFd;

use espalier_netlink::{GUARD_TABLE, Guard, Socket};
use ipnet::IpNet;
use tracing::info;

use crate::{
    Desired, Engine, Error, Framing,
    nftables::{self, Nftables},
    plan::{self, Owners},
    policies::pairs_of,
};

/// The guard's rules in the kernel.
#[derive(Debug)]
pub(crate) struct Guarding {
    tables: Nftables,
}

/// The TUN out of which alone pods' packets come, where that is so.
pub(crate) fn only_way_in(desired: &Desired) -> Option<&str> {
    match &desired.engine {
        Engine::Tun(device) if desired.framing == Framing::Native => Some(device),
        _ => None,
    }
}

/// The guard that should be there.
pub(crate) fn wanted(desired: &Desired) -> Option<Guard> {
    let device = only_way_in(desired).filter(|_| desired.deny_clear)?;
    Some(Guard {
        refused: pairs_of(&desired.cluster_cidrs, &desired.pod_cidrs).collect(),
        device: device.to_owned(),
        own: desired.pod_cidrs.iter().map(IpNet::trunc).collect(),
        accepted: accepted(desired, &plan::owners(desired)),
    })
}

/// Of peers that may send clear packets, neighbours joined: few rules, however many peers there are.
fn accepted(desired: &Desired, owners: &Owners<'_>) -> Vec<IpNet> {
    let same_family = |remote: std::net::IpAddr| remote.is_ipv4() == desired.local.is_ipv4();
    let accepting = desired
        .peers
        .iter()
        .filter(|(_, peer)| peer.accept_clear && same_family(peer.remote));
    let pods: Vec<IpNet> = accepting
        .flat_map(|(name, _)| owners.pods_of(name))
        .copied()
        .collect();
    IpNet::aggregate(&pods)
}

impl Guarding {
    pub(crate) fn new(netns: Option<OwnedFd>) -> Self {
        Self {
            tables: Nftables::new(netns),
        }
    }

    pub(crate) fn writes(&self) -> usize {
        self.tables.writes()
    }

    /// Puts the rules there, all in one transaction. False: this kernel has no nf_tables.
    pub(crate) fn put(&mut self, guard: &Guard) -> Result<bool, Error> {
        match self.tables.counted(|socket| socket.put_guard(guard)) {
            Ok(written) => {
                if written {
                    info!(accepted = guard.accepted.len(), "guard brought in line");
                }
                Ok(true)
            }
            Err(e) if nftables::lacks(&e) => Ok(false),
            Err(source) => Err(Error::CannotGuard { source }),
        }
    }

    /// True: there was one.
    pub(crate) fn remove(&mut self) -> Result<bool, Error> {
        let removed = self.tables.counted(Socket::remove_guard);
        Ok(nftables::none_is_fine(removed)?)
    }

    /// Whose clear packets a guard lets in that is there in full.
    pub(crate) fn accepts(&mut self) -> Result<Option<Vec<IpNet>>, Error> {
        let found = self.tables.counted(Socket::guard_accepts);
        Ok(nftables::none_is_fine(found)?)
    }
}

/// Where routing rules stand in for it.
pub(crate) fn note() -> String {
    "overlay None: this kernel has no nf_tables; clear packets from pod addresses are refused on their way to pods, and not where \
     they are for this node's own address among its pods (modprobe nf_tables, or overlay VXLAN or IPIP)"
        .to_owned()
}

/// What is removed, in words.
pub(crate) fn in_words() -> String {
    format!("nf_tables table inet {GUARD_TABLE}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt as _;

    use super::*;
    use crate::RoutePath;

    fn native() -> Desired {
        let peer = |cidr: &str| crate::plan::tests::peer(cidr, RoutePath::Encrypted);
        let mut desired = crate::plan::tests::desired(&[
            ("b", peer("10.244.2.0/24")),
            ("c", peer("10.244.3.0/24")),
            ("d", peer("10.244.5.0/24")),
        ]);
        desired.framing = Framing::Native;
        desired.engine = Engine::Tun("espalier.tun".to_owned());
        desired.deny_clear = true;
        desired
    }

    #[test]
    fn clear_packets_of_neighbours_are_accepted_by_one_rule() {
        let mut desired = native();
        assert_eq!(wanted(&desired).unwrap().accepted, []);
        for name in ["b", "c"] {
            desired.peers.get_mut(name).unwrap().accept_clear = true;
        }
        let guard = wanted(&desired).unwrap();
        assert_eq!(guard.accepted, ["10.244.2.0/23".parse().unwrap()]);
        let refused = (
            "10.244.0.0/16".parse().unwrap(),
            "10.244.1.0/24".parse().unwrap(),
        );
        assert_eq!(guard.refused, [refused]);
    }

    /// On a node of which everything but the guard is there; no namespace is `not_a_namespace`.
    fn with_guard_in(not_a_namespace: std::fs::File) -> crate::Overlay {
        for args in [
            "link add eth0 type veth peer name port",
            "addr add 192.0.2.1/24 dev eth0",
            "link set eth0 up",
            "link set port up",
            "tuntap add espalier.tun mode tun",
        ] {
            ip(args);
        }
        let mut overlay = crate::Overlay::open().unwrap();
        overlay.guard = Guarding::new(Some(not_a_namespace.into()));
        overlay
    }

    /// Two encrypted peers, and one that is clear.
    fn mixed() -> Desired {
        let mut desired = native();
        let peer = desired.peers.get_mut("d").unwrap();
        (peer.path, peer.accept_clear) = (RoutePath::Clear, true);
        desired
    }

    /// Nothing is encrypted, policies refuse what comes in, and clear pairs go on.
    #[test]
    fn s2_where_the_guard_is_refused_policies_close_what_it_would_have_let_in() {
        let name =
            "guard::tests::s2_where_the_guard_is_refused_policies_close_what_it_would_have_let_in";
        espalier_testnet::isolated(name, || {
            let (mut options, desired) = (std::fs::OpenOptions::new(), mixed());
            // EBADF.
            let path_alone = options.read(true).custom_flags(0o10_000_000).open("/");
            let mut overlay = with_guard_in(path_alone.unwrap());
            for _ in 0..2 {
                let error = overlay.apply(&desired).unwrap_err().to_string();
                assert!(error.contains("modprobe nf_tables"), "{error}");
            }
            let policies = ip("xfrm policy");
            assert!(policies.contains(BLOCK), "{policies}");
            let routes = ip("route");
            let clear = "10.244.5.0/24 via 192.0.2.2 dev eth0";
            assert!(routes.contains(clear), "{routes}");
            assert!(!routes.contains("dev espalier.tun proto"), "{routes}");

            overlay.guard = Guarding::new(None);
            overlay.apply(&desired).unwrap();
            assert!(ip("route").contains("10.244.2.0/24 dev espalier.tun proto"));
            assert!(!ip("xfrm policy").contains(BLOCK));
        });
    }

    #[test]
    fn s2_without_nf_tables_routing_rules_stand_in() {
        let name = "guard::tests::s2_without_nf_tables_routing_rules_stand_in";
        espalier_testnet::isolated(name, || {
            // EINVAL.
            let nothing = std::fs::File::open("/dev/null").unwrap();
            let (mut overlay, mut desired) = (with_guard_in(nothing), mixed());
            let done = overlay.apply(&desired).unwrap();
            assert!(done.note.unwrap().contains("no nf_tables"));
            assert_eq!(overlay.apply(&desired).unwrap().writes, 0);
            let accepted =
                |from| format!("49:\tfrom {from} to 10.244.1.0/24 iif eth0 lookup main proto 229");
            let refused = "50:\tfrom 10.244.0.0/16 to 10.244.1.0/24 iif eth0 blackhole proto 229";
            let rules = ip("rule");
            assert!(rules.contains(&accepted("10.244.5.0/24")), "{rules}");
            assert!(rules.contains(refused), "{rules}");
            assert!(ip("route").contains("10.244.2.0/24 dev espalier.tun proto"));
            let found = overlay.observe(&desired.cluster_cidrs).unwrap();
            assert!(found.base_block);
            assert_eq!(found.accepting_pods, ["10.244.5.0/24".parse().unwrap()]);

            for (name, clear) in [("c", true), ("d", false)] {
                desired.peers.get_mut(name).unwrap().accept_clear = clear;
                overlay.apply_changes(&desired).unwrap();
                assert_eq!(overlay.apply(&desired).unwrap().writes, 0, "{name}");
            }
            let rules = ip("rule");
            assert!(rules.contains(&accepted("10.244.3.0/24")), "{rules}");
            assert!(!rules.contains(&accepted("10.244.5.0/24")), "{rules}");
            overlay.guard = Guarding::new(None);
            assert!(overlay.apply(&desired).unwrap().note.is_none());
            assert!(!ip("rule").contains(refused));
        });
    }

    const BLOCK: &str = "src 10.244.0.0/16 dst 10.244.1.0/24 \n\tdir fwd action block";

    fn ip(args: &str) -> String {
        let mut command = std::process::Command::new("ip");
        let done = command.args(args.split(' ')).output().unwrap();
        assert!(done.status.success(), "{args}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    #[test]
    fn others_have_policies_for_it() {
        let (mut open, mut vxlan, mut kernel) = (native(), native(), native());
        open.deny_clear = false;
        vxlan.framing = Framing::Vxlan;
        kernel.engine = Engine::Kernel;
        for desired in [open, vxlan, kernel] {
            assert_eq!(wanted(&desired), None, "{desired:?}");
        }
    }
}
