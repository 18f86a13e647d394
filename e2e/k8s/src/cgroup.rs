//! Control groups of the nodes' pods: below one of our own, beside whatever else the machine has.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "espalier-e2e-";
/// The kernel removes a killed process from its group a moment after its end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A group of this run, with one below it for each node; removed by [`Groups::remove`].
#[derive(Debug)]
pub(crate) struct Groups {
    name: String,
}

impl Groups {
    /// Makes them. Groups of runs that were killed are removed.
    pub(crate) fn new(nodes: &[String]) -> Result<Self> {
        remove_stale();
        let groups = Self {
            name: format!("{PREFIX}{}", std::process::id()),
        };
        for hierarchy in hierarchies()? {
            let own = hierarchy.join(&groups.name);
            make(&own)?;
            for node in nodes {
                make(&own.join(node))?;
            }
        }
        Ok(groups)
    }

    /// Its path below every hierarchy.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Removes everything below, once its processes are gone.
    pub(crate) fn remove(&self) -> Result<()> {
        for hierarchy in hierarchies()? {
            remove_all(&hierarchy.join(&self.name))?;
        }
        Ok(())
    }
}

/// Version 1: one folder per controller, and that of version 2 beside them, where runc makes groups, too; version 2: the only one.
fn hierarchies() -> Result<Vec<PathBuf>> {
    if unified() {
        return Ok(vec![ROOT.into()]);
    }
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    Ok(controllers(&mounts))
}

fn controllers(mounts: &str) -> Vec<PathBuf> {
    let below_root = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
        let is_group = ["cgroup", "cgroup2"].contains(&kind);
        (is_group && Path::new(at).parent() == Some(Path::new(ROOT))).then(|| at.into())
    });
    let mut found: Vec<PathBuf> = below_root.collect();
    found.sort();
    found.dedup();
    found
}

fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("making the control group {}", path.display()))?;
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    // A new group of cpuset has no processor, and takes no process, until it is told which.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !unified() && path.join(file).exists() {
            let value = fs::read(parent.join(file))?;
            fs::write(path.join(file), value)?;
        }
    }
    if unified() {
        let there = fs::read_to_string(path.join("cgroup.controllers"))?;
        let wanted: Vec<String> = there.split_whitespace().map(|c| format!("+{c}")).collect();
        fs::write(path.join("cgroup.subtree_control"), wanted.join(" "))?;
    }
    Ok(())
}

fn remove_stale() {
    for hierarchy in hierarchies().unwrap_or_default() {
        let entries = fs::read_dir(&hierarchy).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.strip_prefix(PREFIX) else {
                continue;
            };
            if !Path::new("/proc").join(pid).exists() {
                // One that cannot be removed does not stop a new run.
                let _ = remove_all(&entry.path());
            }
        }
    }
}

/// Children first, as the kernel wants it.
fn remove_all(path: &Path) -> Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_all(&entry.path())?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hierarchies_of_version_1() {
        let mounts = "cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /elsewhere/cpu cgroup rw,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
        let found = controllers(mounts);
        let expected = ["cpu", "pids", "unified"].map(|name| Path::new(ROOT).join(name));
        assert_eq!(found, expected);
    }
}
