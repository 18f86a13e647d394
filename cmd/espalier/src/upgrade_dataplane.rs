//! `espalier upgrade-dataplane`: the running data plane is replaced by another program, in place.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use espalier_dataplane_core::Dataplane as _;
use espalier_handover::binary;
use espalier_rpc::DataplaneClient;

/// Arguments of `espalier upgrade-dataplane`.
#[derive(Args, Clone, Debug)]
pub(crate) struct UpgradeArgs {
    /// Folder with the sockets of this node's Espalier processes.
    #[arg(long, default_value = "/run/espalier")]
    run_dir: PathBuf,
    /// The program; default: the one beside this one.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// The data plane's --upgrade-dir, as it is seen here.
    #[arg(long, default_value = "/var/lib/espalier/bin")]
    to: PathBuf,
}

/// Puts the program there and has it take over; traffic goes on, also when it is refused.
pub(crate) fn run(args: &UpgradeArgs) -> Result<()> {
    let beside = || {
        std::env::current_exe()
            .map(|own| own.with_file_name("espalier-dataplane"))
            .context("finding this program's folder; give --binary")
    };
    let program = args.binary.clone().map_or_else(beside, Ok)?;
    let digest = binary::install(&program, &args.to)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let plane = DataplaneClient::new(args.run_dir.join("dataplane.sock"))?;
        let before = plane.hello().await?;
        let after = plane.upgrade(&digest.to_string()).await?;
        if before.digest == after.digest {
            println!("the data plane {} runs this program already", after.version);
        } else {
            let (from, to) = (before.version, after.version);
            println!(
                "the data plane was upgraded in place: {from} to {to}, process {}",
                after.pid
            );
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_data_plane_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let args = UpgradeArgs {
            run_dir: folder.path().to_owned(),
            binary: Some(std::env::current_exe().unwrap()),
            to: folder.path().join("bin"),
        };
        let said = format!("{:#}", run(&args).unwrap_err());
        assert!(said.contains("does not answer"), "{said}");
    }
}
