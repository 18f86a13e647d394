//! What native routing with the userspace data plane refuses. Pods' packets come in by the underlay as they are, or out of the TUN
//! when they were opened. Policies cannot tell the one from the other; rules of nf_tables can, and routing rules can for what is
//! forwarded: these stand in where a kernel has no nf_tables, and beside them as long as no clear packets are accepted, for the case
//! that somebody flushes them.

use std::os::fd::OwnedFd;

use espalier_netlink::{GUARD_TABLE, Guard, Link, Rule, Socket};
use ipnet::IpNet;
use tracing::{debug, info, warn};

use crate::{
    Desired, Engine, Error, Framing, devices,
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

/// The guard that should be there; `underlay` is the interface that has the node's address.
pub(crate) fn wanted(desired: &Desired, underlay: Option<&str>) -> Option<Guard> {
    let tun = only_way_in(desired).filter(|_| desired.deny_clear)?;
    // Devices of other framings are not there now. Should an agent that knows of no guard come and make them, what comes out of
    // them is its concern.
    let others = devices::OURS.iter();
    let others = others.filter(|(framing, ..)| *framing != Framing::Native);
    let others = others.map(|(_, name, _)| *name);
    Some(Guard {
        refused: pairs_of(&desired.cluster_cidrs, &desired.pod_cidrs).collect(),
        devices: [tun].into_iter().chain(others).map(str::to_owned).collect(),
        own: desired.pod_cidrs.iter().map(IpNet::trunc).collect(),
        accepted: accepted(desired, &plan::owners(desired)),
        underlay: underlay.map(str::to_owned),
    })
}

/// The routing rules that stand beside it, or, without `tables`, in its place.
pub(crate) fn rules(guard: &Guard, underlay: Option<&Link>, tables: bool) -> Vec<Rule> {
    // With nf_tables no packet of the host has to pass a rule for each accepted peer.
    match underlay.filter(|_| guard.accepted.is_empty() || !tables) {
        Some(underlay) => plan::guard_rules(guard, underlay),
        None => Vec::new(),
    }
}

/// Of peers that may send clear packets, neighbours joined.
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

    /// Puts the table there, all in one transaction. False: this kernel has no nf_tables.
    pub(crate) fn put(&mut self, guard: &Guard) -> Result<bool, Error> {
        let mut put = self.tables.counted(|socket| socket.put_guard(guard));
        if let Err(e) = put.as_ref()
            && !nftables::lacks(e)
        {
            debug!(error = %e, "guard: trying again");
            self.tables.reopen();
            put = self.tables.counted(|socket| socket.put_guard(guard));
        }
        match put {
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

    /// Where there should be none. It fails no apply, since nothing that is secret or closed depends on it: what is wrong is given in
    /// words.
    pub(crate) fn leave(&mut self) -> Option<String> {
        let error = self.remove().err()?;
        self.tables.reopen();
        warn!(%error, "looking for a guard that is to go");
        Some(format!(
            "guard: {error}; should {} be there still, clear packets of pods are dropped. Trying again",
            nftables::in_words(GUARD_TABLE)
        ))
    }

    /// Whose clear packets a guard lets in that is there in full.
    pub(crate) fn accepts(&mut self) -> Option<Vec<IpNet>> {
        let found = self.tables.counted(Socket::guard_accepts);
        nftables::none_is_fine(found).unwrap_or_else(|error| {
            warn!(%error, "looking for a guard; none is found");
            self.tables.reopen();
            None
        })
    }
}

/// What a note begins with where routing rules alone stand in for the guard.
pub const NO_TABLES: &str = "overlay None: this kernel has no nf_tables";

/// The whole of it.
pub(crate) fn note() -> String {
    format!(
        "{NO_TABLES} for both IP families (CONFIG_NF_TABLES_INET, modprobe nf_tables): clear packets from pod addresses are refused on \
         their way from the underlay interface to pods, and neither by other interfaces nor where they are for this node's own \
         address among its pods; or use overlay VXLAN or IPIP"
    )
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
        assert_eq!(wanted(&desired, Some("eth0")).unwrap().accepted, []);
        for name in ["b", "c"] {
            desired.peers.get_mut(name).unwrap().accept_clear = true;
        }
        let guard = wanted(&desired, Some("eth0")).unwrap();
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
                assert!(error.contains("nf_tables rules"), "{error}");
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
            let refused = "51:\tfrom 10.244.0.0/16 to 10.244.1.0/24 iif eth0 blackhole proto 229";
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
            // Beside nf_tables they stand while nobody is accepted.
            overlay.guard = Guarding::new(None);
            assert!(overlay.apply(&desired).unwrap().note.is_none());
            assert!(!ip("rule").contains(refused));
            for (clear, beside) in [(false, true), (true, false), (false, true)] {
                desired.peers.get_mut("c").unwrap().accept_clear = clear;
                overlay.apply_changes(&desired).unwrap();
                assert_eq!(overlay.apply(&desired).unwrap().writes, 0);
                assert_eq!(ip("rule").contains(refused), beside);
            }
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
            assert_eq!(wanted(&desired, None), None, "{desired:?}");
        }
    }
}
