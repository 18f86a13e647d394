//! Packets of our own to every other node, by the way that pods' packets take: to the other node's own address in its pod CIDR. It
//! answers a connection to a port that nobody has, by refusing it, so nothing has to listen and no right is needed. What SAs sealed
//! meanwhile says whether the packets went through them.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::Finding;
use crate::model::{Node, Peer};

/// discard (RFC 863): where somebody does listen, the connection is closed at once.
const PORT: u16 = 9;
/// Connections to each address; the first may have to wait for SAs.
const TRIES: u32 = 3;
/// Under `establish: OnDemand` the handshake is in it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Peers that are asked at once.
const AT_ONCE: usize = 64;

/// What came of it with one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Probe {
    pub(super) peer: String,
    /// Its path, after the probes.
    pub(super) path: String,
    /// Of the peer, one for each of its pod CIDRs that this node can send to.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) tried: u32,
    pub(super) answered: u32,
    /// The shortest time to an answer.
    pub(super) rtt_us: Option<u64>,
    /// Packets that SAs with this peer sealed and opened meanwhile, pods' too.
    pub(super) sealed: u64,
    pub(super) opened: u64,
    /// SAs were replaced meanwhile: the counts are too low.
    pub(super) replaced: bool,
}

/// Asks every node that `status` knows.
///
/// # Errors
/// A pod CIDR cannot be read.
pub(super) fn send(status: &Node) -> Result<Vec<Probe>> {
    let peers: Result<Vec<(String, Vec<IpAddr>)>> = status
        .node_peers()
        .map(|peer| Ok((peer.name.clone(), addresses(status, peer)?)))
        .collect();
    let peers = peers?;
    crate::cluster::block_on(async {
        let asked = futures_util::stream::iter(peers).map(|(peer, addresses)| ask(peer, addresses));
        Ok(asked.buffer_unordered(AT_ONCE).collect().await)
    })
}

/// In the families that this node has pods of.
fn addresses(status: &Node, peer: &Peer) -> Result<Vec<IpAddr>> {
    let own = super::cidrs(&status.pod_cidrs)?;
    let has = |cidr: &IpNet| {
        own.iter()
            .any(|own| own.addr().is_ipv4() == cidr.addr().is_ipv4())
    };
    let theirs =
        super::cidrs(&peer.pod_cidrs).with_context(|| format!("pod CIDRs of {}", peer.name))?;
    Ok(theirs
        .into_iter()
        .filter(has)
        .map(espalier_peers::gateway)
        .collect())
}

async fn ask(peer: String, addresses: Vec<IpAddr>) -> Probe {
    let mut probe = Probe {
        peer,
        addresses,
        ..Probe::default()
    };
    for address in probe.addresses.clone() {
        for _ in 0..TRIES {
            probe.tried += 1;
            let Some(took) = connect(SocketAddr::new(address, PORT)).await else {
                continue;
            };
            probe.answered += 1;
            let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            probe.rtt_us = Some(probe.rtt_us.map_or(took, |shortest| shortest.min(took)));
        }
    }
    probe
}

/// How long it took until the other host answered, whatever it said; `None`: it did not.
async fn connect(to: SocketAddr) -> Option<Duration> {
    let begun = Instant::now();
    let done = tokio::time::timeout(PATIENCE, TcpStream::connect(to)).await;
    let answered = match done.ok()? {
        Ok(_) => true,
        Err(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
        ),
    };
    answered.then(|| begun.elapsed())
}

/// Puts in what SAs sealed and opened between two looks, sorted by peer.
pub(super) fn count(probes: Vec<Probe>, before: &Node, after: &Node) -> Vec<Probe> {
    let by_name = |node: &Node| -> BTreeMap<String, Peer> {
        let peers = node.node_peers().cloned();
        peers.map(|peer| (peer.name.clone(), peer)).collect()
    };
    let (old, new) = (by_name(before), by_name(after));
    let mut counted: Vec<Probe> = probes
        .into_iter()
        .map(|mut probe| {
            let (old, new) = (old.get(&probe.peer), new.get(&probe.peer));
            let (Some(old), Some(new)) = (old, new) else {
                probe.replaced = true;
                return probe;
            };
            probe.path.clone_from(&new.path);
            probe.replaced =
                (old.spi_in, old.spi_out, old.sas) != (new.spi_in, new.spi_out, new.sas);
            probe.sealed = new.packets_out.saturating_sub(old.packets_out);
            probe.opened = new.packets_in.saturating_sub(old.packets_in);
            probe
        })
        .collect();
    counted.sort_by(|a, b| a.peer.cmp(&b.peer));
    counted
}

