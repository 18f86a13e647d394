use std::process::Command;

use netlink_packet_core::NetlinkSerializable;

use super::{expression::End, *};
use crate::Family;

const TABLE: &Table = &masquerade::TABLE;

fn example() -> Masquerade {
    Masquerade {
        sources: vec![
            "10.244.1.0/24".parse().unwrap(),
            "fd00:10:1::/64".parse().unwrap(),
        ],
        excluded: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10::/32".parse().unwrap(),
        ],
        devices: vec!["espalier.vx".to_owned()],
        udp_ports: vec![4789],
        protocols: vec![6],
    }
}

fn bytes(message: &NetfilterMessage) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The table's rules as `nft` shows them, without comments; `None` where this machine has no `nft`.
fn listed(table: &str) -> Option<Vec<String>> {
    let list = Command::new("nft")
        .args(["list", "table", "inet", table])
        .output()
        .ok()?;
    let text = String::from_utf8(list.stdout).unwrap();
    let rules = text.lines().filter_map(|line| line.split_once(" comment "));
    Some(rules.map(|(rule, _)| rule.trim().to_owned()).collect())
}

#[test]
fn a_batch_says_whose_it_is() {
    let begin = NetfilterMessage::batch(Kind::BatchBegin);
    assert_eq!(
        (begin.message_type(), bytes(&begin)),
        (16, vec![0, 0, 0, 10])
    );
}

/// What `nft --debug=mnl add table inet espalier` sends.
#[test]
fn a_table_is_named_and_of_both_families() {
    let message = TABLE.message(Kind::NewTable);
    let mut expected = vec![1, 0, 0, 0];
    expected.extend(13_u16.to_ne_bytes());
    expected.extend(1_u16.to_ne_bytes());
    expected.extend(b"espalier\0\0\0\0");
    assert_eq!(
        (message.message_type(), bytes(&message)),
        (0x0a00, expected)
    );
    assert_eq!(message.table(), Some("espalier"));
}

#[test]
fn a_source_is_masked_and_compared() {
    let rule = Expressions::new().address(End::Source, "10.244.1.0/24".parse().unwrap());
    let bytes = rule.into_attributes().into_bytes();
    let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(
        has(b"payload\0") && has(&[0, 0, 0, 12]),
        "source address of IPv4"
    );
    assert!(has(&[255, 255, 255, 0]) && has(&[10, 244, 1, 0]));
    let host = Expressions::new().address(End::Destination, "192.0.2.1/32".parse().unwrap());
    let bytes = host.into_attributes().into_bytes();
    assert!(!bytes.windows(7).any(|window| window == b"bitwise"));
}

#[test]
fn comments_differ_with_any_rule() {
    let all = |wanted: &Masquerade| comments(&wanted.rules());
    let (before, mut other) = (all(&example()), example());
    assert_eq!(before.len(), 7);
    other.udp_ports = vec![4790];
    assert!(before.iter().zip(all(&other)).all(|(a, b)| *a != b));
}

#[test]
fn only_what_changes_something_is_a_write() {
    let writes = |kind| Netfilter::is_write(TABLE.message(kind).message_type());
    assert!(writes(Kind::NewTable) && writes(Kind::DelRule) && writes(Kind::DelTable));
    assert!(!writes(Kind::GetRule) && !writes(Kind::GetTable) && !writes(Kind::BatchEnd));
}

#[test]
fn rules_are_written_once_and_mended() {
    let name = "nftables::tests::rules_are_written_once_and_mended";
    espalier_testnet::isolated(name, || {
        let mut socket = Socket::<Netfilter>::open().unwrap();
        assert!(!socket.remove_masquerade().unwrap());
        assert!(socket.put_masquerade(&example()).unwrap());
        let writes = socket.writes();
        assert!(!socket.put_masquerade(&example()).unwrap());
        assert_eq!(socket.writes(), writes);
        if let Some(rules) = listed(MASQUERADE_TABLE) {
            let expected = [
                "oifname \"espalier.vx\" return",
                "udp dport 4789 return",
                "meta l4proto tcp return",
                "ip daddr 10.244.0.0/16 return",
                "ip6 daddr fd00:10::/32 return",
                "ip saddr 10.244.1.0/24 masquerade",
                "ip6 saddr fd00:10:1::/64 masquerade",
            ];
            assert_eq!(rules, expected);
        }
        socket
            .transaction(vec![(TABLE.rules(Kind::DelRule), PLAIN)])
            .unwrap();
        assert!(socket.put_masquerade(&example()).unwrap(), "flushed");
        assert!(socket.remove_masquerade().unwrap());
        assert!(!socket.remove_masquerade().unwrap());
        assert!(socket.put_masquerade(&example()).unwrap(), "removed");
    });
}

