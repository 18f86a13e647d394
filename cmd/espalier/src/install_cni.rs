//! `espalier install-cni`: puts the CNI plugin where the container runtime looks for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;

/// The plugin's file name; `type` in its configuration.
pub(crate) const PLUGIN: &str = "espalier-cni";

/// Arguments of `espalier install-cni`.
#[derive(Args, Debug)]
pub(crate) struct InstallCniArgs {
    /// The container runtime's folder of CNI plugins.
    #[arg(long)]
    to: PathBuf,
    /// The plugin; default: the one beside this program.
    #[arg(long)]
    from: Option<PathBuf>,
}

/// Copies the plugin. One that runs keeps its file; one that is started meanwhile is the old or the new one, never a part.
pub(crate) fn run(args: &InstallCniArgs) -> Result<()> {
    let from = match &args.from {
        Some(from) => from.clone(),
        None => std::env::current_exe()
            .context("finding this program's folder; give --from")?
            .with_file_name(PLUGIN),
    };
    let to = args.to.join(PLUGIN);
    if same(&from, &to) {
        println!("{} is there already", to.display());
        return Ok(());
    }
    let new = args.to.join(format!(".{PLUGIN}.{}", std::process::id()));
    copy(&from, &new, &to).inspect_err(|_| drop(fs::remove_file(&new)))?;
    println!("installed {}", to.display());
    Ok(())
}

fn copy(from: &Path, new: &Path, to: &Path) -> Result<()> {
    let failed = |what: &str, path: &Path| format!("{what} {}", path.display());
    let mut source =
        File::open(from).with_context(|| failed("opening the plugin; give --from:", from))?;
    let hint = "writing, give --to the runtime's folder of CNI plugins:";
    let mut target = File::create(new).with_context(|| failed(hint, new))?;
    io::copy(&mut source, &mut target).with_context(|| failed("copying the plugin to", new))?;
    target
        .set_permissions(fs::Permissions::from_mode(0o755))
        .and_then(|()| target.sync_all())
        .with_context(|| failed("finishing", new))?;
    drop(target);
    fs::rename(new, to).with_context(|| failed("putting in place", to))
}

/// Written again for nothing, it would be new for whoever compares files.
fn same(from: &Path, to: &Path) -> bool {
    let size = |path| fs::metadata(path).map(|meta| meta.len()).ok();
    let read = |path| fs::read(path).ok();
    size(from).is_some() && size(from) == size(to) && read(from) == read(to)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn args(folder: &Path) -> InstallCniArgs {
        InstallCniArgs {
            to: folder.join("bin"),
            from: Some(folder.join("plugin")),
        }
    }

    #[test]
    fn the_plugin_is_put_in_place_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        for text in ["old", "new", "new"] {
            fs::write(folder.path().join("plugin"), text).unwrap();
            run(&args(folder.path())).unwrap();
            let there = folder.path().join("bin/espalier-cni");
            assert_eq!(fs::read_to_string(&there).unwrap(), text);
            assert_eq!(
                there.metadata().unwrap().permissions().mode() & 0o777,
                0o755
            );
        }
        let files = fs::read_dir(folder.path().join("bin")).unwrap().count();
        assert_eq!(files, 1, "no temporary file");
    }

    #[test]
    fn a_missing_folder_is_named_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("plugin"), "x").unwrap();
        let error = format!("{:#}", run(&args(folder.path())).unwrap_err());
        assert!(error.contains("--to") && error.contains("bin"), "{error}");
    }

    #[test]
    fn a_missing_plugin_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = format!("{:#}", run(&args(folder.path())).unwrap_err());
        assert!(error.contains("--from"), "{error}");
    }
}
