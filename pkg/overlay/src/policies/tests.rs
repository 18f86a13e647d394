use std::collections::BTreeMap;

use espalier_netlink::{InstalledPolicy, Mode, Protocol};

use super::*;
use crate::{Engine, Framing, PRIORITIES, PeerRoute, Protect, RoutePath, Vtep};

const PROTECT: Protect = Protect {
    reqid: 0x4553_0002,
    spi: Some(0xc000_0001),
    ah: false,
};

fn desired(deny_clear: bool, path: RoutePath, accept_clear: bool) -> Desired {
    let peer = PeerRoute {
        remote: "192.0.2.2".parse().unwrap(),
        mac: [2, 0, 0, 0, 0, 2],
        pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
        path,
        accept_clear,
        protect: None,
        trial: None,
    };
    Desired {
        local: "192.0.2.1".parse().unwrap(),
        vtep: Vtep {
            mac: [2, 0, 0, 0, 0, 1],
            vni: 4789,
            port: 4789,
            mtu: None,
        },
        gateways: vec!["10.244.1.1".parse().unwrap()],
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        ],
        engine: Engine::None,
        framing: Framing::Vxlan,
        deny_clear,
        peers: [("b".to_owned(), peer)].into(),
        externals: BTreeMap::new(),
        masquerade: false,
    }
}

fn kernel(deny_clear: bool, path: RoutePath, accept_clear: bool) -> Desired {
    let mut desired = desired(deny_clear, path, accept_clear);
    desired.engine = Engine::Kernel;
    peer(&mut desired).protect = Some(PROTECT);
    desired
}

fn peer(desired: &mut Desired) -> &mut PeerRoute {
    desired.peers.get_mut("b").unwrap()
}

/// Direction and what becomes of it, of the peer's policies.
fn pair(desired: &Desired) -> BTreeMap<Direction, String> {
    let peer = &desired.peers["b"];
    let all = of_peer(desired, peer, &peer.pod_cidrs, Some(3));
    let text = |p: &Policy| match (p.action, p.template) {
        (_, Some(t)) => t.to_string(),
        (action, None) => format!("{action:?}"),
    };
    all.iter().map(|p| (p.direction, text(p))).collect()
}

#[test]
fn nothing_is_wanted_while_clear_is_not_refused() {
    assert_eq!(wanted(&desired(false, RoutePath::Clear, true), Some(3)), []);
    assert_eq!(wanted(&kernel(false, RoutePath::Clear, true), Some(3)), []);
}

#[test]
fn the_pair_is_allowed_while_it_accepts_or_sends_clear() {
    let directions = |d: &Desired| pair(d).into_keys().collect::<Vec<_>>();
    let both = [Direction::In, Direction::Out];
    assert_eq!(directions(&desired(true, RoutePath::Clear, true)), both);
    assert_eq!(directions(&desired(true, RoutePath::Encrypted, true)), both);
    let only_sends = desired(true, RoutePath::Clear, false);
    assert_eq!(directions(&only_sends), [Direction::Out]);
    for path in [RoutePath::Encrypted, RoutePath::Blocked] {
        assert_eq!(directions(&desired(true, path, false)), []);
    }
}

#[test]
fn what_the_kernel_seals_is_one_policy_out_and_only_its_states_open() {
    let out = "Esp Transport 192.0.2.1 to 192.0.2.2 reqid 1163067394 SPI c0000001";
    let into = "Esp Transport 192.0.2.2 to 192.0.2.1 reqid 1163067394";
    let cases = [
        (true, RoutePath::Encrypted, false, Some(into), Some(out)),
        (true, RoutePath::Encrypted, true, Some("Allow"), Some(out)),
        (false, RoutePath::Encrypted, true, None, Some(out)),
        (true, RoutePath::Blocked, false, Some(into), Some("Block")),
        (false, RoutePath::Blocked, true, None, Some("Block")),
        (true, RoutePath::Clear, true, Some("Allow"), Some("Allow")),
        (true, RoutePath::Clear, false, Some(into), Some("Allow")),
        (false, RoutePath::Clear, true, None, None),
    ];
    for (deny, path, accept, into, out) in cases {
        let found = pair(&kernel(deny, path, accept));
        let expected = [(Direction::In, into), (Direction::Out, out)];
        let expected = expected
            .into_iter()
            .filter_map(|(d, w)| Some((d, w?.to_owned())));
        assert_eq!(found, expected.collect(), "{deny} {path:?} {accept}");
    }
    let mut unknown = kernel(true, RoutePath::Encrypted, false);
    peer(&mut unknown).protect = None;
    assert_eq!(
        pair(&unknown),
        [(Direction::Out, "Block".to_owned())].into()
    );
}

