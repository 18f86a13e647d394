//! The sandbox: how the process gets in, and what it finds there.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal};

/// Holds the host's network namespace (`net:[4026531840]`) for the inner run.
const MARK: &str = "ESPALIER_SANDBOX_OUTSIDE";
/// Holds how the inner run was made.
const KIND: &str = "ESPALIER_SANDBOX_KIND";
/// Where named network namespaces are held: the place `ip netns` uses too.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// What the sandbox is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// The process is root.
    Root,
    /// The process is not root; an unprivileged user namespace makes it root in the sandbox only.
    UserNamespace,
}

impl Privilege {
    fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::UserNamespace => "user-namespace",
        }
    }
}

/// Tells how a sandbox can be made here.
///
/// # Errors
/// Neither root nor user namespaces, or no `unshare`; the text names the remedy.
pub fn privilege() -> Result<Privilege> {
    let kind = if nix::unistd::geteuid().is_root() {
        Privilege::Root
    } else {
        Privilege::UserNamespace
    };
    let probe = unshare(kind)
        .arg("true")
        .stdin(Stdio::null())
        .output()
        .context("expected the program `unshare`, did not find it: install util-linux")?;
    if probe.status.success() {
        return Ok(kind);
    }
    let said = String::from_utf8_lossy(&probe.stderr);
    bail!(
        "private namespaces cannot be made here ({}): run as root, or allow user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1 or user.max_user_namespaces=10000)",
        said.trim()
    )
}

/// True in the inner run: the mark is there and this is not the network namespace it names.
#[must_use]
pub fn inside() -> bool {
    match (std::env::var(MARK), own_network()) {
        (Ok(outside), Ok(own)) => outside != own,
        _ => false,
    }
}

/// In the inner run: what the sandbox was made with.
#[must_use]
pub fn entered_with() -> Option<Privilege> {
    let kind = std::env::var(KIND).ok().filter(|_| inside())?;
    [Privilege::Root, Privilege::UserNamespace]
        .into_iter()
        .find(|privilege| privilege.word() == kind)
}

/// Enters the sandbox. Outside: runs this program with the same arguments inside, ends it on SIGINT, SIGTERM and SIGHUP,
/// and exits with its status when it ends. Inside: prepares the sandbox and returns.
///
/// Call it before other threads start.
///
/// # Errors
/// The sandbox cannot be made, see [`privilege`], or not prepared.
pub fn enter() -> Result<()> {
    if inside() {
        end_with_outside();
        return prepare();
    }
    let program = std::env::current_exe().context("finding this program's own path")?;
    let mut command = command_inside(privilege()?)?;
    command.arg(program).args(std::env::args_os().skip(1));
    let mut child = command
        .stdin(Stdio::piped())
        .spawn()
        .context("starting `unshare`")?;
    // Not before: children inherit the mask. A signal that comes earlier ends this process, and so the inner one.
    let signals = block_signals()?;
    // The inner run ends when this pipe closes, be it because this process is killed.
    let lifeline = child.stdin.take();
    std::thread::spawn(move || {
        let _ = signals.wait();
        println!("\ninterrupted; every process, namespace and device of the sandbox ends");
        drop(lifeline);
    });
    let status = child.wait().context("waiting for `unshare`")?;
    std::process::exit(status.code().unwrap_or(1))
}

/// Ends this process, and so the sandbox, when the outer one has closed its end of standard input or is gone.
pub(crate) fn end_with_outside() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(130);
    });
}

fn block_signals() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    Ok(signals)
}

/// `unshare` with the sandbox's flags and mark; the program and its arguments are to be added.
pub(crate) fn command_inside(kind: Privilege) -> Result<Command> {
    let mut command = unshare(kind);
    command.env(MARK, own_network()?);
    command.env(KIND, kind.word());
    Ok(command)
}

/// Makes the inner side usable, once: a private `/run`, and the loopback device up.
pub(crate) fn prepare() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_some() {
        return Ok(());
    }
    let none: Option<&Path> = None;
    mount(
        Some("espalier"),
        "/run",
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("mode=0755"),
    )
    .context("mounting a private /run")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("making the mounts private")?;
    fs::create_dir_all(NETNS_DIR).with_context(|| format!("creating {NETNS_DIR}"))?;
    crate::link::set_up("lo")?;
    DONE.get_or_init(|| ());
    Ok(())
}

fn unshare(kind: Privilege) -> Command {
    let mut command = Command::new("unshare");
    if kind == Privilege::UserNamespace {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    command
}

fn own_network() -> Result<String> {
    let link = fs::read_link("/proc/self/ns/net").context("reading /proc/self/ns/net")?;
    Ok(link.to_string_lossy().into_owned())
}
