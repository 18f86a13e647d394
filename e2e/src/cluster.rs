//! A mesh of nodes, and what its agents say of it.

use anyhow::{Context, Result, ensure};
use espalier_rpc::agent::{PeerStatus, StatusReply};
use espalier_testnet::{Bridge, Netns};

use crate::bench::{Bench, until};
use crate::flow::exchange_on;
use crate::node::{Node, Plane, host_addresses};
use crate::plan::{self, Family, Mode, Shape};
use crate::pod::Pod;
use crate::watch::Watch;

/// Nodes `node-1` ... on one wire, with a gateway that would carry away whatever follows a default route.
#[derive(Debug)]
pub struct Cluster {
    /// In order of their index.
    pub nodes: Vec<Node>,
    /// What crosses the wire.
    pub watch: Watch,
    /// A host without Espalier.
    pub gateway: Netns,
    /// The wire.
    pub bridge: Bridge,
    /// What it is like.
    pub setup: Setup,
}

/// How a mesh differs from the usual one: IPv4, the data plane that the machine allows, the policy's defaults.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// IP versions.
    pub shape: Shape,
    /// Further lines of the policy's spec, such as `overlay: IPIP`.
    pub spec: Vec<String>,
    /// Data plane of every node; a node's own may be set before it starts.
    pub plane: Option<Plane>,
}

impl Cluster {
    /// The wire and `count` hosts with all manifests and certificates; nothing of Espalier runs yet.
    ///
    /// # Errors
    /// The kernel or `espalier pki` refuses.
    pub fn prepare(bench: &Bench, count: u8, mode: Mode) -> Result<Self> {
        Self::prepare_with(bench, count, mode, Setup::default())
    }

    /// The same for a mesh that differs from the usual one.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn prepare_with(bench: &Bench, count: u8, mode: Mode, setup: Setup) -> Result<Self> {
        let shape = setup.shape;
        let bridge = Bridge::new("wire", plan::UNDERLAY_MTU)?;
        let gateway = Netns::new("gateway")?;
        bridge.connect(&gateway, "eth0", "gateway")?;
        gateway.run(|| gateway_network(shape))??;
        let nodes = (1..=count).map(|index| Node::create(bench, &bridge, index, shape));
        let mut nodes: Vec<Node> = nodes.collect::<Result<_>>()?;
        for node in &mut nodes {
            bench.pki.issue(&node.name, &node.uid, &[])?;
            node.plane = setup.plane;
        }
        let cluster = Self {
            nodes,
            watch: Watch::start(&bridge)?,
            gateway,
            bridge,
            setup,
        };
        for index in 1..=count {
            let uid = cluster.node_ref(index)?.uid.clone();
            cluster.announce_node(index, &uid)?;
        }
        cluster.set_mode(mode)?;
        Ok(cluster)
    }

    /// [`Self::prepare`] with everything started; waits for nothing.
    ///
    /// # Errors
    /// As [`Self::prepare`], or a process cannot be started.
    pub fn start(bench: &Bench, count: u8, mode: Mode) -> Result<Self> {
        let mut cluster = Self::prepare(bench, count, mode)?;
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Starts both processes of every node.
    ///
    /// # Errors
    /// A process cannot be started.
    pub fn start_all(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::start)
    }

    /// Node `index`, from 1.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&mut self, index: u8) -> Result<&mut Node> {
        let mut nodes = self.nodes.iter_mut();
        let found = nodes.find(|node| node.index == index);
        found.with_context(|| format!("no node {index}"))
    }

    /// The same, to look at only.
    ///
    /// # Errors
    /// There is none.
    pub fn node_ref(&self, index: u8) -> Result<&Node> {
        let found = self.nodes.iter().find(|node| node.index == index);
        found.with_context(|| format!("no node {index}"))
    }

    /// Puts a Node object into every node's folder, as `node-<index>.yaml`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn announce_node(&self, index: u8, uid: &str) -> Result<()> {
        let text = self.setup.shape.node_manifest(index, uid);
        let file = format!("{}.yaml", plan::name(index));
        let mut nodes = self.nodes.iter();
        nodes.try_for_each(|node| node.write_manifest(&file, &text))
    }

    /// Gives every node the policy.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn set_mode(&self, mode: Mode) -> Result<()> {
        let text = self.setup.shape.policy(mode, &self.setup.spec);
        let mut nodes = self.nodes.iter();
        nodes.try_for_each(|node| node.write_manifest("policy.yaml", &text))
    }

    /// Asks node `index` until `missing` is content, which says what is missing as a text.
    ///
    /// # Errors
    /// It is not: the text holds the last complaint and the whole status.
    pub fn await_status(
        &mut self,
        index: u8,
        what: &str,
        missing: impl Fn(&StatusReply) -> Result<(), String>,
    ) -> Result<StatusReply> {
        let node = self.node(index)?;
        let what = format!("{}: {what}", node.name);
        until(&what, || {
            Ok(node.status()?.and_then(|status| match missing(&status) {
                Ok(()) => Ok(status),
                Err(missing) => Err(format!("{missing}\n{status:#?}")),
            }))
        })
    }

    /// Waits until the nodes `indexes` say of each other what `missing` wants.
    ///
    /// # Errors
    /// They do not.
    pub fn await_pairs(
        &mut self,
        indexes: &[u8],
        missing: impl Fn(&PeerStatus) -> Result<(), String>,
    ) -> Result<()> {
        for index in indexes {
            for other in indexes.iter().filter(|other| *other != index) {
                self.await_peer(*index, *other, &missing)?;
            }
        }
        Ok(())
    }

    /// Waits until node `index` says of its peer `other` what `missing` wants.
    ///
    /// # Errors
    /// It does not.
    pub fn await_peer(
        &mut self,
        index: u8,
        other: u8,
        missing: impl Fn(&PeerStatus) -> Result<(), String>,
    ) -> Result<PeerStatus> {
        let name = plan::name(other);
        let of = |status: &StatusReply| status.peers.iter().find(|p| p.name == name).cloned();
        let status = self.await_status(index, &format!("peer {name}"), |status| {
            let peer = of(status).ok_or_else(|| format!("no peer {name}"))?;
            missing(&peer).map_err(|missing| format!("{name} {missing}"))
        })?;
        of(&status).context("the peer is gone")
    }

    /// The rest of the mesh works: the nodes `indexes` encrypt towards each other, refuse clear packets, and pass packets
    /// between their first pods, none of them in clear.
    ///
    /// # Errors
    /// They do not.
    pub fn works(&mut self, indexes: &[u8], pods: &[Pod]) -> Result<()> {
        self.await_pairs(indexes, encrypted)?;
        let before = self.watch.now()?;
        for family in self.setup.shape.pods {
            exchange_all(*family, pods)?;
        }
        let seen = self.watch.nothing_clear_since(&before)?;
        ensure!(seen.esp > 0, "packets arrived, but no ESP was on the wire");
        Ok(())
    }

    /// A pod on each of these nodes.
    ///
    /// # Errors
    /// The CNI plugin refuses.
    pub fn pods(&self, indexes: &[u8]) -> Result<Vec<Pod>> {
        let nodes = indexes.iter().map(|index| self.node_ref(*index));
        nodes.map(|node| Pod::add(node?, 1)).collect()
    }

    /// Waits until one of the node's problems holds all of `words`.
    ///
    /// # Errors
    /// None does.
    pub fn await_problem(&mut self, index: u8, words: &[&str]) -> Result<()> {
        self.await_status(index, &format!("a problem with {words:?}"), |status| {
            let mut problems = status.problems.iter();
            let found = problems.any(|problem| words.iter().all(|word| problem.contains(word)));
            found
                .then_some(())
                .ok_or_else(|| "no such problem".to_owned())
        })
        .map(drop)
    }

    /// Waits until node `index` says all of `words` in the problem of its peer `other`.
    ///
    /// # Errors
    /// It does not.
    pub fn await_peer_problem(&mut self, index: u8, other: u8, words: &[&str]) -> Result<()> {
        self.await_peer(index, other, |peer| expect_words(&peer.problem, words))
            .map(drop)
    }
}

