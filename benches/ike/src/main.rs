//! Development only: what IKE handshakes cost, beside strongSwan's charon doing the same on the same cores in the same run.
//!
//! The library says who takes part and is our process; [`ours`] and [`charon`] run a round, [`report`] says what came out.

mod charon;
mod ours;
mod report;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use espalier_bench_ike::plan::{Case, Side};
use espalier_bench_ike::wire::Wire;
use espalier_bench_ike::{node, pki};

use charon::Charon;
use report::{Report, Sample};

/// The agent's: memory is measured here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// On the sandbox's private tmpfs.
const FOLDER: &str = "/run/bench";

/// IKE handshakes: CPU time and memory per SA.
#[derive(Parser, Debug)]
#[command(name = "espalier-bench-ike")]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    /// Where `scripts/charon.sh` has installed strongSwan; without it only ours runs.
    #[arg(long)]
    charon: Option<PathBuf>,
    /// Where the report goes.
    #[arg(long, default_value = "target/bench/ike.json")]
    out: PathBuf,
    /// How often each case runs; the medians count.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Numbers of SAs.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000])]
    sas: Vec<usize>,
    /// What is negotiated.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Case::ALL)]
    cases: Vec<Case>,
}

#[derive(Subcommand, Debug)]
enum Role {
    /// One of the benchmark's own processes.
    #[command(hide = true)]
    Node(node::Arguments),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(Role::Node(arguments)) = &cli.role {
        return node::run(arguments);
    }
    espalier_testnet::enter()?;
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder).with_context(|| format!("making {FOLDER}"))?;
    pki::make(folder)?;
    run(&cli, folder)
}

fn run(cli: &Cli, folder: &Path) -> Result<()> {
    let wire = Wire::new()?;
    let charon = cli
        .charon
        .as_ref()
        .map(|prefix| Charon::new(prefix, folder));
    let charon = charon.transpose()?;
    let mut report = Report::new(charon.as_ref().map(Charon::version));
    for &case in &cli.cases {
        for &sas in &cli.sas {
            for round in 1..=cli.rounds {
                eprintln!("{case}, {sas} SAs, round {round} of {}", cli.rounds);
                let ours = |side| ours::round(&wire, case, sas, side, folder);
                let initiator = ours(Side::Initiator)?;
                let theirs = charon.as_ref().map(|charon| charon.round(&wire, case, sas));
                let theirs = theirs.transpose()?;
                let responder = ours(Side::Responder)?;
                report.add(Sample {
                    case,
                    sas,
                    initiator,
                    responder,
                    charon: theirs,
                });
            }
        }
    }
    report.print();
    report.write(&cli.out)
}
