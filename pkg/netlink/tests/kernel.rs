//! The socket and its helpers against a real kernel, each test in a private network namespace.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;

use espalier_netlink::{
    Action, CREATE, Direction, Errno, FdbEntry, LinkChange, Mode, Neighbour, Policy, Protocol,
    Route, RouteEntry, RouteFilter, Socket, Template, Veth, VethPeer, Vxlan, Xfrm,
    packet_route::{
        RouteNetlinkMessage,
        route::{RouteScope, RouteType},
    },
    sysctl, visit_netns,
};
use espalier_testnet::{Netns, isolated};

fn veth<'a>(name: &'a str, peer: &'a str) -> Veth<'a> {
    Veth {
        name,
        mtu: Some(1400),
        mac: None,
        peer: VethPeer {
            name: peer,
            mac: None,
            netns: None,
        },
        up: true,
        queues: None,
    }
}

#[test]
fn a_veth_pair_reaches_into_another_namespace() {
    isolated("a_veth_pair_reaches_into_another_namespace", || {
        let pod = Netns::new("pod").unwrap();
        let mut here = Socket::<Route>::open().unwrap();
        let mac = [2, 0, 0, 0, 0, 9];
        let peer = VethPeer {
            name: "eth0",
            mac: Some(mac),
            netns: Some(pod.file().as_fd()),
        };
        here.add_veth(&Veth {
            peer,
            ..veth("host0", "unused")
        })
        .unwrap();

        let host = here.link("host0").unwrap().unwrap();
        assert_eq!(
            (host.mtu, host.up, host.kind.as_deref()),
            (1400, true, Some("veth"))
        );
        let mut there = Socket::<Route>::open_in(pod.file()).unwrap();
        let eth0 = there.link("eth0").unwrap().unwrap();
        assert_eq!((eth0.mtu, eth0.up, eth0.mac), (1400, false, Some(mac)));
        there.set_up(eth0.index).unwrap();
        assert!(there.link("eth0").unwrap().unwrap().up);
        assert_eq!(here.link("eth0").unwrap(), None);
        assert_eq!(there.link_by_index(4242).unwrap(), None);

        here.del_link(host.index).unwrap();
        assert_eq!(there.link("eth0").unwrap(), None);
        assert_eq!((here.writes(), there.writes()), (2, 1));
    });
}

#[test]
fn links_are_changed_and_found_by_address() {
    isolated("links_are_changed_and_found_by_address", || {
        let mut socket = Socket::<Route>::open().unwrap();
        socket.add_veth(&veth("a0", "a1")).unwrap();
        socket.add_bridge("br0").unwrap();
        let (a0, br0) = (
            socket.index_of("a0").unwrap(),
            socket.index_of("br0").unwrap(),
        );
        let change = LinkChange {
            mtu: Some(1300),
            master: Some(br0),
            alias: Some("ours"),
            ..LinkChange::default()
        };
        socket.set_link(a0, &change).unwrap();
        let link = socket.link("a0").unwrap().unwrap();
        assert_eq!(
            (link.mtu, link.master, link.alias.as_deref(), link.up),
            (1300, Some(br0), Some("ours"), true)
        );

        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            socket.add_address(br0, address.parse().unwrap()).unwrap();
            socket.add_address(br0, address.parse().unwrap()).unwrap();
        }
        assert_eq!(
            socket
                .link_by_address("192.0.2.1".parse().unwrap())
                .unwrap()
                .unwrap()
                .index,
            br0
        );
        assert_eq!(
            socket
                .link_by_address("2001:db8::1".parse().unwrap())
                .unwrap()
                .unwrap()
                .index,
            br0
        );
        assert_eq!(
            socket
                .link_by_address("192.0.2.2".parse().unwrap())
                .unwrap(),
            None
        );
        socket
            .del_address(br0, "192.0.2.1/24".parse().unwrap())
            .unwrap();
        let gone = socket
            .del_address(br0, "192.0.2.1/24".parse().unwrap())
            .unwrap_err();
        assert!(gone.is_missing(), "{gone}");
    });
}

