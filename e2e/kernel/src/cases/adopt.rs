//! What is in the kernel already, of others and of an earlier agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use espalier_e2e::{
    Monitor, Node, State, encrypted, name, pod_cidr, policies, states, underlay, until,
};

use crate::ground::{Ground, Populated, ip};
use crate::load::{Load, nothing_clear};

/// The agent compares the kernel with its wishes at least this often.
const RESYNC: Duration = Duration::from_secs(10);
/// SPIs and reqid of somebody else's states.
const FOREIGN: [u32; 2] = [0x0bad_cafe, 0x0bad_beef];
const KEY: &str = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223";

/// States and policies of others survive an agent's start and restart and a node's removal: between strangers, and between
/// the very nodes of the mesh.
pub(crate) fn foreign_survive(ground: &mut Ground<'_>) -> Result<String> {
    let mesh = ground.prepare(3, espalier_e2e::Mode::Required, &[])?;
    add_foreign(mesh.node_ref(1)?)?;
    let before = foreign(mesh.node_ref(1)?)?;
    ensure!(before.len() == 4, "the case is wrong: {before:?}");
    let mut on = ground.populate(mesh)?;
    on.works()?;
    let same = |on: &Populated, when: &str| -> Result<()> {
        let now = foreign(on.mesh.node_ref(1)?)?;
        ensure!(now == before, "{when}: expected {before:?}, found {now:?}");
        Ok(())
    };
    same(&on, "after the start")?;
    let node = on.mesh.node(1)?;
    node.kill_agent()?;
    node.start_agent()?;
    on.works()?;
    same(&on, "after a restart")?;
    forget_node(&on, 3)?;
    until("node 3 to be forgotten", || {
        let gone = on.mesh.node(1)?.peer(&name(3)).is_err();
        Ok(gone
            .then_some(())
            .ok_or_else(|| "it is still known".to_owned()))
    })?;
    std::thread::sleep(RESYNC + Duration::from_secs(1));
    same(&on, "after a node's removal")?;
    on.mesh.works(&[1, 2], &on.pods[..2])?;
    Ok(format!("{} entries of others, unchanged", before.len()))
}

fn add_foreign(node: &Node) -> Result<()> {
    let (own, peer) = (underlay(1), underlay(3));
    let [first, second] = FOREIGN;
    for words in [
        format!(
            "state add src 192.0.2.1 dst 192.0.2.2 proto esp spi {first:#x} reqid 77 mode tunnel"
        ),
        format!("state add src {own} dst {peer} proto esp spi {second:#x} reqid 77 mode transport"),
    ] {
        let suite = format!("aead rfc4106(gcm(aes)) {KEY} 128");
        ip(node, &format!("xfrm {words} {suite}"))?;
    }
    for words in [
        "src 192.0.2.0/24 dst 198.51.100.0/24 dir out priority 77 tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 77 mode tunnel".to_owned(),
        format!("src {own} dst {peer} proto tcp dport 7777 dir out priority 77 action block"),
    ] {
        ip(node, &format!("xfrm policy add {words}"))?;
    }
    Ok(())
}

/// Those of others, as texts without counters.
fn foreign(node: &Node) -> Result<Vec<String>> {
    let theirs = |state: &State| FOREIGN.contains(&state.spi);
    let found = states(&node.netns)?.into_iter().filter(theirs);
    let mut all: Vec<String> = found.map(|state| format!("{state:?}")).collect();
    let found = policies(&node.netns)?
        .into_iter()
        .filter(|policy| policy.priority == 77);
    all.extend(found.map(|policy| format!("{policy:?}")));
    all.sort();
    Ok(all)
}

/// Takes a node's manifest from all others.
fn forget_node(on: &Populated, index: u8) -> Result<()> {
    let file = format!("{}.yaml", name(index));
    let others = on.mesh.nodes.iter().filter(|node| node.index != index);
    others
        .into_iter()
        .try_for_each(|node| node.remove_manifest(&file))
}

/// An agent with nothing to do writes nothing: neither devices, addresses, routes and rules nor states and policies.
pub(crate) fn quiet(ground: &mut Ground<'_>) -> Result<String> {
    let on = ground.required(2, &[])?;
    let netns = &on.mesh.node_ref(1)?.netns;
    let logs = ground.bench.logs();
    let network = Monitor::start(&logs, netns)?;
    let ipsec = Monitor::start_ipsec(&logs, netns)?;
    let writes = writes(&on)?;
    std::thread::sleep(RESYNC * 2 + Duration::from_secs(2));
    let changes = network.changes(netns)? + &ipsec.changes(netns)?;
    ensure!(changes.is_empty(), "the kernel was changed:\n{changes}");
    // Neighbours and forwarding entries, too, which the kernel changes by itself: as the agent counts them.
    let more = self::writes(&on)? - writes;
    ensure!(
        more == 0,
        "the agent says that it wrote to the kernel {more} times"
    );
    Ok("two comparisons with the kernel, no change".into())
}

/// How often the agent of node 1 said that it changed something.
fn writes(on: &Populated) -> Result<usize> {
    let log = on.mesh.node_ref(1)?.log("agent")?;
    Ok(log.matches("kernel brought in line").count())
}

/// A node that was removed while the agent was down leaves nothing behind, and the others do not notice.
pub(crate) fn node_removed(ground: &mut Ground<'_>) -> Result<String> {
    let mut on = ground.required(3, &[])?;
    let leaver = [underlay(3).to_string(), pod_cidr(3).to_string()];
    ensure!(
        !of_host(&on, &leaver)?.is_empty(),
        "the case is wrong: nothing to be removed"
    );
    on.mesh.node(1)?.kill_agent()?;
    forget_node(&on, 3)?;
    on.mesh.nodes.retain(|node| node.index != 3);
    on.pods.pop();
    let load = Load::start(&on)?;
    on.mesh.node(1)?.start_agent()?;
    until("what belongs to node 3 to be gone", || {
        let left = of_host(&on, &leaver)?;
        Ok(left.is_empty().then_some(()).ok_or_else(|| left.join("\n")))
    })?;
    on.mesh.await_pairs(&[1, 2], encrypted)?;
    load.arrives()?;
    load.ends_without_loss(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    Ok("states, policies and routes are gone".into())
}

/// States, policies and routes of node 1 that name one of these.
fn of_host(on: &Populated, words: &[String]) -> Result<Vec<String>> {
    let node = on.mesh.node_ref(1)?;
    let mut all: Vec<String> = states(&node.netns)?
        .iter()
        .map(|s| format!("{s:?}"))
        .collect();
    all.extend(policies(&node.netns)?.iter().map(|p| format!("{p:?}")));
    all.extend(ip(node, "route show table all")?.lines().map(str::to_owned));
    all.retain(|line| words.iter().any(|word| line.contains(word)));
    Ok(all)
}