#[test]
fn a_trial_carries_probes_only() {
    let mut desired = kernel(true, RoutePath::Encrypted, false);
    let trial = Protect {
        spi: Some(0xd000_0001),
        ah: true,
        ..PROTECT
    };
    peer(&mut desired).trial = Some(trial);
    let all = wanted(&desired, Some(3));
    let probes: Vec<_> = all.iter().filter(|p| p.priority == PROBE).collect();
    assert_eq!(probes.len(), 2);
    for p in probes {
        let template = p.template.unwrap();
        assert_eq!((p.protocol, p.port), (UDP, crate::PROBE_PORT));
        assert_eq!(template.protocol, Protocol::Ah);
        let spi = trial.spi.filter(|_| p.direction == Direction::Out);
        assert_eq!((template.spi, template.optional), (spi, false));
    }
    // What the pair sends stays with the states that are proven.
    let out = pair(&desired);
    assert!(out[&Direction::Out].contains("Ah"), "the probe's: {out:?}");
    let overlay = all
        .iter()
        .find(|p| p.priority == PAIR && p.direction == Direction::Out);
    assert_eq!(overlay.unwrap().template.unwrap().spi, PROTECT.spi);
}

#[test]
fn what_allows_comes_before_what_blocks_and_decides_before_it() {
    let all = wanted(&desired(true, RoutePath::Clear, true), Some(3));
    let last_allow = all.iter().rposition(|p| p.action == Action::Allow).unwrap();
    let first_block = all.iter().position(|p| p.action == Action::Block).unwrap();
    assert!(last_allow < first_block);
    // Pod to pod by the underlay: two families, out and forward. Base: two families, in and out; and the probes', in and out.
    let count = |priority| all.iter().filter(|p| p.priority == priority).count();
    assert_eq!(
        (count(POD_TO_POD), count(PODS_OWN), count(PAIR), count(BASE)),
        (4, 2, 2, 6)
    );
    let pods = all.iter().filter(|p| p.priority == POD_TO_POD);
    assert!(pods.clone().all(|p| p.interface == 3));
    assert!(all.iter().all(|p| PRIORITIES.contains(&p.priority)));
}

#[test]
fn two_peers_with_one_address_have_one_policy() {
    let mut desired = kernel(true, RoutePath::Encrypted, false);
    let mut other = desired.peers["b"].clone();
    other.protect = Some(Protect {
        reqid: 9,
        ..PROTECT
    });
    desired.peers.insert("c".to_owned(), other);
    let all = wanted(&desired, None);
    let reqids = all.iter().filter_map(|p| p.template).map(|t| t.reqid);
    assert_eq!(reqids.collect::<Vec<_>>(), [PROTECT.reqid; 2]);
}

fn installed(all: &[Policy]) -> Vec<InstalledPolicy> {
    let list = all.iter().map(|policy| InstalledPolicy {
        policy: *policy,
        index: 0,
    });
    list.collect()
}

#[test]
fn a_base_block_with_a_hole_is_none() {
    let framings = [
        (Framing::Vxlan, "192.0.2.1", 4),
        (Framing::Ipip, "192.0.2.1", 2),
        (Framing::Ipip, "2001:db8::1", 4),
    ];
    for (framing, local, sides) in framings {
        let mut desired = desired(true, RoutePath::Clear, true);
        (desired.framing, desired.local) = (framing, local.parse().unwrap());
        let list = installed(&wanted(&desired, None));
        let whole = Found::of(&list);
        assert!(whole.base, "{framing:?}");
        let sees = desired.local.is_ipv4();
        assert_eq!(whole.accepting.len(), usize::from(sees), "{framing:?}");
        let host = ipnet::IpNet::from(desired.local);
        let wide = |p: &Policy| {
            p.priority == BASE
                && p.port != crate::PROBE_PORT
                && (p.source.prefix_len() == 0 || p.destination.prefix_len() == 0)
                && !desired.cluster_cidrs.contains(&p.source)
                && (p.source == host || p.source.prefix_len() == 0)
        };
        let blocks: Vec<_> = list
            .iter()
            .filter(|p| wide(&p.policy))
            .map(|p| p.policy)
            .collect();
        assert_eq!(blocks.len(), sides, "{framing:?}");
        for block in blocks {
            let mut list = list.clone();
            list.retain(|p| p.policy != block);
            assert!(!Found::of(&list).base, "{framing:?} without {block}");
        }
    }
}

#[test]
fn native_routing_ties_the_inner_source_to_the_peers_states() {
    let mut native = kernel(true, RoutePath::Encrypted, false);
    native.framing = Framing::Native;
    let found = pair(&native);
    let into = "Esp Tunnel 192.0.2.2 to 192.0.2.1 reqid 1163067394";
    assert_eq!(found[&Direction::In], into);
    assert_eq!(found[&Direction::Forward], into);
    let all = wanted(&native, Some(3));
    let of_pair = |p: &&Policy| p.priority == NATIVE;
    for p in all.iter().filter(of_pair) {
        let (own, theirs) = ("10.244.1.0/24", "10.244.2.0/24");
        let out = p.direction == Direction::Out;
        let (from, to) = if out { (own, theirs) } else { (theirs, own) };
        assert_eq!(
            (p.source.to_string(), p.destination.to_string()),
            (from.into(), to.into())
        );
        assert_eq!(p.template.unwrap().mode, Mode::Tunnel);
    }
    // Decided before the block of what leaves by the underlay.
    let block = all.iter().find(|p| p.interface == 3).unwrap();
    assert!(
        all.iter()
            .filter(of_pair)
            .all(|p| p.priority < block.priority)
    );
    assert!(Found::of(&installed(&all)).base);
    // Clear is let in beside the tunnel, which an allow without template would refuse.
    peer(&mut native).accept_clear = true;
    assert!(pair(&native)[&Direction::Forward].ends_with("or as it is"));
    let found = Found::of(&installed(&wanted(&native, Some(3))));
    assert_eq!(found.accepting.len(), 1);
    assert_eq!(found.protects.into_values().collect::<Vec<_>>(), [PROTECT]);
}