#[test]
fn a_group_is_listed_and_removed_as_a_whole() {
    isolated("a_group_is_listed_and_removed_as_a_whole", || {
        let mut socket = Socket::<Route>::open().unwrap();
        for n in 0..5 {
            let (name, peer) = (format!("a{n}"), format!("b{n}"));
            socket.add_veth(&veth(&name, &peer)).unwrap();
        }
        let group = |group| LinkChange {
            group: Some(group),
            ..LinkChange::default()
        };
        for (name, of) in [("a0", 7), ("a1", 7), ("b1", 7), ("a2", 8)] {
            let index = socket.index_of(name).unwrap();
            socket.set_link(index, &group(of)).unwrap();
        }
        let mut names = |of| {
            let inside = socket.links_in_group(of).unwrap();
            let mut names: Vec<_> = inside.into_iter().map(|link| link.name).collect();
            names.sort();
            names
        };
        assert_eq!(names(7), ["a0", "a1", "b1"]);
        assert_eq!(names(8), ["a2"]);
        assert!(names(9).is_empty());
        assert_eq!(names(0).len(), 7, "lo and all others");
        socket.del_group(7).unwrap();
        assert!(socket.del_group(7).unwrap_err().is_missing());
        assert_eq!(socket.links().unwrap().len(), 7, "of pairs both ends went");
        assert!(socket.del_group(0).is_err());
    });
}

#[test]
fn routes_are_replaced_in_place_and_filtered_by_protocol() {
    isolated(
        "routes_are_replaced_in_place_and_filtered_by_protocol",
        || {
            let mut socket = Socket::<Route>::open().unwrap();
            socket.add_veth(&veth("a0", "a1")).unwrap();
            socket.add_veth(&veth("b0", "b1")).unwrap();
            let (a, b) = (
                socket.index_of("a0").unwrap(),
                socket.index_of("b0").unwrap(),
            );
            socket
                .add_address(a, "192.0.2.1/24".parse().unwrap())
                .unwrap();
            let filter = RouteFilter {
                protocol: Some(229),
                oif: None,
            };
            for (to, via) in [
                ("10.9.0.0/16", "198.51.100.7"),
                ("fd00:9::/48", "fd00:9::1"),
            ] {
                let (to, via): (ipnet::IpNet, std::net::IpAddr) =
                    (to.parse().unwrap(), via.parse().unwrap());
                let mut first = RouteEntry {
                    onlink: true,
                    protocol: 229,
                    ..RouteEntry::unicast(to, Some(via), a)
                };
                if to.addr().is_ipv4() {
                    first.source = Some("192.0.2.1".parse().unwrap());
                }
                socket.add_route(&first).unwrap();
                assert_eq!(socket.routes(filter).unwrap(), std::slice::from_ref(&first));
                assert!(socket.add_route(&first).unwrap_err().is_exists());
                let second = RouteEntry {
                    protocol: 229,
                    ..RouteEntry::unicast(to, None, b)
                };
                socket.replace_route(&second).unwrap();
                assert_eq!(
                    socket.routes(filter).unwrap(),
                    std::slice::from_ref(&second)
                );
                socket.del_route(&second).unwrap();
                assert_eq!(socket.routes(filter).unwrap(), []);
                assert!(socket.del_route(&second).unwrap_err().is_missing());
            }
            let foreign = socket.routes(RouteFilter::default()).unwrap();
            let connected = foreign
                .iter()
                .find(|r| r.to.to_string() == "192.0.2.0/24" && r.table == 254)
                .unwrap();
            assert_eq!(
                (connected.oif, connected.scope),
                (Some(a), RouteScope::Link)
            );
            for to in ["10.9.0.0/16", "fd00:9::/48"] {
                let refuse = RouteEntry::unreachable(to.parse().unwrap(), 4_278_198_272);
                socket.add_route(&refuse).unwrap();
                let all = socket.routes(RouteFilter::default()).unwrap();
                let refusals = all
                    .iter()
                    .filter(|r| r.kind == RouteType::Unreachable && r.to == refuse.to);
                assert_eq!(refusals.collect::<Vec<_>>(), [&refuse]);
            }
        },
    );
}

