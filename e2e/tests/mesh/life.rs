//! What happens to a healthy mesh: restarts, toggles, quiet.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use espalier_dataplane_core::{Direction, SaInfo};
use espalier_e2e::{Cluster, Flow, Mode, Monitor, Node, encrypted, on_path, states, test, until};

/// The agent compares the kernel with its wishes at least this often.
const RESYNC: Duration = Duration::from_secs(10);

#[test]
fn rekeys_under_flows_lose_nothing() {
    test("life::rekeys_under_flows_lose_nothing", |bench| {
        let mut mesh = Cluster::prepare(bench, 2, Mode::Required)?;
        for node in &mut mesh.nodes {
            node.rekey_seconds = Some(10);
        }
        mesh.start_all()?;
        let pods = mesh.pods(&[1, 2])?;
        mesh.works(&[1, 2], &pods)?;
        let flows = [
            Flow::start(&pods[0], &pods[1], 7001)?,
            Flow::start(&pods[1], &pods[0], 7002)?,
        ];
        for flow in &flows {
            flow.await_since(flow.mark())?;
        }
        let marks = flows.each_ref().map(Flow::mark);
        let mut seen = Vec::new();
        for _ in 0..3 {
            // Three pairs of SAs, one after the other: two rekeys.
            let next = until("the next outbound SA", || {
                let now = active(&sas(mesh.node_ref(1)?)?)?;
                let fresh = !seen.contains(&now);
                Ok(fresh.then_some(now).ok_or_else(|| "the old one".to_owned()))
            })?;
            seen.push(next);
        }
        for (flow, mark) in flows.iter().zip(marks) {
            flow.await_since(flow.mark())?;
            flow.none_lost_since(mark)?;
        }
        Ok(())
    });
}

#[test]
fn a_killed_agent_comes_back_and_adopts() {
    test("life::a_killed_agent_comes_back_and_adopts", |bench| {
        let mut mesh = Cluster::start(bench, 2, Mode::Required)?;
        let pods = mesh.pods(&[1, 2])?;
        mesh.works(&[1, 2], &pods)?;
        let flows = [
            Flow::start(&pods[0], &pods[1], 7001)?,
            Flow::start(&pods[1], &pods[0], 7002)?,
        ];
        for flow in &flows {
            flow.await_since(flow.mark())?;
        }
        let marks = flows.each_ref().map(Flow::mark);
        let old = sas(mesh.node_ref(1)?)?;
        let (outbound, capture) = (active(&old)?, mesh.watch.now()?);

        mesh.node(1)?.kill_agent()?;
        for flow in &flows {
            flow.await_since(flow.mark())?;
        }
        ensure!(
            sas(mesh.node_ref(1)?)?.len() == old.len(),
            "SAs went with the agent"
        );
        mesh.node(1)?.start_agent()?;

        // One switch, from the adopted SA to its successor: never none in between.
        let replaced = until("a new outbound SA", || {
            let now = active(&sas(mesh.node_ref(1)?)?)?;
            Ok((now != outbound)
                .then_some(now)
                .ok_or_else(|| "still the adopted one".to_owned()))
        })?;
        for index in [1, 2] {
            until("the adopted SAs to be removed", || {
                let found = sas(mesh.node_ref(index)?)?;
                let gone = found.len() == 2 && old.iter().all(|old| !holds(&found, old.spi.0));
                Ok(gone
                    .then_some(())
                    .ok_or_else(|| format!("node {index} has {found:?}")))
            })?;
        }
        ensure!(
            active(&sas(mesh.node_ref(1)?)?)? == replaced,
            "replaced twice"
        );
        mesh.await_pairs(&[1, 2], encrypted)?;
        for (flow, mark) in flows.iter().zip(marks) {
            flow.none_lost_since(mark)?;
        }
        mesh.watch.nothing_clear_since(&capture).map(drop)
    });
}

/// Every pair has two ends that begin at once.
#[test]
fn agents_killed_all_at_once_adopt_and_lose_nothing() {
    test(
        "life::agents_killed_all_at_once_adopt_and_lose_nothing",
        |bench| {
            let mut mesh = Cluster::start(bench, 3, Mode::Required)?;
            let pods = mesh.pods(&[1, 2, 3])?;
            mesh.works(&[1, 2, 3], &pods)?;
            let flows = [
                Flow::start(&pods[0], &pods[1], 7001)?,
                Flow::start(&pods[1], &pods[2], 7002)?,
                Flow::start(&pods[2], &pods[0], 7003)?,
            ];
            all_arrive(&flows)?;
            let marks = flows.each_ref().map(Flow::mark);
            let old: Vec<_> = mesh.nodes.iter().map(sas).collect::<Result<_>>()?;
            mesh.nodes.iter_mut().try_for_each(Node::kill_agent)?;
            mesh.nodes.iter_mut().try_for_each(Node::start_agent)?;
            for (node, old) in mesh.nodes.iter().zip(&old) {
                until("fresh SAs alone, two for each peer", || {
                    let found = sas(node)?;
                    let fresh = old.iter().all(|old| !holds(&found, old.spi.0));
                    let done = fresh && found.len() == 4;
                    Ok(done
                        .then_some(())
                        .ok_or_else(|| format!("{} has {found:?}", node.name)))
                })?;
            }
            for (flow, mark) in flows.iter().zip(marks) {
                flow.none_lost_since(mark)?;
            }
            mesh.works(&[1, 2, 3], &pods)
        },
    );
}

