//! Named network namespaces.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process::Process;
use crate::sandbox::{NETNS_DIR, inside, prepare};

/// A network namespace with a name, held by a bind mount in the sandbox's `/run/netns`; removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    file: File,
    /// Made here, so removed here.
    owned: bool,
}

impl Netns {
    /// Makes a namespace with its loopback device up.
    ///
    /// # Errors
    /// Called outside a sandbox, the name exists, or the kernel refuses.
    pub fn new(name: &str) -> Result<Self> {
        if !inside() {
            bail!(
                "expected a sandbox, found the host: call testnet::enter or testnet::isolated first"
            );
        }
        prepare()?;
        let path = Path::new(NETNS_DIR).join(name);
        let file = hold_new(&path).with_context(|| format!("making network namespace {name}"))?;
        let netns = Self {
            name: name.to_owned(),
            path,
            file,
            owned: true,
        };
        netns.run(|| crate::link::set_up("lo"))??;
        Ok(netns)
    }

    /// A namespace that somebody else made, such as that of a container; dropping it removes nothing.
    ///
    /// # Errors
    /// There is no such file.
    pub fn held_elsewhere(name: &str, path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            path: path.to_owned(),
            file,
            owned: false,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, fit for `CNI_NETNS` and `nsenter --net=`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open namespace, for `IFLA_NET_NS_FD` and `setns`.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` on a thread of its own in the namespace and returns its result. Sockets opened and threads started
    /// there stay there. A panic of `work` goes on in the caller.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let entered = std::thread::scope(|scope| {
            scope
                .spawn(|| setns(&self.file, CloneFlags::CLONE_NEWNET).map(|()| work()))
                .join()
        });
        match entered {
            Ok(result) => {
                result.with_context(|| format!("entering network namespace {}", self.name))
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a process in the namespace; it is killed when the handle is dropped.
    ///
    /// # Errors
    /// The namespace cannot be entered or the program not be started; the text names the program.
    pub fn spawn(&self, command: &mut Command) -> Result<Process> {
        self.run(|| Process::start(command))?
    }

    /// Runs a program in the namespace to its end and returns its standard output.
    ///
    /// # Errors
    /// It cannot be started, or fails: the text holds what it wrote to its standard error.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        let program = command.get_program().to_string_lossy().into_owned();
        let output = self
            .run(|| command.output())?
            .with_context(|| format!("starting {program} in {}", self.name))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{program} in {}: {}: {}",
                self.name,
                output.status,
                said.trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes a namespace on a thread that ends at once, and keeps it by a bind mount.
fn hold_new(path: &Path) -> Result<File> {
    File::create_new(path).with_context(|| format!("creating {}", path.display()))?;
    let held = std::thread::scope(|scope| scope.spawn(|| unshare_onto(path)).join());
    match held {
        Ok(Ok(())) => File::open(path).context("opening it"),
        Ok(Err(error)) => {
            let _ = fs::remove_file(path);
            Err(error)
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn unshare_onto(path: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
    let none: Option<&Path> = None;
    let source = Some("/proc/thread-self/ns/net");
    mount(source, path, none, MsFlags::MS_BIND, none).context("bind mount")
}
