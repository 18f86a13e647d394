//! Steps in which processes die.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use espalier_rpc::agent::StatusReply;

use super::flow::{await_all, send_into_the_void};
use super::mesh_steps::SETTLE;
use super::plan;
use super::world::World;

/// How long the agent is away.
const AWAY: Duration = Duration::from_secs(1);
/// How long a node may take from the start of its processes until every flow arrives again.
const RECOVERY: Duration = Duration::from_secs(10);
/// Packets towards a pod of a node that does not exist.
const VOID_PACKETS: u64 = 100;

/// Inbound and outbound SPI by node and peer.
type Spis = BTreeMap<(String, String), (u32, u32)>;

impl World {
    /// SIGKILL to the first node's agent, which carries the fast flow, and a new one: nothing is lost, and the new
    /// agent replaces what it adopted.
    pub(super) fn restart_agent(&mut self) -> Result<()> {
        self.board.step("agent killed and restarted");
        let name = plan::name(1);
        let old = self.spis(&name)?;
        let before = self.watch.now()?;
        let mark = self.traffic()?.mark();
        let node = self.nodes.first_mut().context("no node")?;
        node.kill_agent()?;
        self.board.live("the agent is away");
        std::thread::sleep(AWAY);
        self.nodes.first_mut().context("no node")?.start_agent()?;
        let took = self.await_new_spis(&name, &old)?;
        let after = self.traffic()?.mark();
        await_all(self.traffic()?, &after, SETTLE)?;
        let loss = self.traffic()?.lost_since(&mark, |_| true);
        let seen = self.watch.since(&before)?;
        self.report.restart_lost = Some(loss.lost);
        self.count_required(&seen);
        self.board.claim_none(
            "agent killed and restarted: flow packets lost",
            loss.lost,
            &loss.details,
        );
        self.board.claim_none(
            "agent killed and restarted: clear pod packets",
            seen.clear(),
            &seen.details(),
        );
        let (replaced, pairs) = (self.replaced(&name, &old)?, old.len());
        self.board.claim(
            "agent restarted: adopted SAs replaced",
            replaced,
            &pairs.to_string(),
            replaced == pairs,
        );
        self.board.done(&format!(
            "{} lost of {}; adopted SAs replaced {} ms after the restart",
            loss.lost,
            loss.sent,
            took.as_millis()
        ));
        Ok(())
    }

    /// Both processes of the last node die while its pods go on sending, also to where nobody has ever been.
    pub(super) fn fail_closed(&mut self) -> Result<()> {
        self.board.step("agent and data plane killed");
        let name = plan::name(self.report.nodes);
        let before = self.watch.now()?;
        let mark = self.traffic()?.mark();
        let node = self.nodes.last_mut().context("no node")?;
        node.kill_agent()?;
        node.kill_dataplane()?;
        self.send_to_the_never_seen()?;
        self.observe("its pods go on sending");
        let others = self
            .traffic()?
            .lost_since(&mark, |spec| !spec.touches(&name));
        let held_back = self
            .traffic()?
            .not_arrived_since(&mark, |spec| spec.from_node == name);
        let seen = self.watch.since(&before)?;
        self.report.fail_closed_clear = Some(seen.clear());
        self.count_required(&seen);
        self.board.claim_none(
            "all dead on a node: clear pod packets",
            seen.clear(),
            &seen.details(),
        );
        self.board.claim(
            "all dead on a node: its pods' packets held back",
            held_back,
            "> 0",
            held_back > 0,
        );
        if others.sent > 0 {
            self.board.claim_none(
                "all dead on a node: packets lost between the others",
                others.lost,
                &others.details,
            );
        }
        let took = self.revive()?;
        self.board.done(&format!(
            "{} clear; {} packets of its pods held back; back by itself in {} ms",
            seen.clear(),
            held_back,
            took.as_millis()
        ));
        Ok(())
    }

    /// Starts the last node's processes; returns how long it took until every flow arrives again.
    fn revive(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let before = self.watch.now()?;
        let node = self.nodes.last_mut().context("no node")?;
        node.start_dataplane()?;
        node.start_agent()?;
        self.await_path("Encrypted", 2 * SETTLE)?;
        let mark = self.traffic()?.mark();
        await_all(self.traffic()?, &mark, SETTLE)?;
        let took = begin.elapsed();
        let seen = self.watch.since(&before)?;
        self.count_required(&seen);
        self.board.claim_none(
            "restarted node: clear pod packets",
            seen.clear(),
            &seen.details(),
        );
        self.board.claim(
            "restarted node: recovered by itself",
            format!("{} ms", took.as_millis()),
            "≤ 10 s",
            took <= RECOVERY,
        );
        Ok(took)
    }

    /// From a pod of the dead node and from one of a node that is well.
    fn send_to_the_never_seen(&self) -> Result<()> {
        for node in self.nodes.first().into_iter().chain(self.nodes.last()) {
            let pod = node.pods.first().context("the node has no pod")?;
            send_into_the_void(pod, plan::NEVER_SEEN, VOID_PACKETS, self.marker)?;
        }
        Ok(())
    }

    /// The SPIs of `name`'s pairs as both ends tell them.
    fn spis(&mut self, name: &str) -> Result<Spis> {
        let mut spis = Spis::new();
        for node in &mut self.nodes {
            let status = node.status()?;
            let status =
                status.with_context(|| format!("{}: its agent does not answer", node.name))?;
            spis.extend(spis_of(&status, name));
        }
        Ok(spis)
    }

    fn replaced(&mut self, name: &str, old: &Spis) -> Result<usize> {
        let new = self.spis(name)?;
        let differs = |(key, old): &(&(String, String), &(u32, u32))| {
            new.get(*key)
                .is_some_and(|new| new.0 != old.0 && new.1 != old.1)
        };
        Ok(old.iter().filter(differs).count())
    }

    /// Waits until each pair of `name` has other SPIs than in `old` and just the one pair of SAs.
    fn await_new_spis(&mut self, name: &str, old: &Spis) -> Result<Duration> {
        let name = name.to_owned();
        self.await_nodes("new SAs in place of the adopted ones", SETTLE, |status| {
            let pairs = status
                .peers
                .iter()
                .filter(|peer| status.node == name || peer.name == name);
            let open = pairs.filter(|peer| {
                let key = (status.node.clone(), peer.name.clone());
                let same = |(spi_in, spi_out): &(u32, u32)| {
                    *spi_in == peer.spi_in || *spi_out == peer.spi_out
                };
                let settled = peer.path == "Encrypted" && peer.enforced && peer.sas == 2;
                !settled || old.get(&key).is_none_or(same)
            });
            open.map(|peer| {
                format!(
                    "{} is {}, {} SAs, IKE {} {}",
                    peer.name, peer.path, peer.sas, peer.ike, peer.problem
                )
            })
            .collect()
        })
    }
}

fn spis_of(status: &StatusReply, name: &str) -> Spis {
    let pairs = status
        .peers
        .iter()
        .filter(|peer| status.node == name || peer.name == name);
    pairs
        .map(|peer| {
            (
                (status.node.clone(), peer.name.clone()),
                (peer.spi_in, peer.spi_out),
            )
        })
        .collect()
}
