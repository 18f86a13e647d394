//! The thread that hears the kernel.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use espalier_dataplane_core::{Direction, Event};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, error, warn};

use super::Shared;
use super::inner::Inner;
use super::states::Name;
use crate::error::Error;
use crate::listener::{Heard, Listener};
use crate::notice::Notice;
use crate::reqid::PEERS;
use crate::wire::expire::Expire;

/// So many states are looked at without a pause, under the lock that the operations need, too.
const LOOKS: usize = 64;
/// From one look to the next: when thousands of SAs come in, the operations have most of the time.
const PACE: Duration = Duration::from_millis(5);
/// After a failure that may pass.
const AGAIN: Duration = Duration::from_millis(200);

/// Runs until told to stop.
pub(super) fn run(shared: &Arc<Shared>, mut listener: Listener) {
    let mut not_before = Instant::now();
    while !shared.stopped.load(Ordering::Relaxed) {
        if let Err(error) = turn(shared, &mut listener, &mut not_before) {
            error!(%error, "watching the kernel's states failed, going on");
            std::thread::sleep(AGAIN);
        }
    }
}

fn turn(shared: &Shared, listener: &mut Listener, not_before: &mut Instant) -> Result<(), Error> {
    let due = shared.inner.lock().states.next_look();
    wait(shared, listener, due.map(|due| due.max(*not_before)))?;
    loop {
        let events = match listener.hear()? {
            Heard::Nothing => break,
            Heard::Lost => {
                warn!("the kernel's events came faster than they were read; reading all states");
                shared.inner.lock().resync()?
            }
            Heard::Notices(notices) => shared.inner.lock().take(&notices)?,
        };
        shared.report(events);
    }
    let now = Instant::now();
    if now >= *not_before {
        *not_before = now + PACE;
        let events = shared.inner.lock().look(now)?;
        shared.report(events);
    }
    Ok(())
}

/// Until the kernel says something, a new SA is to be watched, or it is time to look.
fn wait(shared: &Shared, listener: &Listener, due: Option<Instant>) -> Result<(), Error> {
    let mut fds = [
        PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        PollFd::new(shared.nudge.as_fd(), PollFlags::POLLIN),
    ];
    let timeout = due.map_or(PollTimeout::NONE, |due| {
        let left = due.saturating_duration_since(Instant::now());
        // Rounded up: a timeout of 0 would spin until it is time.
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {
            // Non-blocking: an error means that nobody nudged.
            let _ = shared.nudge.read();
            Ok(())
        }
        Err(errno) => Err(Error::io("waiting for the kernel's XFRM events", errno)),
    }
}

impl Inner {
    fn take(&mut self, notices: &[Notice]) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        for notice in notices {
            match notice {
                Notice::Expire(expire) => events.extend(self.take_expire(expire)),
                Notice::Acquire(reqids) => {
                    events.extend(reqids.iter().filter_map(|reqid| self.acquire(*reqid)));
                }
                Notice::Unclear => events.extend(self.resync()?),
            }
        }
        Ok(events)
    }

    fn take_expire(&mut self, expire: &Expire) -> Option<Event> {
        let state = &expire.state;
        if !PEERS.contains(&state.reqid) {
            return None;
        }
        let name = Name::of_state(state);
        debug!(reqid = state.reqid, spi = %state.spi(), hard = expire.hard, packets = state.packets, "EXPIRE");
        match (expire.hard, state.direction) {
            (true, _) => self.expired(&name),
            (false, Direction::In) if state.packets > 0 => self.confirmed(&name),
            (false, _) => None,
        }
    }

    /// Events were lost: everything is compared. What the kernel still waits for (larval states) is asked for again.
    fn resync(&mut self) -> Result<Vec<Event>, Error> {
        let found = self.sad.list(|reqid| PEERS.contains(&reqid))?;
        let mut events = self.compare(&found);
        let larval = found.iter().filter(|state| !state.keyed);
        events.extend(larval.filter_map(|state| self.acquire(state.reqid)));
        Ok(events)
    }

    /// Looks at states whose time has come; those that are left are the first ones next time.
    fn look(&mut self, now: Instant) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        for name in self.states.take_due(now, LOOKS) {
            let state = self.sad.get(&name.id)?;
            if state.is_some_and(|state| state.reqid == name.reqid && state.packets > 0) {
                events.extend(self.confirmed(&name));
            }
        }
        Ok(events)
    }
}
