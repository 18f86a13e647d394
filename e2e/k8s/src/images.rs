//! The images of the cluster and of the cases' pods, made here: nothing comes from a registry.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::oci::Image;

/// Holds a pod's namespaces.
pub(crate) const PAUSE: &str = "espalier.dev/e2e-pause:1";
/// Of the cases' pods: BusyBox.
pub(crate) const POD: &str = "espalier.dev/e2e-pod:1";
/// Espalier's.
pub(crate) const ESPALIER: &str = "espalier.dev/espalier:e2e";

const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];
const FOREVER: &str = "2147483647";

/// Writes the archives of [`PAUSE`] and [`POD`].
pub(crate) fn write(folder: &Path) -> Result<Vec<PathBuf>> {
    let busybox = BUSYBOX.iter().find(|path| Path::new(path).exists());
    let busybox = busybox.context("expected BusyBox: install busybox-static")?;
    let program = fs::read(busybox).with_context(|| format!("reading {busybox}"))?;
    let files = [("bin/busybox", program.as_slice())];
    let images = [
        (PAUSE, &["/bin/busybox", "sleep", FOREVER][..], "pause.tar"),
        (POD, &["/bin/busybox"][..], "pod.tar"),
    ];
    let written = images.map(|(reference, entrypoint, file)| {
        let path = folder.join(file);
        let image = Image {
            reference,
            entrypoint,
            files: &files,
        };
        image.write(&path).map(|()| path)
    });
    written.into_iter().collect()
}
