//! What other network plugins do: ESP in tunnel mode between the hosts, around the whole VXLAN packet. Set up with `ip`.

use std::path::Path;

use anyhow::Result;
use espalier_testnet::Netns;

use super::count::{Place, Sizes, socket};
use super::espalier::{say, two_hosts};
use super::shape::Outer;

/// AES-256-GCM-16: key and salt. Nobody's secret.
const KEY: &str = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223";
const HOSTS: [&str; 2] = ["10.99.0.11", "10.99.0.12"];

/// Two hosts, VXLAN between them, and states and policies for it.
pub(crate) fn measure() -> Result<Sizes> {
    let [left, right] = two_hosts()?;
    host(&left, [0, 1])?;
    host(&right, [1, 0])?;
    let place = Place {
        sender: socket(&left, "10.244.0.1")?,
        to: "10.244.0.2:7000".parse()?,
        // The receiver's device shows what came out of a tunnel once more.
        netns: &left,
        device: "eth0",
        leaving: true,
    };
    place.measure(Outer::Protocol(50))
}

/// This end and the other one by their places in [`HOSTS`].
fn host(netns: &Netns, [own, other]: [usize; 2]) -> Result<()> {
    let (local, remote) = (HOSTS[own], HOSTS[other]);
    let vxlan =
        format!("link add vx type vxlan id 4789 dstport 4789 local {local} remote {remote}");
    let address = format!("address add 10.244.0.{}/24 dev vx", own + 1);
    let mut all = vec![vxlan, address, "link set vx mtu 1500 up".to_owned()];
    for (spi, from, to) in [(1, HOSTS[0], HOSTS[1]), (2, HOSTS[1], HOSTS[0])] {
        all.push(format!(
            "xfrm state add src {from} dst {to} proto esp spi {spi} reqid 1 mode tunnel replay-window 128 flag esn \
             aead rfc4106(gcm(aes)) {KEY} 128"
        ));
    }
    for (direction, from, to) in [("out", local, remote), ("in", remote, local)] {
        all.push(format!(
            "xfrm policy add src {from} dst {to} proto udp dport 4789 dir {direction} \
             tmpl src {from} dst {to} proto esp reqid 1 mode tunnel"
        ));
    }
    all.iter()
        .try_for_each(|words| say(netns, Path::new("ip"), words))
}
