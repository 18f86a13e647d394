//! Steps in which nodes and pods come and go.

use std::time::Duration;

use anyhow::{Context, Result};

use super::flow::Responder;
use super::mesh_steps::SETTLE;
use super::node::Node;
use super::pod::Pod;
use super::world::World;
use super::{leftovers, secrets};

impl World {
    /// A node joins and leaves while the others go on.
    pub(super) fn add_and_remove_node(&mut self) -> Result<()> {
        self.board.step("node added and removed");
        let before = self.watch.now()?;
        let mark = self.traffic()?.mark();
        let joined = self.join()?;
        let joining = self.watch.since(&before)?;
        let newcomer = self.nodes.last().context("no node")?;
        let silent = self
            .nodes
            .iter()
            .filter(|node| node.index != newcomer.index)
            .filter(|node| {
                let esp = |a: &Node, b: &Node| joining.wire.pair(a.underlay(), b.underlay()).esp;
                esp(node, newcomer) == 0 || esp(newcomer, node) == 0
            });
        let silent: Vec<_> = silent
            .map(|node| format!("no ESP with {}", node.name))
            .collect();
        let left = self.leave()?;
        let loss = self.traffic()?.lost_since(&mark, |_| true);
        let seen = self.watch.since(&before)?;
        self.count_required(&seen);
        self.board.claim_none(
            "node added: pairs without ESP",
            silent.len().try_into()?,
            &silent,
        );
        self.board.claim_none(
            "node added and removed: packets lost by the others",
            loss.lost,
            &loss.details,
        );
        self.board.claim_none(
            "node added and removed: clear pod packets",
            seen.clear(),
            &seen.details(),
        );
        self.board.done(&format!(
            "encrypted with all others after {} ms, forgotten after {} ms, {} lost of {}",
            joined.as_millis(),
            left.as_millis(),
            loss.lost,
            loss.sent
        ));
        Ok(())
    }

    /// Adds a node with two pods, and pings.
    fn join(&mut self) -> Result<Duration> {
        let node = Node::create(self.report.nodes + 1, &self.bridge, &self.shared)?;
        self.nodes.push(node);
        self.write_all_manifests("Required")?;
        let node = self.nodes.last_mut().context("no node")?;
        node.start_dataplane()?;
        node.start_agent()?;
        let took = self.await_path("Encrypted", SETTLE)?;
        let node = self.nodes.last_mut().context("no node")?;
        for number in 1..=2 {
            let pod = Pod::add(node, number)?.0;
            self.containers.push(pod.container_id.clone());
            node.pods.push(pod);
        }
        let responders = node
            .pods
            .iter()
            .map(|pod| Responder::start(pod, self.marker));
        let responders = responders.collect::<Result<Vec<_>>>()?;
        let (_, lost) = self.ping_all()?;
        drop(responders);
        self.board.claim_none(
            "node added: pings between all pods lost",
            lost.len().try_into()?,
            &lost,
        );
        Ok(took)
    }

    /// Removes it again.
    fn leave(&mut self) -> Result<Duration> {
        let mut node = self.nodes.pop().context("no node")?;
        node.pods.iter().try_for_each(|pod| pod.del(&node))?;
        for other in &self.nodes {
            other.remove_manifest(&format!("{}.yaml", node.name))?;
        }
        let peers = self.nodes.len() - 1;
        let took = self.await_nodes("the node forgotten", SETTLE, |status| {
            let known = status.peers.len();
            (known != peers)
                .then(|| format!("knows {known} peers, not {peers}"))
                .into_iter()
                .collect()
        })?;
        node.stop()?;
        self.bridge.disconnect(&node.name)?;
        Ok(took)
    }

    /// DEL of every pod, end of every process, and a look at what is left.
    pub(super) fn tear_down(&mut self) -> Result<()> {
        self.board.step("tear-down");
        self.claim_rates()?;
        self.report.sent = self.traffic()?.sent();
        self.traffic = None;
        for node in &self.nodes {
            for pod in &node.pods {
                self.board.live(&format!("DEL {}", pod.name));
                pod.del(node)?;
            }
        }
        let mut left = Vec::new();
        for node in &mut self.nodes {
            left.extend(leftovers::of_pods(node)?);
        }
        self.board.claim_none(
            "DEL: veths, addresses, routes and leases left",
            left.len().try_into()?,
            &left,
        );
        for node in &mut self.nodes {
            self.board.live(&format!("stopping {}", node.name));
            left.extend(node.stop()?);
            left.extend(leftovers::of_processes(node)?);
        }
        let leaks = secrets::in_logs(&self.shared, &self.containers)?;
        self.board.claim_none(
            "key material in the logs (lines)",
            leaks.len().try_into()?,
            &leaks,
        );
        self.nodes.clear();
        self.remove_gateway();
        left.extend(leftovers::of_the_sandbox()?);
        self.report.leftovers = Some(left.len().try_into()?);
        self.board.claim_none(
            "processes, devices, namespaces and files left",
            left.len().try_into()?,
            &left,
        );
        self.board.done(&format!(
            "{} leftovers, {} packets sent in all",
            left.len(),
            self.report.sent
        ));
        Ok(())
    }
}
