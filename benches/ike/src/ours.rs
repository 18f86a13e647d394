//! A round of ours: two processes, all pairs at once.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use espalier_testnet::Netns;

use espalier_bench_ike::measure::{Usage, quiet, sent};
use espalier_bench_ike::plan::{Case, Side};
use espalier_bench_ike::wire::Wire;

/// A round takes seconds; one that takes this long hangs.
const LIMIT: Duration = Duration::from_secs(180);

/// What one process cost in a round, per SA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// CPU time per handshake.
    pub(crate) cpu_ms: f64,
    /// Memory per SA when all are up.
    pub(crate) rss_kb: f64,
}

impl Cost {
    pub(crate) fn per(usage: Usage, sas: usize) -> Self {
        Self {
            cpu_ms: usage.cpu_ms / sas as f64,
            rss_kb: usage.rss_kb / sas as f64,
        }
    }
}

/// One round: the hub has `side`, the spokes the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// The hub's.
    pub(crate) hub: Cost,
    /// All spokes' together, per SA.
    pub(crate) spokes: Cost,
    /// From the start to the last CHILD_SA at both ends.
    pub(crate) seconds: f64,
    /// UDP datagrams per pair, both directions.
    pub(crate) datagrams: f64,
    /// The hub's memory per configured peer, before it has SAs.
    pub(crate) peer_kb: f64,
}

/// Runs one.
pub(crate) fn round(
    wire: &Wire,
    case: Case,
    sas: usize,
    side: Side,
    folder: &Path,
) -> Result<Round> {
    let bare = Node::start(&wire.hub, true, side, case, 0, folder)?.usage()?;
    let mut hub = Node::start(&wire.hub, true, side, case, sas, folder)?;
    let mut spokes = Node::start(&wire.spokes, false, side.other(), case, sas, folder)?;
    let before = (
        hub.usage()?,
        spokes.usage()?,
        sent(hub.id())? + sent(spokes.id())?,
    );
    // The responder takes the time, too.
    let (first, second) = match side {
        Side::Initiator => (&mut spokes, &mut hub),
        Side::Responder => (&mut hub, &mut spokes),
    };
    first.begin()?;
    second.begin()?;
    let deadline = Instant::now() + LIMIT;
    let (one, other) = (hub.up(sas)?, spokes.up(sas)?);
    ensure!(
        one.fingerprint == other.fingerprint,
        "both ends have {sas} CHILD_SAs, but not the same ones"
    );
    quiet(hub.id(), deadline)?;
    let datagrams = sent(hub.id())? + sent(spokes.id())? - before.2;
    Ok(Round {
        hub: Cost::per(hub.usage()? - before.0, sas),
        spokes: Cost::per(spokes.usage()? - before.1, sas),
        seconds: one.seconds.max(other.seconds),
        datagrams: datagrams as f64 / sas as f64,
        peer_kb: (before.0 - bare).rss_kb / sas as f64,
    })
}

/// A process of this program in the role of hub or spokes; ended when dropped.
struct Node {
    child: Child,
    out: BufReader<ChildStdout>,
}

struct Up {
    seconds: f64,
    fingerprint: String,
}

impl Node {
    fn start(
        netns: &Netns,
        hub: bool,
        side: Side,
        case: Case,
        sas: usize,
        folder: &Path,
    ) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("node").args(hub.then_some("--hub"));
        command.args(["--side", side.name(), "--case", case.name()]);
        command
            .args(["--sas", &sas.to_string(), "--folder"])
            .arg(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = netns.run(|| command.spawn())?.context("starting a node")?;
        let out = child.stdout.take().context("its standard output")?;
        let out = BufReader::new(out);
        let mut node = Self { child, out };
        let line = node.line()?;
        ensure!(
            line == "ready",
            "expected a node that is ready, it said {line:?}"
        );
        Ok(node)
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    fn usage(&self) -> Result<Usage> {
        Usage::of(self.id())
    }

    fn begin(&mut self) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("its standard input")?;
        Ok(stdin.write_all(b"begin\n")?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn up(&mut self, sas: usize) -> Result<Up> {
        let line = self.line()?;
        let mut words = line.split(' ');
        let (word, seconds, fingerprint) = (words.next(), words.next(), words.next());
        ensure!(
            word == Some("up"),
            "not all of {sas} SAs came up in time; the node said {line:?}"
        );
        Ok(Up {
            seconds: seconds.unwrap_or_default().parse()?,
            fingerprint: fingerprint.unwrap_or_default().to_owned(),
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
