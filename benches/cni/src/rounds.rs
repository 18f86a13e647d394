//! What is measured, in which order.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use espalier_testnet::Netns;
use serde::Serialize;
use serde_json::Value;

use crate::call::{Pod, children_cpu_ms};
use crate::node::Node;
use crate::plugin::{Place, Plugin};

/// So many pods at once.
const AT_ONCE: usize = 32;
/// Kernel work that goes on after a phase is not to be the next one's.
const REST: Duration = Duration::from_millis(300);

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) plugins: Vec<Plugin>,
    pub(crate) pods: usize,
    pub(crate) waves: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Op {
    Add,
    Del,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Sequential,
    Parallel32,
}

/// One kind of call.
pub(crate) type Kind = (Plugin, Op, Mode);

/// All calls of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    pub(crate) took_ms: Vec<f64>,
    /// Of all together.
    pub(crate) cpu_ms: f64,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) calls: BTreeMap<Kind, Calls>,
    /// The most memory of the plugin's process in an ADD, in KB.
    pub(crate) rss_kb: BTreeMap<Plugin, f64>,
    /// The agent's anonymous memory with all pods, in KB.
    pub(crate) agent_rss_kb: f64,
}

/// Pods of one plugin.
struct Side {
    plugin: Plugin,
    pods: Vec<Pod>,
    _namespaces: Vec<Netns>,
    serial: usize,
}

/// Runs everything in the calling thread's namespace, the node's.
pub(crate) fn run(plan: &Plan, place: &Place, node: &Node) -> Result<Measured> {
    let mut sides = Vec::new();
    for plugin in &plan.plugins {
        sides.push(Side::new(*plugin, plan.pods)?);
    }
    let mut measured = Measured::default();
    for side in &mut sides {
        // Whatever is made once, such as the bridge, is there then.
        side.rename(0);
        let rss = side.pods[0].add_memory_kb(side.plugin, place)?;
        measured.rss_kb.insert(side.plugin, rss);
        side.pods[0].del(side.plugin, place)?;
    }
    let mut meter = Meter {
        place,
        node,
        measured,
    };
    eprintln!("sequential ADD");
    meter.in_turn(&mut sides, plan.pods, Op::Add)?;
    meter.measured.agent_rss_kb = node.agent_rss_kb()?;
    for wave in 0..plan.waves {
        eprintln!("parallel, wave {} of {}", wave + 1, plan.waves);
        for side in &mut sides {
            let first = wave * AT_ONCE % plan.pods.saturating_sub(AT_ONCE).max(1);
            meter.at_once(side, first, Op::Del)?;
            meter.at_once(side, first, Op::Add)?;
        }
    }
    eprintln!("sequential DEL");
    meter.in_turn(&mut sides, plan.pods, Op::Del)?;
    Ok(meter.measured)
}

impl Side {
    fn new(plugin: Plugin, count: usize) -> Result<Self> {
        let namespaces = (0..count).map(|n| Netns::new(&format!("{}-{n}", plugin.name())));
        let namespaces = namespaces.collect::<Result<Vec<_>>>()?;
        let pods = namespaces.iter().map(|netns| Pod {
            container: String::new(),
            netns: netns.path().to_owned(),
            result: Value::Null,
        });
        Ok(Self {
            plugin,
            pods: pods.collect(),
            _namespaces: namespaces,
            serial: 0,
        })
    }

    /// Another container, as a runtime never gives an ID twice.
    fn rename(&mut self, index: usize) {
        self.serial += 1;
        self.pods[index].container = format!("{:064x}", self.serial);
    }
}

struct Meter<'a> {
    place: &'a Place,
    node: &'a Node,
    measured: Measured,
}

impl Meter<'_> {
    /// One pod of each plugin after the other.
    fn in_turn(&mut self, sides: &mut [Side], count: usize, op: Op) -> Result<()> {
        let agent = self.node.agent_cpu_ms()?;
        for index in 0..count {
            for side in &mut *sides {
                if op == Op::Add {
                    side.rename(index);
                }
                let before = children_cpu_ms()?;
                let took = call(&mut side.pods[index], side.plugin, op, self.place)?;
                let cpu = children_cpu_ms()? - before;
                self.add((side.plugin, op, Mode::Sequential), &[took], cpu);
            }
        }
        std::thread::sleep(REST);
        let agent = self.node.agent_cpu_ms()? - agent;
        self.add((Plugin::Espalier, op, Mode::Sequential), &[], agent);
        Ok(())
    }

    /// [`AT_ONCE`] pods of one plugin.
    fn at_once(&mut self, side: &mut Side, first: usize, op: Op) -> Result<()> {
        let last = (first + AT_ONCE).min(side.pods.len());
        if op == Op::Add {
            (first..last).for_each(|index| side.rename(index));
        }
        let (plugin, place) = (side.plugin, self.place);
        let before = (children_cpu_ms()?, self.node.agent_cpu_ms()?);
        let took = std::thread::scope(|scope| {
            let start = |pod| scope.spawn(move || call(pod, plugin, op, place));
            let threads: Vec<_> = side.pods[first..last].iter_mut().map(start).collect();
            let ended = threads.into_iter().map(|thread| thread.join());
            let ended = ended.map(|done| done.ok().context("a thread panicked")?);
            ended.collect::<Result<Vec<_>>>()
        })?;
        std::thread::sleep(REST);
        let mut cpu = children_cpu_ms()? - before.0;
        if plugin == Plugin::Espalier {
            cpu += self.node.agent_cpu_ms()? - before.1;
        }
        self.add((plugin, op, Mode::Parallel32), &took, cpu);
        Ok(())
    }

    fn add(&mut self, kind: Kind, took: &[Duration], cpu_ms: f64) {
        let calls = self.measured.calls.entry(kind).or_default();
        let took = took.iter().map(|took| took.as_secs_f64() * 1000.0);
        calls.took_ms.extend(took);
        calls.cpu_ms += cpu_ms;
    }
}

fn call(pod: &mut Pod, plugin: Plugin, op: Op, place: &Place) -> Result<Duration> {
    match op {
        Op::Add => pod.add(plugin, place),
        Op::Del => pod.del(plugin, place),
    }
}