fn exchange_all(family: Family, pods: &[Pod]) -> Result<()> {
    for (i, a) in pods.iter().enumerate() {
        for b in &pods[i + 1..] {
            exchange_on(family, a, b, 20)?;
        }
    }
    Ok(())
}

fn gateway_network(shape: Shape) -> Result<()> {
    host_addresses(plan::GATEWAY, plan::GATEWAY_V6, shape)
}

/// The pair encrypts and refuses clear packets.
///
/// # Errors
/// What it does instead.
pub fn encrypted(peer: &PeerStatus) -> Result<(), String> {
    on_path(peer, "Encrypted")?;
    let enforced = peer.enforced && !peer.accepts_clear;
    enforced
        .then_some(())
        .ok_or_else(|| "is not enforced".to_owned())
}

/// The pair is blocked and accepts nothing in clear.
///
/// # Errors
/// What it does instead.
pub fn blocked(peer: &PeerStatus) -> Result<(), String> {
    on_path(peer, "Blocked")?;
    let closed = !peer.accepts_clear;
    closed
        .then_some(())
        .ok_or_else(|| "lets clear packets in".to_owned())
}

/// The pair is on this path.
///
/// # Errors
/// Which one it is on.
pub fn on_path(peer: &PeerStatus, path: &str) -> Result<(), String> {
    let there = peer.path == path;
    there
        .then_some(())
        .ok_or_else(|| format!("is {}, IKE {}: {:?}", peer.path, peer.ike, peer.problem))
}

/// A message that names cause and remedy: it holds all of `words`.
///
/// # Errors
/// The first that is missing.
pub fn expect_words(message: &str, words: &[&str]) -> Result<(), String> {
    let missing = words.iter().find(|word| !message.contains(*word));
    missing.map_or(Ok(()), |word| {
        Err(format!("{word:?} is not in {message:?}"))
    })
}