#[test]
fn vxlan_neighbours_and_forwarding_entries_read_back() {
    isolated("vxlan_neighbours_and_forwarding_entries_read_back", || {
        let mut socket = Socket::<Route>::open().unwrap();
        let (local, mac) = ("192.0.2.1".parse().unwrap(), [2, 0, 0, 0, 0, 1]);
        let vxlan = Vxlan {
            name: "vx.0",
            vni: 4789,
            port: 4789,
            local,
            mac,
            mtu: 1408,
        };
        socket.add_vxlan(&vxlan).unwrap();
        assert!(socket.add_vxlan(&vxlan).unwrap_err().is_exists());
        let link = socket.link("vx.0").unwrap().unwrap();
        assert_eq!(
            (link.kind.as_deref(), link.mac, link.mtu, link.up),
            (Some("vxlan"), Some(mac), 1408, false)
        );
        socket.set_up(link.index).unwrap();

        let peer = [2, 0, 0, 0, 0, 2];
        let neighbours = [
            Neighbour::permanent(link.index, "10.244.2.1".parse().unwrap(), peer),
            Neighbour::permanent(link.index, "fd00:2::1".parse().unwrap(), peer),
        ];
        for neighbour in &neighbours {
            socket.replace_neighbour(neighbour).unwrap();
        }
        let mut listed = socket.neighbours(link.index).unwrap();
        listed.retain(|n| n.mac == Some(peer));
        listed.sort_by_key(|n| n.ip);
        assert_eq!(listed, neighbours);

        let mut entry = FdbEntry {
            index: link.index,
            mac: peer,
            remote: "192.0.2.2".parse().unwrap(),
        };
        for remote in ["192.0.2.2", "192.0.2.3"] {
            entry.remote = remote.parse().unwrap();
            socket.replace_fdb(&entry).unwrap();
            assert_eq!(socket.fdb(link.index).unwrap(), [entry]);
        }
        socket.del_fdb(&entry).unwrap();
        assert_eq!(socket.fdb(link.index).unwrap(), []);
    });
}

#[test]
fn a_batch_tells_which_requests_were_refused_and_why() {
    isolated("a_batch_tells_which_requests_were_refused_and_why", || {
        let mut socket = Socket::<Route>::open().unwrap();
        let count = 3000_u32;
        let routes = (0..count).map(|i| {
            // Every third one names an interface that does not exist.
            let to = ipnet::Ipv4Net::new((0x0a00_0000 + (i << 8)).into(), 24)
                .unwrap()
                .into();
            let oif = if i % 3 == 0 { 4242 } else { 1 };
            (
                RouteNetlinkMessage::NewRoute(RouteEntry::unicast(to, None, oif).message()),
                CREATE,
            )
        });
        let results = socket.batch(routes).unwrap();
        assert_eq!(results.len(), count as usize);
        for (i, result) in results.iter().enumerate() {
            assert_eq!(result.is_err(), i % 3 == 0, "{i}: {result:?}");
        }
        let error = results[3].as_ref().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENODEV));
        assert!(error.to_string().contains("10.0.3.0/24"), "{error}");
        assert_eq!(socket.writes(), count as usize);
        let listed = socket
            .routes(RouteFilter {
                protocol: Some(4),
                oif: None,
            })
            .unwrap();
        assert_eq!(listed.len(), 2000, "a dump of many datagrams is complete");
    });
}

#[test]
fn errors_carry_the_kernels_own_words() {
    isolated("errors_carry_the_kernels_own_words", || {
        let mut socket = Socket::<Route>::open().unwrap();
        let lost = RouteEntry::unicast(
            "10.9.0.0/16".parse().unwrap(),
            Some("203.0.113.1".parse().unwrap()),
            1,
        );
        let error = socket.add_route(&lost).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENETUNREACH));
        let text = error.to_string();
        assert!(
            text.contains("RTM_NEWROUTE 10.9.0.0/16")
                && text.contains("(Nexthop has invalid gateway)"),
            "{text}"
        );
        // The socket is in step after an error.
        assert_eq!(socket.link("lo").unwrap().unwrap().index, 1);
    });
}

#[test]
fn policies_are_added_updated_and_removed_by_number() {
    isolated("policies_are_added_updated_and_removed_by_number", || {
        let mut socket = Socket::<Xfrm>::open().unwrap();
        for any in ["0.0.0.0/0", "::/0"] {
            let any = any.parse().unwrap();
            let block = Policy {
                direction: Direction::In,
                action: Action::Block,
                template: None,
                source: any,
                destination: any,
                protocol: 17,
                port: 4789,
                interface: 1,
                priority: 77,
            };
            socket.request(block.add(), 0).unwrap();
            assert!(socket.request(block.add(), 0).unwrap_err().is_exists());
            let allow = Policy {
                action: Action::Allow,
                priority: 78,
                ..block
            };
            assert_eq!(allow.place(), block.place());
            socket.request(allow.update(), 0).unwrap();
            let listed = socket.policies().unwrap();
            assert_eq!(listed.iter().map(|p| p.policy).collect::<Vec<_>>(), [allow]);
            socket.request(listed[0].delete(), 0).unwrap();
            assert_eq!(socket.policies().unwrap(), []);
            assert!(
                socket
                    .request(listed[0].delete(), 0)
                    .unwrap_err()
                    .is_missing()
            );
        }
    });
}

