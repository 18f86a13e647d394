//! Waiting for a descriptor or for the end, whichever comes first.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What to wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interest {
    Readable,
    Writable,
}

impl Interest {
    fn events(self) -> PollFlags {
        match self {
            Self::Readable => PollFlags::POLLIN,
            Self::Writable => PollFlags::POLLOUT,
        }
    }
}

/// How long what was begun may take to be finished, in milliseconds.
const FINISH: u8 = 50;

/// How often a thread looks again before it sleeps.
const LOOKS: u32 = 4;

/// A thread whose queue has become empty lets others run, and looks again, before it sleeps: where the one that fills the queue shares
/// its core, that one goes on at once and fills it, and neither a sleep nor a wake-up is paid for each packet. Where nobody else
/// wants the core it costs a microsecond or two.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    looked: u32,
}

impl Patience {
    /// Something was there.
    pub(crate) fn renew(&mut self) {
        self.looked = 0;
    }

    /// Whether to look again after this error, having let others run.
    pub(crate) fn lasts(&mut self, error: &io::Error) -> bool {
        let again = error.kind() == io::ErrorKind::WouldBlock && self.looked < LOOKS;
        if again {
            self.looked += 1;
            std::thread::yield_now();
        }
        again
    }
}

/// The threads are told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

/// Tells every [`Stop`] to end when dropped.
#[derive(Debug)]
pub(crate) struct Stopper {
    stopped: Arc<AtomicBool>,
    _pipe: PipeWriter,
}

/// A thread's view of it.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    stopped: Arc<AtomicBool>,
    pipe: Arc<PipeReader>,
}

pub(crate) fn stopper() -> io::Result<(Stopper, Stop)> {
    let (pipe, writer) = io::pipe()?;
    let stopped = Arc::new(AtomicBool::new(false));
    Ok((
        Stopper {
            stopped: stopped.clone(),
            _pipe: writer,
        },
        Stop {
            stopped,
            pipe: Arc::new(pipe),
        },
    ))
}

impl Drop for Stopper {
    fn drop(&mut self) {
        // The pipe closes after this: it wakes whoever waits, the flag is for whoever never has to.
        self.stopped.store(true, Ordering::Relaxed);
    }
}

impl Stop {
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// [`Self::wait`]; when told to end, it goes on for [`FINISH`]: what was read is not dropped where its way out is free again soon.
    pub(crate) fn wait_or_finish(
        &self,
        fd: BorrowedFd<'_>,
        interest: Interest,
    ) -> Result<(), Stopped> {
        if self.wait(fd, interest).is_ok() {
            return Ok(());
        }
        match poll(&mut [PollFd::new(fd, interest.events())], FINISH) {
            Ok(0) | Err(_) => Err(Stopped),
            Ok(_) => Ok(()),
        }
    }

    /// Returns when `fd` is ready; an error on it counts as ready, since reading or writing tells it.
    pub(crate) fn wait(&self, fd: BorrowedFd<'_>, interest: Interest) -> Result<(), Stopped> {
        let events = interest.events();
        loop {
            let mut fds = [
                PollFd::new(fd, events),
                PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                // ENOMEM or EFAULT: let the caller's next read or write say what is wrong.
                Err(_) => {
                    return if self.is_stopped() {
                        Err(Stopped)
                    } else {
                        Ok(())
                    };
                }
                Ok(_) if self.is_stopped() => return Err(Stopped),
                Ok(_) => return Ok(()),
            }
        }
    }
}

/// Whether it need not be waited for now.
pub(crate) fn is_ready(fd: BorrowedFd<'_>, interest: Interest) -> bool {
    let found = poll(&mut [PollFd::new(fd, interest.events())], PollTimeout::ZERO);
    found.is_ok_and(|found| found > 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_descriptor_is_ready_with_something_to_read_or_room_to_write() {
        let (one, other) = UnixDatagram::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        assert!(!is_ready(other.as_fd(), Interest::Readable));
        assert!(is_ready(one.as_fd(), Interest::Writable));
        while one.send(&[0; 1024]).is_ok() {}
        assert!(is_ready(other.as_fd(), Interest::Readable));
        assert!(!is_ready(one.as_fd(), Interest::Writable), "no room");
    }

    #[test]
    fn a_waiting_thread_is_woken_by_either() {
        let (stopper, stop) = stopper().unwrap();
        let (one, other) = UnixDatagram::pair().unwrap();
        other.send(b"x").unwrap();
        assert_eq!(stop.wait(one.as_fd(), Interest::Readable), Ok(()));
        one.recv(&mut [0; 8]).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait(one.as_fd(), Interest::Readable));
            drop(stopper);
            assert_eq!(waiting.join().unwrap(), Err(Stopped));
        });
        assert!(stop.is_stopped());
    }
}
