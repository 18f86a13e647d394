//! The whole run: each part in a process of its own, then the report.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use espalier_bench_ike::measure::machine;
use espalier_guest::Guest;

use crate::rows::{self, Row};

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Octets on the wire, in a guest kernel.
    Wire,
    /// SAs per second into the kernel, in a guest kernel.
    Installs,
    /// The overlay's objects in the kernel, in a namespace of this machine.
    Reconcile,
    /// The agent with all the nodes of a large mesh, in a namespace of this machine.
    Agent,
}

impl Part {
    const ALL: [Self; 4] = [Self::Wire, Self::Installs, Self::Reconcile, Self::Agent];

    fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Installs => "installs",
            Self::Reconcile => "reconcile",
            Self::Agent => "agent",
        }
    }

    /// Needs a kernel with ESP.
    fn in_guest(self) -> bool {
        matches!(self, Self::Wire | Self::Installs)
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How much of it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Size {
    /// Numbers of peers.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000])]
    pub(crate) peers: Vec<usize>,
    /// How often what is short is measured; the medians count.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Only these forms on the wire.
    #[arg(long, value_delimiter = ',')]
    pub(crate) forms: Vec<String>,
    /// How long an agent that has nothing to do is watched.
    #[arg(long, default_value_t = 60)]
    pub(crate) steady_seconds: u64,
}

impl Size {
    fn arguments(&self) -> Vec<String> {
        let peers: Vec<String> = self.peers.iter().map(ToString::to_string).collect();
        let words = [
            ("--peers", peers.join(",")),
            ("--rounds", self.rounds.to_string()),
            ("--steady-seconds", self.steady_seconds.to_string()),
        ];
        let forms = [("--forms", self.forms.join(","))];
        let words = words
            .into_iter()
            .chain(forms)
            .filter(|(_, value)| !value.is_empty());
        words
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect()
    }
}

/// What the run is told.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Where the report goes.
    #[arg(long, default_value = "target/bench/kernel.json")]
    out: PathBuf,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Part::ALL)]
    only: Vec<Part>,
    /// Folder of the guest's kernel, as scripts/kernel/fetch.sh prints it.
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Boots it.
    #[arg(long, default_value = "scripts/kernel/boot.sh")]
    boot: PathBuf,
    /// Folder of wireguard-go and wg, as scripts/kernel/wireguard.sh prints it.
    #[arg(long)]
    wireguard: Option<PathBuf>,
    #[command(flatten)]
    size: Size,
}

/// Limit of a guest.
const GUEST: Duration = Duration::from_secs(40 * 60);

/// Runs the parts, prints the table and writes the report. A part that fails keeps the rows that it has; the run fails at its
/// end.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let folder = arguments.out.with_extension("parts");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let folder = folder.canonicalize()?;
    let (mut all, mut failed) = (Vec::new(), Vec::new());
    for part in &arguments.only {
        let file = folder.join(format!("{part}.jsonl"));
        let _none = std::fs::remove_file(&file);
        eprintln!("{part}");
        if let Err(error) = run_part(*part, arguments, &folder, &file) {
            eprintln!("{part}: {error:#}");
            failed.push(part.name());
        }
        all.extend(rows::read(&file));
    }
    print(arguments, &all);
    rows::write(&arguments.out, &all)?;
    if !failed.is_empty() {
        bail!("not all was measured: {}", failed.join(", "));
    }
    Ok(())
}

fn print(arguments: &Arguments, all: &[Row]) {
    println!("\nmachine: {}", machine());
    let name = |folder: &Option<PathBuf>| {
        let name = folder.as_ref().and_then(|folder| folder.file_name());
        name.map_or("none".into(), |name| name.to_string_lossy().into_owned())
    };
    let (guest, wireguard) = (name(&arguments.kernel), name(&arguments.wireguard));
    println!(
        "guest: {guest}; counterparts: {}, {wireguard}\n",
        iproute2()
    );
    for row in all {
        println!("{}", rows::line(row));
    }
}

fn iproute2() -> String {
    let output = Command::new("ip").arg("-V").output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    said.unwrap_or_else(|_| "no iproute2".to_owned())
}

fn run_part(part: Part, arguments: &Arguments, folder: &Path, file: &Path) -> Result<()> {
    let program = std::env::current_exe()?;
    let bin = program.parent().context("this program's folder")?;
    let mut words = vec!["part".to_owned(), part.name().to_owned()];
    for (flag, path) in [
        ("--rows", Some(file)),
        ("--bin", Some(bin)),
        ("--wireguard", arguments.wireguard.as_deref()),
    ] {
        if let Some(path) = path {
            words.extend([flag.to_owned(), path.display().to_string()]);
        }
    }
    words.extend(arguments.size.arguments());
    if part.in_guest() {
        return in_guest(arguments, folder, &words);
    }
    let status = Command::new(&program).args(words).status();
    let status = status.context("starting a part")?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

fn in_guest(arguments: &Arguments, folder: &Path, words: &[String]) -> Result<()> {
    let kernel = arguments.kernel.as_ref();
    let kernel = kernel.context("expected --kernel FOLDER, of scripts/kernel/fetch.sh")?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    espalier_guest::boot(&Guest {
        boot: &arguments.boot.canonicalize()?,
        kernel,
        folder,
        arguments: &words,
        files: &[],
        limit: GUEST,
    })
}