#[test]
fn an_idle_or_restarted_agent_writes_nothing_to_the_kernel() {
    test(
        "life::an_idle_or_restarted_agent_writes_nothing_to_the_kernel",
        |bench| {
            let mut mesh = Cluster::start(bench, 2, Mode::Required)?;
            let pods = mesh.pods(&[1, 2])?;
            mesh.works(&[1, 2], &pods)?;
            let old = active(&sas(mesh.node_ref(1)?)?)?;
            let monitor = Monitor::start(&bench.logs(), &mesh.node_ref(1)?.netns)?;

            mesh.node(1)?.kill_agent()?;
            mesh.node(1)?.start_agent()?;
            until("the adopted SA to be replaced", || {
                let new = active(&sas(mesh.node_ref(1)?)?)? != old;
                Ok(new
                    .then_some(())
                    .ok_or_else(|| "it is still in use".to_owned()))
            })?;
            // Long enough for one comparison with the kernel.
            std::thread::sleep(RESYNC + Duration::from_secs(1));
            mesh.await_pairs(&[1, 2], encrypted)?;
            let changes = monitor.changes(&mesh.node_ref(1)?.netns)?;
            ensure!(changes.is_empty(), "the kernel was changed:\n{changes}");
            // Neighbours, forwarding entries and XFRM policies, as the agent counts them.
            let log = mesh.node_ref(1)?.log("agent")?;
            let (_, second_life) = log
                .rsplit_once(" starting ")
                .context("no start in the log")?;
            let writes: Vec<&str> = second_life
                .lines()
                .filter_map(|line| line.split_once("kernel brought in line "))
                .map(|(_, writes)| writes)
                .collect();
            // Where the kernel encrypts its policies name the SA: those of pods' packets and of probes.
            let in_kernel = !states(&mesh.node_ref(1)?.netns)?.is_empty();
            let expected: &[&str] = if in_kernel { &["writes=2"] } else { &[] };
            ensure!(writes == expected, "it wrote to the kernel: {writes:?}");
            Ok(())
        },
    );
}

#[test]
fn toggling_through_all_modes_loses_nothing() {
    test("life::toggling_through_all_modes_loses_nothing", |bench| {
        let mut mesh = Cluster::start(bench, 3, Mode::Disabled)?;
        let pods = mesh.pods(&[1, 2, 3])?;
        mesh.await_pairs(&[1, 2, 3], |peer| on_path(peer, "Clear"))?;
        let flows = [
            Flow::start(&pods[0], &pods[1], 7001)?,
            Flow::start(&pods[1], &pods[2], 7002)?,
            Flow::start(&pods[2], &pods[0], 7003)?,
        ];
        for flow in &flows {
            flow.await_since(flow.mark())?;
        }
        let marks = flows.each_ref().map(Flow::mark);
        // The check itself works: what is in clear is seen.
        let before = mesh.watch.now()?;
        all_arrive(&flows)?;
        ensure!(
            mesh.watch.now()?.since(&before).clear > 0,
            "clear packets are not seen"
        );

        mesh.set_mode(Mode::Permissive)?;
        mesh.await_pairs(&[1, 2, 3], |peer| on_path(peer, "Encrypted"))?;
        all_arrive(&flows)?;
        mesh.set_mode(Mode::Required)?;
        mesh.works(&[1, 2, 3], &pods)?;
        let before = mesh.watch.now()?;
        all_arrive(&flows)?;
        mesh.watch.nothing_clear_since(&before)?;

        mesh.set_mode(Mode::Disabled)?;
        mesh.await_pairs(&[1, 2, 3], |peer| {
            on_path(peer, "Clear")?;
            (peer.sas == 0)
                .then_some(())
                .ok_or_else(|| "still has SAs".to_owned())
        })?;
        all_arrive(&flows)?;
        for (flow, mark) in flows.iter().zip(marks) {
            flow.none_lost_since(mark)?;
        }
        Ok(())
    });
}

fn all_arrive(flows: &[Flow]) -> Result<()> {
    flows
        .iter()
        .try_for_each(|flow| flow.await_since(flow.mark()))
}

fn sas(node: &Node) -> Result<Vec<SaInfo>> {
    Ok(node.dump()?.sas)
}

fn holds(sas: &[SaInfo], spi: u32) -> bool {
    sas.iter().any(|sa| sa.spi.0 == spi)
}

/// SPI of the outbound SA that seals.
fn active(sas: &[SaInfo]) -> Result<u32> {
    let sealing = |sa: &&SaInfo| sa.direction == Direction::Out && sa.active;
    let found = sas.iter().find(sealing).map(|sa| sa.spi.0);
    found.with_context(|| format!("no outbound SA seals: {sas:?}"))
}