#[test]
fn policies_with_a_template_read_back() {
    isolated("policies_with_a_template_read_back", || {
        let mut socket = Socket::<Xfrm>::open().unwrap();
        let mut expected = Vec::new();
        for (local, remote, inner) in [
            ("192.0.2.1", "192.0.2.2", "10.0.0.0/24"),
            ("2001:db8::1", "2001:db8::2", "10.1.0.0/24"),
            ("192.0.2.1", "192.0.2.2", "fd00::/64"),
        ] {
            let inner: ipnet::IpNet = inner.parse().unwrap();
            let out = Policy {
                direction: Direction::Out,
                action: Action::Allow,
                template: Some(Template {
                    protocol: Protocol::Esp,
                    mode: Mode::Tunnel,
                    source: local.parse().unwrap(),
                    destination: remote.parse().unwrap(),
                    reqid: 0x4553_0007,
                    spi: Some(0xc001_0203),
                    optional: false,
                }),
                source: inner,
                destination: inner,
                protocol: 0,
                port: 0,
                interface: 0,
                priority: 77,
            };
            // Only tunnel mode leads from one family to another.
            let same = inner.addr().is_ipv4() == local.contains('.');
            let template = out.template.map(|out| Template {
                protocol: Protocol::Ah,
                mode: if same { Mode::Transport } else { Mode::Tunnel },
                spi: None,
                optional: true,
                ..out
            });
            let back = Policy {
                direction: Direction::Forward,
                template,
                ..out
            };
            assert_eq!(socket.policy_at(&out).unwrap(), None);
            for policy in [out, back] {
                socket.request(policy.add(), 0).unwrap();
                let there = socket.policy_at(&policy.place()).unwrap().unwrap();
                assert_eq!(there.policy, policy);
                expected.push(policy);
            }
        }
        let mut listed: Vec<_> = socket
            .policies()
            .unwrap()
            .iter()
            .map(|p| p.policy)
            .collect();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected);
    });
}

#[test]
fn settings_belong_to_the_namespace() {
    isolated("settings_belong_to_the_namespace", || {
        let other = Netns::new("other").unwrap();
        let (key, netns) = ("net/ipv4/ip_forward", Some(other.file().as_fd()));
        let here = sysctl::read(None, key).unwrap();
        sysctl::write(netns, key, "0").unwrap();
        assert!(sysctl::ensure(netns, key, "1").unwrap());
        assert!(!sysctl::ensure(netns, key, "1").unwrap());
        assert_eq!(sysctl::read(netns, key).unwrap().as_deref(), Some("1"));
        assert_eq!(sysctl::read(None, key).unwrap(), here);
        assert_eq!(
            sysctl::read(None, "net/ipv4/conf/nothing/rp_filter").unwrap(),
            None
        );
    });
}

#[test]
fn settings_of_one_folder_are_put_together_where_they_are() {
    isolated(
        "settings_of_one_folder_are_put_together_where_they_are",
        || {
            let other = Netns::new("other").unwrap();
            let settings = [
                ("rp_filter", "2"),
                ("no_such_setting", "0"),
                ("forwarding", "1"),
            ];
            let put = |folder: &str| sysctl::put_all_if_there(folder, &settings);
            visit_netns(other.file(), || put("net/ipv4/conf/lo").unwrap()).unwrap();
            put("net/ipv4/conf/nothing").unwrap();
            for (name, value) in [("rp_filter", "2"), ("forwarding", "1")] {
                let key = format!("net/ipv4/conf/lo/{name}");
                let there = sysctl::read(Some(other.file().as_fd()), &key).unwrap();
                assert_eq!(there.as_deref(), Some(value), "{name}");
            }
            let here = sysctl::read(None, "net/ipv4/conf/lo/rp_filter").unwrap();
            assert_ne!(here.as_deref(), Some("2"));
            let refused = sysctl::put_all_if_there("net/ipv4/conf/lo", &[("rp_filter", "high")]);
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("net/ipv4/conf/lo/rp_filter"), "{refused}");
        },
    );
}

#[test]
fn a_visit_ends_at_home_even_by_a_panic() {
    isolated("a_visit_ends_at_home_even_by_a_panic", || {
        let other = Netns::new("other").unwrap();
        let inode = || std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        let home = inode();
        let there = visit_netns(other.file(), inode).unwrap();
        assert_eq!(there, other.file().metadata().unwrap().ino());
        assert_eq!(inode(), home);
        let panics = || visit_netns(other.file(), || assert_eq!(inode(), home));
        std::panic::catch_unwind(panics).unwrap_err();
        assert_eq!(inode(), home);
        let plain = std::fs::File::open("/proc/self/status").unwrap();
        let refused = visit_netns(&plain, || ()).unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::EINVAL));
        assert_eq!(inode(), home);
    });
}
