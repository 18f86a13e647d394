//! How many octets a pod's packet has on the wire, in every form that it can have, in a guest kernel.
//!
//! ```text
//!  pod (1,400 octets of UDP payload) ─ node 1 ─ eth0 ──┬── bridge ── eth0 ─ node 2 ─ pod
//!                                         capture here ┘
//! ```
//!
//! What is counted is the IP packet on the underlay, from its outer IP header on; Ethernet's own octets are the same for all. The
//! underlay's MTU is 1,600, so that nothing is fragmented. A form that is not seen is no row, and the run says why.

mod count;
mod espalier;
mod shape;
mod tunnel;
mod wireguard;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::rows::Writer;
use count::Sizes;
use shape::{SHAPES, Shape};

/// UDP payload of a pod's packet, octets.
const PAYLOAD: usize = 1400;
/// Of links that all of them fit through.
const UNDERLAY_MTU: u32 = 1600;

/// What the process of one form is told.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Which form.
    shape: String,
    /// Where its rows go.
    #[arg(long)]
    rows: PathBuf,
    /// Folder of wireguard-go and wg.
    #[arg(long)]
    wireguard: Option<PathBuf>,
}

/// All forms, or only some, each in a process and sandbox of its own. Fails at the end when one failed.
pub(crate) fn run(
    rows: &Path,
    bin: &Path,
    wireguard: Option<&Path>,
    only: &[String],
) -> Result<()> {
    let mut failed = Vec::new();
    let wanted = |name| only.is_empty() || only.iter().any(|form| form == name);
    for shape in SHAPES.iter().filter(|shape| wanted(shape.name)) {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["wire", shape.name, "--rows"]).arg(rows);
        command.env(espalier_e2e::BINARIES, bin);
        if let Some(folder) = wireguard {
            command.arg("--wireguard").arg(folder);
        }
        let status = command.status().context("starting a form's process")?;
        if !status.success() {
            failed.push(shape.name);
        }
    }
    if !failed.is_empty() {
        bail!(
            "these forms were not seen on the wire: {}",
            failed.join(", ")
        );
    }
    Ok(())
}

/// One form, inside its process.
pub(crate) fn one(arguments: &Arguments) -> Result<()> {
    espalier_testnet::enter()?;
    let shape = SHAPES.iter().find(|shape| shape.name == arguments.shape);
    let shape = shape.with_context(|| format!("no form {}", arguments.shape))?;
    let sizes = match shape.maker {
        shape::Maker::Espalier(settings) => espalier::measure(shape.name, &settings)?,
        shape::Maker::Tunnel => tunnel::measure()?,
        shape::Maker::WireGuard => {
            let folder = arguments.wireguard.as_deref();
            wireguard::measure(folder.context("expected --wireguard FOLDER")?)?
        }
    };
    report(shape, &sizes, &Writer::new(&arguments.rows))
}

fn report(shape: &Shape, sizes: &Sizes, rows: &Writer) -> Result<()> {
    let mode = format!("wire-{}", shape.name);
    let mean = sizes.mean();
    rows.add(&mode, "octets-per-1400-payload", "B", &[mean])?;
    rows.add(&mode, "by-payload", "", &[mean / PAYLOAD as f64])?;
    rows.add(&mode, "packets", "", &[sizes.packets() as f64])
}
