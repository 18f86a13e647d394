//! The program that runs is replaced by another, in the same process: what waits in descriptors is not lost.
//!
//! ```text
//!  open the file, hash it ── rehearse: a child reads a copy of the state ── stop the threads ── state → memfd ── exec
//!        │                            │                                             │             │            │
//!        └────────────────────────────┴───────────── goes on as it was ◀────────────┴─────────────┴────────────┘
//! ```

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use espalier_esp_tun::Engine;
use espalier_handover::{Digest, Plane, State, binary, carry, format, memory};
use espalier_rpc::Upgrader;
use espalier_xfrm::KernelPlane;
use nix::unistd::fexecve;
use tokio::process::Command;
use tokio::sync::{Mutex, mpsc};
use tracing::{error, info, warn};

use crate::kept::Kept;
use crate::own::Own;
use crate::resume::CAN_RESUME;
use crate::wrap::Told;

/// A program that needs longer to read a state would let packets wait too long.
const REHEARSAL: Duration = Duration::from_secs(20);
const RESUME: &str = "--resume";
const RESUME_CHECK: &str = "--resume-check";

/// A data plane whose state can go to another program.
pub(crate) trait Keeps: Send + Sync + 'static {
    /// A copy while it goes on.
    fn snapshot(&self) -> Plane;

    /// Stops what changes the state.
    fn freeze(&self) -> Plane;

    /// Goes on after all.
    fn thaw(&self) -> Result<(), espalier_esp_tun::Error>;
}

impl Keeps for Engine {
    fn snapshot(&self) -> Plane {
        Plane::Userspace(Self::snapshot(self))
    }

    fn freeze(&self) -> Plane {
        Plane::Userspace(Self::freeze(self))
    }

    fn thaw(&self) -> Result<(), espalier_esp_tun::Error> {
        Self::thaw(self)
    }
}

/// The kernel has everything, and goes on by itself.
impl Keeps for KernelPlane {
    fn snapshot(&self) -> Plane {
        Plane::Kernel
    }

    fn freeze(&self) -> Plane {
        Plane::Kernel
    }

    fn thaw(&self) -> Result<(), espalier_esp_tun::Error> {
        Ok(())
    }
}

/// Replaces this program on demand.
pub(crate) struct Upgrade<P> {
    pub(crate) told: Arc<Told<P>>,
    pub(crate) kept: Kept,
    pub(crate) folder: PathBuf,
    pub(crate) own: Own,
    pub(crate) failed: mpsc::Sender<anyhow::Error>,
    pub(crate) one_at_a_time: Mutex<()>,
}

#[tonic::async_trait]
impl<P: Keeps> Upgrader for Upgrade<P> {
    async fn upgrade(&self, sha256: &str) -> Result<(), String> {
        let upgraded = self.to(sha256).await;
        upgraded.map_err(|error| {
            let why = format!("{error:#}");
            warn!(why, "not upgraded; this program goes on as it was");
            why
        })
    }
}

impl<P: Keeps> Upgrade<P> {
    async fn to(&self, sha256: &str) -> Result<()> {
        let digest: Digest = sha256.parse()?;
        if self.own.get().await == Some(digest) {
            return Ok(());
        }
        let _alone = self.one_at_a_time.try_lock();
        let _alone = _alone.context("another upgrade is under way")?;
        let folder = self.folder.clone();
        let opened = tokio::task::spawn_blocking(move || binary::open(&folder, &digest));
        let program = opened.await.context("opening the binary")??;
        let version = self
            .rehearse(&program, digest)
            .await
            .context("the other program cannot go on with this one's state")?;
        // From here to the exec nothing else runs on this thread, which is the only one that changes the state.
        self.replace(&program, digest, version)
    }

    /// The other program reads a copy of the state, as it will have to; the copy's version.
    async fn rehearse(&self, program: &File, digest: Digest) -> Result<u32> {
        let state = self.state(self.told.plane.snapshot(), digest);
        let version = format::version_of(&state);
        let memfd = memory::write(&format::write(state)).context("making a memfd")?;
        let stdin = carry::for_child(memfd.as_fd()).context("handing the state over")?;
        let ended = tokio::time::timeout(REHEARSAL, rehearsal(program, stdin).output()).await;
        // The child has taken it, if it could.
        memory::wipe(&memfd).context("wiping the state")?;
        let Ok(ended) = ended else {
            bail!("it did not answer within {} s", REHEARSAL.as_secs());
        };
        let ended = ended.context("starting it")?;
        let said = String::from_utf8_lossy(&ended.stderr);
        let last = said.trim_end().lines().last().unwrap_or_default();
        ensure!(ended.status.success(), "{}: {last}", ended.status);
        ensure!(
            ended.stdout.starts_with(CAN_RESUME.as_bytes()),
            "it is no espalier-dataplane that can be upgraded to in place"
        );
        Ok(version)
    }

    /// Does not return when it works. The other program has read a state of this version.
    fn replace(&self, program: &File, digest: Digest, version: u32) -> Result<()> {
        let (args, env) = (next_args()?, environment()?);
        info!(to = digest.short(), "this program is being replaced");
        let state = self.state(self.told.plane.freeze(), digest);
        let Err(why) = self.execute(program, (state, version), &args, &env);
        if let Err(thaw) = self.told.plane.thaw() {
            error!(%thaw, "the threads cannot be started again");
            drop(self.failed.try_send(thaw.into()));
        }
        Err(why)
    }

    fn execute(
        &self,
        program: &File,
        (state, version): (State, u32),
        args: &[CString],
        env: &[CString],
    ) -> Result<Infallible> {
        ensure!(
            format::version_of(&state) <= version,
            "an SA has come meanwhile which makes this state one that the other program may not know; ask again"
        );
        let descriptors = self.kept.descriptors(&state.plane);
        let memfd = memory::write(&format::write(state)).context("making a memfd")?;
        let offer = carry::Offer::new(memfd.as_fd(), &descriptors);
        let offer = offer.context("handing the descriptors over")?;
        let Err(errno) = fexecve(program, args, env);
        drop(offer);
        memory::wipe(&memfd).context("wiping the state")?;
        Err(anyhow!(errno).context("executing the other program"))
    }

    fn state(&self, plane: Plane, digest: Digest) -> State {
        State {
            writer: env!("CARGO_PKG_VERSION").to_owned(),
            digest,
            frozen_at_ns: espalier_handover::monotonic_ns(),
            notes: self.told.notes.clone(),
            descriptors: self.kept.roles(&plane),
            plane,
        }
    }
}

/// The program with this one's arguments, as a child that only looks at the state.
fn rehearsal(program: &File, stdin: OwnedFd) -> Command {
    let mut args = std::env::args_os();
    // By the descriptor, which is the file that was hashed.
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command
        .arg0(args.next().unwrap_or_default())
        .args(without_resume(args))
        .arg(RESUME_CHECK)
        .stdin(Stdio::from(stdin))
        .kill_on_drop(true);
    command
}

/// The command line of this process as somebody gave it.
fn without_resume(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    args.filter(|arg| arg != RESUME)
}

fn next_args() -> Result<Vec<CString>> {
    let all = without_resume(std::env::args_os()).chain([OsString::from(RESUME)]);
    let args: Result<_, _> = all.map(|arg| CString::new(arg.into_vec())).collect();
    args.context("this process' arguments")
}

fn environment() -> Result<Vec<CString>> {
    let entry = |(name, value): (OsString, OsString)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
    };
    let env: Result<_, _> = std::env::vars_os().map(entry).collect();
    env.context("this process' environment")
}
