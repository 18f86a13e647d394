//! WireGuard around a pod's packet, by wireguard-go: what is on the wire is the protocol's, the same as the kernel's.

use std::fs;
use std::path::Path;

use anyhow::Result;
use espalier_bench_ike::wireguard::{Keys, start};

use super::count::{Place, Sizes, socket};
use super::espalier::{say, two_hosts};
use super::shape::Outer;

const PORT: u16 = 51820;

/// Two hosts with a tunnel.
pub(crate) fn measure(folder: &Path) -> Result<Sizes> {
    let hosts = two_hosts()?;
    let wg = folder.join("wg");
    let keys = [Keys::new(&wg)?, Keys::new(&wg)?];
    let mut daemons = Vec::new();
    for (own, netns) in hosts.iter().enumerate() {
        daemons.push(start(
            &folder.join("wireguard-go"),
            netns,
            &format!("wg{own}"),
        )?);
        let (peer, other) = (&keys[1 - own].public, 1 - own);
        let private = format!("/run/wg{own}.key");
        fs::write(&private, &keys[own].private)?;
        let words = format!(
            "set wg{own} listen-port {PORT} private-key {private} peer {peer} \
             endpoint 10.99.0.1{}:{PORT} allowed-ips 10.244.0.0/16",
            other + 1
        );
        say(netns, &wg, &words)?;
        for words in [
            format!("address add 10.244.0.{}/24 dev wg{own}", own + 1),
            format!("link set wg{own} mtu 1500 up"),
        ] {
            say(netns, Path::new("ip"), &words)?;
        }
    }
    let [left, right] = &hosts;
    let place = Place {
        sender: socket(left, "10.244.0.1")?,
        to: "10.244.0.2:7000".parse()?,
        netns: right,
        device: "eth0",
        leaving: false,
    };
    let sizes = place.measure(Outer::Udp(PORT));
    drop(daemons);
    sizes
}
