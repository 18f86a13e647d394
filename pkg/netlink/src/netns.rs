use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    thread,
};

use nix::sched::{CloneFlags, setns};

use crate::Error;

/// The calling thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Runs `work` on a short-lived thread inside the network namespace that `netns` refers to, and waits for it. The calling
/// thread stays where it is. Only the network namespace changes: paths keep their meaning (but `/proc/sys/net` and
/// `/proc/thread-self/net`, which follow the thread). In the calling thread's own namespace it is just called, which needs no
/// capability.
///
/// # Errors
/// When the thread cannot start or enter the namespace (CAP_SYS_ADMIN is needed).
pub fn in_netns<T: Send>(netns: impl AsFd, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let netns = netns.as_fd();
    if is_own(netns) {
        return Ok(work());
    }
    let enter_and_work = move || {
        setns(netns, CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::io("enter a network namespace", e))?;
        Ok(work())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, enter_and_work)
            .map_err(|e| Error::io("start a thread for a network namespace", e))?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Runs `work` in the network namespace that `netns` refers to, on the calling thread, which is back in its own afterwards, also
/// after a panic: for programs that cannot wait for a thread to start. The rest is as with [`in_netns`].
///
/// When there is no way back, the process ends: nothing that it did then would be done where it should be.
///
/// # Errors
/// When the namespace cannot be entered (CAP_SYS_ADMIN is needed).
pub fn visit_netns<T>(netns: impl AsFd, work: impl FnOnce() -> T) -> Result<T, Error> {
    let home =
        File::open(OWN).map_err(|e| Error::io("open the thread's own network namespace", e))?;
    setns(netns, CloneFlags::CLONE_NEWNET)
        .map_err(|e| Error::io("enter a network namespace", e))?;
    let _home = WayHome(home);
    Ok(work())
}

struct WayHome(File);

impl Drop for WayHome {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.0, CloneFlags::CLONE_NEWNET) {
            eprintln!("no way back to the thread's own network namespace: {error}");
            std::process::abort();
        }
    }
}

/// When in doubt it is another one.
fn is_own(netns: BorrowedFd<'_>) -> bool {
    let theirs = netns
        .try_clone_to_owned()
        .and_then(|fd| File::from(fd).metadata());
    let own = fs::metadata(OWN);
    matches!((theirs, own), (Ok(theirs), Ok(own)) if (theirs.dev(), theirs.ino()) == (own.dev(), own.ino()))
}
