//! Steps that set the mesh up and change its mode.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;

use super::flow::{Spec, Traffic, await_all};
use super::node::{Node, make_ca};
use super::plan;
use super::pod::Pod;
use super::report::median_ms;
use super::world::World;

/// Bounds of this issue; the flows run a little faster so that the average never falls below.
const FAST: u32 = 1000;
const SLOW: u32 = 50;
const PODS_PER_NODE: u8 = 2;
/// How long anything that is agreed between nodes may take.
pub(super) const SETTLE: Duration = Duration::from_secs(20);

impl World {
    /// Nodes with certificates and running processes, pods by CNI ADD, and flows between all of them.
    pub(super) fn set_up(&mut self) -> Result<()> {
        self.board.step("set-up");
        make_ca(&self.shared)?;
        for index in 1..=self.report.nodes {
            self.board.live(&format!("node {index}"));
            let node = Node::create(index, &self.bridge, &self.shared)?;
            self.nodes.push(node);
        }
        self.write_all_manifests("Disabled")?;
        for node in &mut self.nodes {
            node.start_dataplane()?;
            node.start_agent()?;
        }
        self.await_path("Clear", SETTLE)?;
        self.add_pods()?;
        self.note_dataplanes()?;
        self.start_flows()?;
        let flows = self.traffic()?.flows.len();
        self.board.done(&format!(
            "{} nodes, {} pods, {flows} flows, data plane: {}",
            self.nodes.len(),
            self.nodes.len() * usize::from(PODS_PER_NODE),
            self.report.dataplane
        ));
        Ok(())
    }

    /// Disabled: the capture must see the pods' packets, or it would prove nothing later.
    pub(super) fn disabled(&mut self) -> Result<()> {
        self.board.step("Disabled");
        let before = self.watch.now()?;
        let mark = self.traffic()?.mark();
        self.observe("capturing");
        let seen = self.watch.since(&before)?;
        let loss = self.traffic()?.lost_since(&mark, |_| true);
        self.report.clear_packets_disabled = Some(seen.wire.clear);
        let marked = seen.wire.marked;
        self.board.claim(
            "Disabled: the capture sees the pods' packets in clear",
            marked,
            "> 0",
            marked > 0,
        );
        self.board
            .claim("Disabled: no ESP", seen.wire.esp, "0", seen.wire.esp == 0);
        self.board
            .claim_none("Disabled: flow packets lost", loss.lost, &loss.details);
        self.board.done(&format!(
            "{} frames on the wire, {} of them pod packets in clear",
            seen.wire.frames, seen.wire.clear
        ));
        Ok(())
    }

    /// Required, switched on under the flows.
    pub(super) fn required(&mut self) -> Result<()> {
        self.board.step("Disabled → Required");
        let mark = self.traffic()?.mark();
        self.set_mode("Required")?;
        let took = self.await_path("Encrypted", SETTLE)?;
        let before = self.watch.now()?;
        let enforced = self.traffic()?.mark();
        self.observe("capturing");
        let seen = self.watch.since(&before)?;
        let loss = self.traffic()?.lost_since(&mark, |_| true);
        self.report.toggle_lost = Some(loss.lost);
        self.count_required(&seen);
        let pairs = self.pairs_with_esp(&seen.wire)?;
        self.report.pairs_encrypted = pairs;
        self.note_handshakes()?;
        self.board.claim_none(
            "Required switched on: flow packets lost",
            loss.lost,
            &loss.details,
        );
        self.board
            .claim_none("Required: clear pod packets", seen.clear(), &seen.details());
        let total = self.report.pairs_total;
        self.board.claim(
            "Required: pairs with ESP both ways",
            pairs,
            &total.to_string(),
            pairs == total,
        );
        let silent = self.traffic()?.silent_since(&enforced);
        self.board.claim_none(
            "Required: flows without an arrival",
            silent.len().try_into()?,
            &silent,
        );
        let (pings, lost) = self.ping_all()?;
        self.board.claim_none(
            "Required: pings between all pods lost",
            lost.len().try_into()?,
            &lost,
        );
        self.board.done(&format!(
            "enforced after {} ms, {} lost of {}, {} ESP packets, {} clear, {pings} pings",
            took.as_millis(),
            loss.lost,
            loss.sent,
            seen.wire.esp,
            seen.clear()
        ));
        Ok(())
    }

    /// To Disabled and back, under the flows.
    pub(super) fn toggle_again(&mut self) -> Result<()> {
        self.board.step("Required → Disabled → Required");
        let mark = self.traffic()?.mark();
        self.set_mode("Disabled")?;
        let off = self.await_path("Clear", SETTLE)?;
        let in_clear = self.traffic()?.mark();
        await_all(self.traffic()?, &in_clear, SETTLE)?;
        self.set_mode("Required")?;
        let on = self.await_path("Encrypted", SETTLE)?;
        let before = self.watch.now()?;
        self.observe("capturing");
        let seen = self.watch.since(&before)?;
        let loss = self.traffic()?.lost_since(&mark, |_| true);
        self.report.toggle_lost = Some(self.report.toggle_lost.unwrap_or(0) + loss.lost);
        self.count_required(&seen);
        self.board.claim_none(
            "Required off and on: flow packets lost",
            loss.lost,
            &loss.details,
        );
        self.board.claim_none(
            "Required again: clear pod packets",
            seen.clear(),
            &seen.details(),
        );
        self.board.done(&format!(
            "off in {} ms, on in {} ms, {} lost of {}",
            off.as_millis(),
            on.as_millis(),
            loss.lost,
            loss.sent
        ));
        Ok(())
    }