/// In a line.
pub(super) fn summary(probes: &[Probe]) -> String {
    let reached = probes.iter().filter(|probe| probe.answered > 0).count();
    let sum = |field: fn(&Probe) -> u64| probes.iter().map(field).sum::<u64>();
    format!(
        "{reached} of {} peers answered, {} packets sealed and {} opened meanwhile",
        probes.len(),
        sum(|probe| probe.sealed),
        sum(|probe| probe.opened)
    )
}

/// What is wrong with them.
pub(super) fn judge(probes: &[Probe]) -> Vec<Finding> {
    probes.iter().filter_map(finding).collect()
}

fn finding(probe: &Probe) -> Option<Finding> {
    let Probe {
        peer,
        answered,
        sealed,
        opened,
        ..
    } = probe;
    let addresses: Vec<String> = probe.addresses.iter().map(ToString::to_string).collect();
    let addresses = addresses.join(", ");
    let protected = matches!(probe.path.as_str(), "Encrypted" | "Authenticated");
    match () {
        () if probe.path == "Blocked" && *answered > 0 => Some(Finding::new(
            format!("{peer} is blocked, but answers at {addresses}: packets to its pods pass"),
            "see the findings on routes and policies; block the pair until they are settled",
        )),
        () if protected && probe.tried > 0 && *answered == 0 => Some(Finding::new(
            format!(
                "{peer} does not answer at {addresses} ({} tries; SAs sealed {sealed} packets and opened {opened} meanwhile)",
                probe.tried
            ),
            "does a firewall of one of the nodes drop packets between pod addresses, or ESP? See espalier status on both",
        )),
        () if protected && !probe.replaced && *sealed < u64::from(*answered) => Some(Finding::new(
            format!(
                "{peer} answered {answered} packets, but its SAs sealed {sealed}: they went another way"
            ),
            "see the findings on routes and policies; block the pair until they are settled",
        )),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(path: &str, answered: u32, sealed: u64) -> Probe {
        Probe {
            peer: "node-2".into(),
            path: path.into(),
            addresses: vec!["10.244.2.1".parse().unwrap()],
            tried: 3,
            answered,
            sealed,
            ..Probe::default()
        }
    }

    #[test]
    fn an_answer_that_no_sa_sealed_is_found() {
        for (path, answered, sealed, expected) in [
            ("Encrypted", 3, 6, None),
            ("Encrypted", 3, 2, Some("went another way")),
            ("Encrypted", 0, 3, Some("does not answer at 10.244.2.1")),
            ("Blocked", 0, 0, None),
            ("Blocked", 1, 0, Some("is blocked, but answers")),
            ("Clear", 3, 0, None),
        ] {
            let found = finding(&probe(path, answered, sealed));
            let what = found.as_ref().map(|finding| finding.what.as_str());
            match expected {
                None => assert_eq!(what, None),
                Some(words) => assert!(what.unwrap().contains(words), "{what:?}"),
            }
        }
        let replaced = Probe {
            replaced: true,
            ..probe("Encrypted", 3, 0)
        };
        assert_eq!(finding(&replaced), None);
    }

    #[test]
    fn what_was_sealed_meanwhile_is_counted() {
        let node = |out, spi| Node {
            peers: vec![Peer {
                name: "node-2".into(),
                path: "Encrypted".into(),
                packets_out: out,
                spi_out: spi,
                ..Peer::default()
            }],
            ..Node::default()
        };
        let counted = |after| count(vec![probe("", 3, 0)], &node(10, 1), &after);
        assert_eq!(
            (
                counted(node(16, 1))[0].sealed,
                counted(node(16, 1))[0].replaced
            ),
            (6, false)
        );
        assert!(counted(node(2, 9))[0].replaced);
        assert!(counted(Node::default())[0].replaced, "the peer is gone");
    }

    /// The loopback device refuses at once, and nobody is behind an address for documentation.
    #[test]
    fn a_refused_connection_is_an_answer() {
        let status = Node {
            pod_cidrs: vec!["127.9.0.0/24".into()],
            peers: vec![Peer {
                name: "self".into(),
                pod_cidrs: vec!["127.8.0.0/24".into(), "fd00::/64".into()],
                ..Peer::default()
            }],
            ..Node::default()
        };
        let probes = send(&status).unwrap();
        assert_eq!((probes[0].tried, probes[0].answered), (TRIES, TRIES));
        assert!(probes[0].rtt_us.is_some());
        assert_eq!(
            probes[0].addresses,
            ["127.8.0.1".parse::<IpAddr>().unwrap()]
        );
    }
}