/// Other rules take the place of the old ones, more than fit into one of the socket's usual pieces.
#[test]
fn many_networks_go_in_one_transaction() {
    let name = "nftables::tests::many_networks_go_in_one_transaction";
    espalier_testnet::isolated(name, || {
        let mut socket = Socket::<Netfilter>::open().unwrap();
        socket.put_masquerade(&example()).unwrap();
        let network = |n: u32| format!("10.{}.{}.0/24", n >> 8, n & 255).parse().unwrap();
        let wanted = Masquerade {
            excluded: (0..2000).map(network).collect(),
            ..example()
        };
        assert!(socket.put_masquerade(&wanted).unwrap());
        assert!(!socket.put_masquerade(&wanted).unwrap());
        let there = socket.dump(TABLE.rules(Kind::GetRule)).unwrap();
        assert_eq!(there.len(), 2005);
    });
}

/// In a table of our name a chain of our name that hangs elsewhere.
#[test]
fn a_chain_that_stands_in_the_way_is_replaced() {
    let name = "nftables::tests::a_chain_that_stands_in_the_way_is_replaced";
    espalier_testnet::isolated(name, || {
        let mut socket = Socket::<Netfilter>::open().unwrap();
        let attributes = Attributes::new()
            .text(1, MASQUERADE_TABLE)
            .text(3, masquerade::CHAIN.name)
            .nested(4, &Attributes::new().number(1, 3).number(2, 0))
            .text(7, "filter");
        let other = NetfilterMessage::new(
            Kind::NewChain,
            TABLE.object(masquerade::CHAIN.name),
            attributes,
        );
        let both = vec![(TABLE.message(Kind::NewTable), CREATE), (other, CREATE)];
        socket.transaction(both).unwrap();
        assert!(socket.put_masquerade(&example()).unwrap());
        assert!(!socket.put_masquerade(&example()).unwrap());
    });
}

fn guard() -> Guard {
    let net = |text: &str| text.parse().unwrap();
    Guard {
        refused: vec![
            (net("10.244.0.0/16"), net("10.244.1.0/24")),
            (net("fd00:10::/32"), net("fd00:10:1::/64")),
        ],
        devices: vec!["espalier.tun".to_owned()],
        own: vec![net("10.244.1.0/24")],
        accepted: vec![net("10.244.2.0/23"), net("fd00:10:2::/64")],
        underlay: Some("eth0".to_owned()),
    }
}

#[test]
fn a_guard_is_written_read_back_and_removed() {
    let name = "nftables::tests::a_guard_is_written_read_back_and_removed";
    espalier_testnet::isolated(name, || {
        let mut socket = Socket::<Netfilter>::open().unwrap();
        assert_eq!(socket.guard_accepts().unwrap(), None);
        assert!(socket.put_guard(&guard()).unwrap());
        assert!(!socket.put_guard(&guard()).unwrap());
        assert_eq!(socket.guard_accepts().unwrap(), Some(guard().accepted));
        if let Some(rules) = listed(GUARD_TABLE) {
            let expected = [
                "iifname \"espalier.tun\" return",
                "iifname \"eth0\" ip saddr 10.244.1.0/24 drop",
                "ip saddr 10.244.1.0/24 return",
                "ip saddr 10.244.2.0/23 return",
                "ip6 saddr fd00:10:2::/64 return",
                "ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 drop",
                "ip6 saddr fd00:10::/32 ip6 daddr fd00:10:1::/64 drop",
            ];
            assert_eq!(rules, [expected, expected].concat(), "in both chains");
        }
        // The masquerade's table is another one.
        assert!(socket.put_masquerade(&example()).unwrap());
        assert!(socket.remove_masquerade().unwrap());
        let closed = Guard {
            accepted: Vec::new(),
            ..guard()
        };
        assert!(socket.put_guard(&closed).unwrap());
        assert_eq!(socket.guard_accepts().unwrap(), Some(Vec::new()));
        assert!(socket.remove_guard().unwrap());
        assert!(!socket.remove_guard().unwrap());
        assert_eq!(socket.guard_accepts().unwrap(), None);
    });
}

#[test]
fn a_guard_with_a_hole_is_none() {
    let all = comments(&guard().rules());
    let read = |comments: &[&String]| {
        let comments: Vec<&str> = comments.iter().map(|c| c.as_str()).collect();
        labels(&comments).is_some()
    };
    let whole: Vec<&String> = all.iter().collect();
    assert!(read(&whole));
    for missing in 0..all.len() {
        let mut rest = whole.clone();
        rest.remove(missing);
        assert!(!read(&rest), "without rule {missing}");
    }
    let strange = "mine".to_owned();
    assert!(!read(&[&strange]) && !read(&[]));
    assert!(!read(&[whole.as_slice(), &[&strange]].concat()));
}

#[test]
fn comments_are_read_as_they_were_written() {
    assert_eq!(comment(&userdata("espalier 0 1/1")), Some("espalier 0 1/1"));
    for bytes in [
        &[][..],
        &[0],
        &[0, 9, b'a', 0],
        &[1, 2, b'a', 0],
        &[0, 1, 7],
    ] {
        assert_eq!(comment(bytes), None, "{bytes:?}");
    }
}
