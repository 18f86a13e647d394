//! Flows between all pods while something happens, and what they and the kernel's error counters say in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use espalier_capture::Counters;
use espalier_e2e::{Cluster, Family, Flow, Flows, Node, Plane, Pod, errors_between, stat};

use crate::ground::Populated;
use crate::report::Measured;

/// Of a policy's spec: raw ESP alone.
pub(crate) const NO_UDP: &str = "udpEncapsulation: Never";

/// Flows each way between each two pods, in each IP version that they have.
pub(crate) struct Load {
    flows: Flows,
    stats: BTreeMap<String, BTreeMap<String, u64>>,
    seen: Counters,
}

impl Load {
    /// Returns when packets of all flows arrive; what counts begins then.
    pub(crate) fn start(ground: &Populated) -> Result<Self> {
        Self::between(&ground.mesh, pairs(&ground.pods))
    }

    /// Flows from the first to the second of each pair.
    pub(crate) fn between(mesh: &Cluster, pairs: Vec<(&Pod, &Pod)>) -> Result<Self> {
        let mut flows = Vec::new();
        for family in mesh.setup.shape.pods {
            for (from, to) in &pairs {
                let port = Flows::FIRST_PORT + u16::try_from(flows.len())?;
                flows.push(Flow::start_on(*family, from, to, port)?);
            }
        }
        Ok(Self {
            flows: Flows::count_from_now(flows)?,
            stats: stats(mesh)?,
            seen: mesh.watch.now()?,
        })
    }

    /// Waits until packets that are sent from now on arrive.
    pub(crate) fn arrives(&self) -> Result<()> {
        self.flows.arrive()
    }

    /// Lets it run on for this long.
    pub(crate) fn run(&self, duration: Duration) {
        std::thread::sleep(duration);
    }

    /// Ends the flows; adds what was counted. Returns what was lost and when, for the case's detail.
    pub(crate) fn end(self, mesh: &Cluster, measured: &mut Measured) -> Result<String> {
        let mut said = Vec::new();
        for count in self.flows.counts() {
            add(&mut measured.sent, count.sent);
            add(&mut measured.lost, count.lost);
            if count.lost > 0 {
                said.push(format!("{} lost, sent at {}", count.lost, count.when));
            }
        }
        add(&mut measured.xfrm_errors, 0);
        for (node, after) in stats(mesh)? {
            let none = BTreeMap::new();
            let before = self.stats.get(&node).unwrap_or(&none);
            for (counter, by) in errors_between(before, &after) {
                add(&mut measured.xfrm_errors, by);
                said.push(format!("{node} {counter} +{by}"));
            }
        }
        add(
            &mut measured.clear_packets,
            mesh.watch.now()?.since(&self.seen).clear,
        );
        Ok(said.join("; "))
    }

    /// [`Self::end`] of a load of which nothing may be lost.
    pub(crate) fn ends_without_loss(self, mesh: &Cluster, measured: &mut Measured) -> Result<()> {
        let said = self.end(mesh, measured)?;
        let nothing = measured.lost == Some(0) && measured.xfrm_errors == Some(0);
        ensure!(
            nothing,
            "expected no loss and no error of XFRM, found: {said}"
        );
        Ok(())
    }

    /// [`Self::end`] of a load under which the policy was toggled: nothing is lost, and `clear`, what was seen in clear while it was
    /// enforced, is 0. In between clear packets are right.
    pub(crate) fn toggled_without_loss(
        self,
        mesh: &Cluster,
        clear: u64,
        measured: &mut Measured,
    ) -> Result<()> {
        let ended = self.ends_without_loss(mesh, measured);
        measured.clear_packets = Some(clear);
        ended?;
        nothing_clear(measured)
    }
}

/// Fails when pod packets were seen in clear.
pub(crate) fn nothing_clear(measured: &Measured) -> Result<()> {
    let clear = measured.clear_packets.unwrap_or_default();
    ensure!(clear == 0, "{clear} pod packets on the wire in clear");
    Ok(())
}

fn stats(mesh: &Cluster) -> Result<BTreeMap<String, BTreeMap<String, u64>>> {
    let raw = mesh.setup.spec.iter().any(|line| line == NO_UDP);
    let of = |node: &Node| {
        let mut counters = stat(&node.netns)?;
        // A kernel that knows ESP looks for a state for the raw packets, too, that its node's process opens.
        if raw && node.plane == Some(Plane::Userspace) {
            counters.remove("XfrmInNoStates");
        }
        Ok((node.name.clone(), counters))
    };
    mesh.nodes.iter().map(of).collect()
}

fn add(sum: &mut Option<u64>, more: u64) {
    *sum = Some(sum.unwrap_or_default() + more);
}

fn pairs(pods: &[Pod]) -> Vec<(&Pod, &Pod)> {
    let mut pairs = Vec::new();
    for from in pods {
        pairs.extend(
            pods.iter()
                .filter(|to| to.name != from.name)
                .map(|to| (from, to)),
        );
    }
    pairs
}

/// The first IP version that the pods have.
pub(crate) fn first_family(ground: &Populated) -> Family {
    ground
        .mesh
        .setup
        .shape
        .pods
        .first()
        .copied()
        .unwrap_or(Family::V4)
}
