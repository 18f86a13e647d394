//! Handshakes that are begun and left: the other side has half-open IKE SAs then and asks further ones for cookies.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use anyhow::{Context as _, Result};
use espalier_ike::{ChildConfig, Config, Connect, Endpoint, Identity, PeerAuth, PeerConfig};
use espalier_ike_io::{OsRng, unix_now};
use espalier_secret::SecretBytes;

/// Sends `count` IKE_SA_INITs to UDP 500 of `remote`.
pub(super) fn begin(local: IpAddr, remote: IpAddr, count: usize) -> Result<()> {
    let socket = UdpSocket::bind((local, 0))?;
    for _ in 0..count {
        socket.send_to(&init(local, remote)?, (remote, 500))?;
    }
    Ok(())
}

fn init(local: IpAddr, remote: IpAddr) -> Result<Vec<u8>> {
    let [own, other] = ["stranger", "host"].map(|name| Identity(name.into()));
    let mut endpoint = Endpoint::new(Config::new(own), Box::new(OsRng))?;
    let psk = PeerAuth::Psk(SecretBytes::new(vec![1; 32]));
    let selector = |address| espalier_ike::TrafficSelector {
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
        start: address,
        end: address,
    };
    let child = ChildConfig::new(vec![selector(local)], vec![selector(remote)]);
    let [local, remote] = [local, remote].map(|address| SocketAddr::new(address, 500));
    let now = Instant::now();
    endpoint.put_peer(
        PeerConfig::new(other.clone(), local, remote, psk, child),
        now,
    )?;
    endpoint.connect(&other, Connect::Fresh, now);
    while let Some(time) = endpoint.poll_timeout() {
        if let Some(transmit) = endpoint.poll_transmit() {
            return Ok(transmit.payload);
        }
        endpoint.handle_timeout(time, unix_now());
    }
    endpoint
        .poll_transmit()
        .map(|transmit| transmit.payload)
        .context("no IKE_SA_INIT")
}