    /// Every node knows every node and the policy.
    pub(super) fn write_all_manifests(&self, mode: &str) -> Result<()> {
        for to in &self.nodes {
            for node in &self.nodes {
                let manifest = plan::node_manifest(node.index, &node.uid);
                to.write_manifest(&format!("{}.yaml", node.name), &manifest)?;
            }
            to.write_manifest("policy.yaml", &plan::policy_manifest(mode))?;
        }
        Ok(())
    }

    fn add_pods(&mut self) -> Result<()> {
        let mut times = Vec::new();
        for node in &mut self.nodes {
            for number in 1..=PODS_PER_NODE {
                let (pod, took) = Pod::add(node, number)?;
                times.push(took.as_secs_f64() * 1000.0);
                self.containers.push(pod.container_id.clone());
                node.pods.push(pod);
            }
        }
        let addresses: BTreeSet<_> = self
            .nodes
            .iter()
            .flat_map(|node| &node.pods)
            .map(|pod| pod.address)
            .collect();
        let expected = self.nodes.len() * usize::from(PODS_PER_NODE);
        let distinct = addresses.len();
        self.board.claim(
            "CNI ADD: pods with an address of their own",
            distinct,
            &expected.to_string(),
            distinct == expected,
        );
        self.report.cni_add_ms_p50 = median_ms(&times);
        Ok(())
    }

    /// One flow for every ordered pair of nodes; between the first two it is the fast one.
    fn start_flows(&mut self) -> Result<()> {
        let mut plan = Vec::new();
        for from in &self.nodes {
            for to in self.nodes.iter().filter(|to| to.index != from.index) {
                let which = usize::from((from.index + to.index) % PODS_PER_NODE);
                let (Some(source), Some(target)) = (from.pods.get(which), to.pods.get(which))
                else {
                    continue;
                };
                let rate = if from.index + to.index == 3 {
                    FAST
                } else {
                    SLOW
                };
                let spec = Spec {
                    from_node: from.name.clone(),
                    to_node: to.name.clone(),
                    to: target.address,
                    rate: rate + rate / 5,
                };
                plan.push((source, spec));
            }
        }
        let pods: Vec<&Pod> = self.nodes.iter().flat_map(|node| &node.pods).collect();
        let traffic = Traffic::start(plan, &pods, self.marker)?;
        let begin = traffic.mark();
        self.board.live("waiting for every flow's first packet");
        await_all(&traffic, &begin, SETTLE)?;
        self.traffic = Some(traffic);
        Ok(())
    }

    /// The flows' rates against what the issue asks for.
    pub(super) fn claim_rates(&mut self) -> Result<()> {
        let (mut fast, mut slow) = (f64::INFINITY, f64::INFINITY);
        for (spec, rate) in self.traffic()?.rates() {
            let slowest = if spec.rate > FAST {
                &mut fast
            } else {
                &mut slow
            };
            *slowest = slowest.min(rate);
        }
        self.board.claim(
            "packets/s each way on the fast pair",
            format!("{fast:.0}"),
            "≥ 1000",
            fast >= f64::from(FAST),
        );
        if slow.is_finite() {
            self.board.claim(
                "packets/s on the slowest other flow",
                format!("{slow:.0}"),
                "≥ 50",
                slow >= f64::from(SLOW),
            );
        }
        Ok(())
    }

    fn note_dataplanes(&mut self) -> Result<()> {
        let mut kinds = BTreeSet::new();
        for node in &mut self.nodes {
            kinds.extend(node.status()?.map(|status| status.dataplane));
        }
        let kinds: Vec<_> = kinds.into_iter().collect();
        self.report.dataplane = kinds.join("+");
        Ok(())
    }

    fn note_handshakes(&mut self) -> Result<()> {
        let mut times = Vec::new();
        for node in &mut self.nodes {
            let peers = node
                .status()?
                .map(|status| status.peers)
                .unwrap_or_default();
            let micros = peers.iter().filter_map(|peer| peer.handshake_us);
            #[allow(clippy::cast_precision_loss)]
            times.extend(micros.map(|micros| micros as f64 / 1000.0));
        }
        self.report.handshake_ms_p50 = median_ms(&times);
        Ok(())
    }

    /// Unordered pairs of nodes with ESP on the wire in both directions.
    fn pairs_with_esp(&self, wire: &espalier_capture::Counters) -> Result<u64> {
        let esp = |a: &Node, b: &Node| wire.pair(a.underlay(), b.underlay()).esp > 0;
        let mut pairs = 0;
        for (at, a) in self.nodes.iter().enumerate() {
            let later = self.nodes.iter().skip(at + 1);
            pairs += later.filter(|b| esp(a, b) && esp(b, a)).count();
        }
        Ok(pairs.try_into()?)
    }
}
