//! Ethernet frames.

use crate::bytes::{cut, with};
use crate::esp::{ipv4, ipv6, vxlan};
use crate::{Seed, seeds as of};

fn ethernet(ether_type: u16, packet: &[u8]) -> Vec<u8> {
    [&[2; 12][..], &ether_type.to_be_bytes(), packet].concat()
}

/// A packet between two hosts.
fn host(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let packet = ipv4(protocol, payload);
    ethernet(0x0800, &with(&packet, 12, &[192, 0, 2, 1, 192, 0, 2, 2]))
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let head = [port, port, length, 0].map(u16::to_be_bytes).concat();
    [&head, payload].concat()
}

pub(crate) fn seeds() -> Vec<Seed> {
    let pod = ipv4(17, &udp(53, b"query"));
    let in_vxlan = host(17, &vxlan(0x0800, &pod));
    let esp = [0xc0, 0xff, 0xee, 1, 0, 0, 0, 1, 9, 9];
    let deep = (0..7).fold(pod.clone(), |packet, _| {
        with(&ipv4(4, &packet), 12, &[192, 0, 2, 1, 192, 0, 2, 2])
    });
    of(
        "capture_classify",
        [
            ("pod-clear", ethernet(0x0800, &pod)),
            ("pod-clear-ipv6", ethernet(0x86dd, &ipv6(6, b"segment"))),
            ("pod-in-vxlan", in_vxlan.clone()),
            ("pod-in-ipip", host(4, &pod)),
            ("pod6-in-ipip", host(41, &ipv6(58, b"echo"))),
            (
                "vlan",
                ethernet(0x8100, &[&[0, 7, 8, 0][..], &pod].concat()),
            ),
            ("esp", host(50, &esp)),
            ("esp-in-udp", host(17, &udp(4500, &esp))),
            ("ike", host(17, &udp(500, &[1; 28]))),
            ("ike-marker", host(17, &udp(4500, &[0; 32]))),
            ("keepalive", host(17, &udp(4500, &[0xff]))),
            ("fragment", with(&host(17, b"later fragment"), 20, &[0, 9])),
            ("arp", ethernet(0x0806, &[0; 28])),
            (
                "hop-by-hop",
                ethernet(0x86dd, &ipv6(0, &[17, 0, 0, 0, 0, 0, 0, 0])),
            ),
            ("too-deep", ethernet(0x0800, &deep)),
            (
                "ipv4-options",
                with(&host(4, &[&[1; 4], &pod[..]].concat()), 14, &[0x46]),
            ),
            ("ipv4-header-length", with(&in_vxlan, 14, &[0x4f])),
            ("cut", cut(&in_vxlan, 40)),
            ("empty", vec![]),
        ],
    )
}