const OWN: &str = "10.244.1.0/24";
const REMOTE: &str = "192.168.0.0/16";

/// A gateway beside the peer, in a mode that refuses nothing.
fn external(engine: Engine, selectors: &[(&str, &str)]) -> Desired {
    let mut desired = desired(false, RoutePath::Clear, true);
    desired.engine = engine;
    let net = |text: &str| text.parse().unwrap();
    let tunnel = crate::Tunnel {
        local: desired.local,
        gateway: "203.0.113.7".parse().unwrap(),
        protect: PROTECT,
        selectors: selectors.iter().map(|(a, b)| (net(a), net(b))).collect(),
    };
    let route = crate::ExternalRoute {
        remote_cidrs: vec![net(REMOTE), net("2001:db8:5::/48")],
        tunnel: (!selectors.is_empty()).then_some(tunnel),
    };
    desired.externals.insert("berlin".to_owned(), route);
    desired
}

fn texts(desired: &Desired) -> Vec<String> {
    let all = wanted(desired, Some(3));
    assert!(all.iter().all(|p| PRIORITIES.contains(&p.priority)));
    all.iter().map(ToString::to_string).collect()
}

#[test]
fn s1_without_a_tunnel_nothing_passes_to_external_networks_in_any_mode() {
    for desired in [
        external(Engine::None, &[]),
        external(Engine::Tun("espalier.tun".to_owned()), &[(OWN, REMOTE)]),
        external(Engine::Kernel, &[]),
    ] {
        let expected = [
            "Block In 192.168.0.0/16 to 10.244.1.0/24",
            "Block Out 10.244.1.0/24 to 192.168.0.0/16",
            "Block Forward 192.168.0.0/16 to 10.244.1.0/24",
        ];
        assert_eq!(texts(&desired), expected);
    }
}

#[test]
fn a_tunnel_seals_what_was_agreed_and_the_rest_stays_closed() {
    let whole = external(Engine::Kernel, &[(OWN, REMOTE)]);
    let out = "by Esp Tunnel 192.0.2.1 to 203.0.113.7 reqid 1163067394 SPI c0000001";
    let into = "by Esp Tunnel 203.0.113.7 to 192.0.2.1 reqid 1163067394";
    assert_eq!(
        texts(&whole),
        [
            format!("Allow In 192.168.0.0/16 to 10.244.1.0/24 {into}"),
            format!("Allow Out 10.244.1.0/24 to 192.168.0.0/16 {out}"),
            format!("Allow Forward 192.168.0.0/16 to 10.244.1.0/24 {into}"),
        ]
    );
    let narrowed = external(Engine::Kernel, &[(OWN, "192.168.5.0/24")]);
    let all = wanted(&narrowed, Some(3));
    assert_eq!(all.len(), 6);
    let (sealed, blocked) = all.split_at(3);
    assert!(sealed.iter().all(|p| p.template.is_some()));
    assert!(blocked.iter().all(|p| p.action == Action::Block));
    assert!(sealed[0].priority < blocked[0].priority);
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    assert!(
        sealed
            .iter()
            .all(|p| p.source == net("192.168.5.0/24") || p.destination == net("192.168.5.0/24"))
    );
}

#[test]
fn another_gateways_block_does_not_stand_in_the_place_of_a_tunnel() {
    let mut desired = external(Engine::Kernel, &[(OWN, REMOTE)]);
    let closed = crate::ExternalRoute {
        remote_cidrs: vec![REMOTE.parse().unwrap()],
        tunnel: None,
    };
    desired.externals.insert("a-first".to_owned(), closed);
    assert!(texts(&desired).iter().all(|text| text.contains("Tunnel")));
}

#[test]
fn what_policies_say_of_tunnels_is_found_again() {
    let desired = external(
        Engine::Kernel,
        &[(OWN, "192.168.5.0/24"), (OWN, "192.168.7.0/24")],
    );
    let found = Found::of(&installed(&wanted(&desired, None)));
    let tunnel = desired.externals["berlin"].tunnel.clone();
    assert_eq!(found.tunnels.into_values().next(), tunnel);
    assert_eq!(found.protects, BTreeMap::new());
}
