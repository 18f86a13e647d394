use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicU64, Ordering};

use espalier_ike::Path;
use nix::libc::MSG_DONTWAIT;
use socket2::{SockAddr, SockRef};

use super::{MAX_DATAGRAM, decode, encode};
use crate::socket::{self, Name};
use crate::{AGENT_SOCKET, DATAPLANE_SOCKET, Error};

/// The data plane's end: for OS threads, several of which may use it at once.
#[derive(Debug)]
pub struct DataplaneEnd {
    socket: UnixDatagram,
    agent: SockAddr,
    dropped: AtomicU64,
    malformed: AtomicU64,
    _name: Name,
}

impl DataplaneEnd {
    /// Takes the data plane's name in `run_dir`. The agent need not be there, and may come and go.
    ///
    /// # Errors
    /// [`Error::SocketInUse`], [`Error::Socket`].
    pub fn bind(run_dir: &FilePath) -> Result<Self, Error> {
        let (socket, name) = socket::bind(&run_dir.join(DATAPLANE_SOCKET))?;
        Self::new(run_dir, socket, name)
    }

    /// Goes on with the socket that an earlier process bound in `run_dir`, and with what waits in it.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn resume(run_dir: &FilePath, socket: OwnedFd) -> Result<Self, Error> {
        let name = Name::of(&run_dir.join(DATAPLANE_SOCKET))?;
        Self::new(run_dir, socket.into(), name)
    }

    fn new(run_dir: &FilePath, socket: UnixDatagram, name: Name) -> Result<Self, Error> {
        let agent = run_dir.join(AGENT_SOCKET);
        let agent = SockAddr::unix(&agent).map_err(|cause| Error::Socket { path: agent, cause })?;
        Ok(Self {
            socket,
            agent,
            dropped: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            _name: name,
        })
    }

    /// Hands an IKE message (without marker) that came in on `path` to the agent; never waits. False when it was dropped
    /// because the agent is away or behind: its sender sends again.
    pub fn forward(&self, path: &Path, message: &[u8]) -> bool {
        let sent = encode(path, message).is_some_and(|datagram| {
            SockRef::from(&self.socket)
                .send_to_with_flags(&datagram, &self.agent, MSG_DONTWAIT)
                .is_ok()
        });
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// Waits for an IKE message from the agent: where to send it from and to, and the message (without marker).
    /// What cannot be read is counted and skipped.
    ///
    /// # Errors
    /// Those of the socket, [`io::ErrorKind::WouldBlock`] after [`DataplaneEnd::set_nonblocking`] among them.
    pub fn recv(&self) -> io::Result<(Path, Vec<u8>)> {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let length = self.socket.recv(&mut buffer)?;
            match buffer.get(..length).map(decode) {
                Some(Ok((path, message))) => return Ok((path, message.to_vec())),
                _ => self.malformed.fetch_add(1, Ordering::Relaxed),
            };
        }
    }

    /// From now on [`DataplaneEnd::recv`] does not wait ([`io::ErrorKind::WouldBlock`]): the socket is waited for by its
    /// descriptor.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    /// The same socket, to wait in a runtime for something to receive. [`DataplaneEnd::recv`] gives up at once from now on
    /// ([`io::ErrorKind::WouldBlock`]) when there is nothing. Must be called inside a tokio runtime.
    pub(super) fn waiting(&self) -> io::Result<tokio::net::UnixDatagram> {
        let same = self.socket.try_clone()?;
        same.set_nonblocking(true)?;
        tokio::net::UnixDatagram::from_std(same)
    }

    /// Messages that could not be handed to the agent.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Datagrams from the agent's side that could not be read.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }
}

impl AsFd for DataplaneEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::AgentEnd;

    fn path() -> Path {
        Path {
            local: "10.0.0.1:4500".parse().unwrap(),
            remote: "10.0.0.2:4500".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn messages_pass_both_ways_and_across_an_agents_restart() {
        let dir = tempfile::tempdir().unwrap();
        let plane = DataplaneEnd::bind(dir.path()).unwrap();
        assert!(!plane.forward(&path(), b"nobody there yet"));
        for round in [b"first agent", b"other agent"] {
            let mut agent = AgentEnd::bind(dir.path()).unwrap();
            assert!(plane.forward(&path(), round));
            assert_eq!(agent.recv().await.unwrap(), (path(), round.to_vec()));
            agent.send(&path(), b"answer").await.unwrap();
            assert_eq!(plane.recv().unwrap(), (path(), b"answer".to_vec()));
        }
        assert!(!plane.forward(&path(), b"gone again"));
        assert_eq!((plane.dropped(), plane.malformed()), (2, 0));
    }

    #[tokio::test]
    async fn an_agent_that_hangs_costs_drops_and_no_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let plane = DataplaneEnd::bind(dir.path()).unwrap();
        let mut agent = AgentEnd::bind(dir.path()).unwrap();
        let passed = (0..100_000)
            .take_while(|_| plane.forward(&path(), b"flood"))
            .count();
        assert!(passed < 100_000 && plane.dropped() == 1, "{passed}");
        for _ in 0..passed {
            agent.recv().await.unwrap();
        }
        assert!(plane.forward(&path(), b"again"));
    }

    #[tokio::test]
    async fn a_successor_goes_on_with_the_socket_and_what_waits_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let old = DataplaneEnd::bind(dir.path()).unwrap();
        let mut agent = AgentEnd::bind(dir.path()).unwrap();
        agent.send(&path(), b"waits").await.unwrap();
        let same = old.as_fd().try_clone_to_owned().unwrap();
        // As an exec does it: the old one's destructors do not run.
        std::mem::forget(old);
        let new = DataplaneEnd::resume(dir.path(), same).unwrap();
        assert_eq!(new.recv().unwrap(), (path(), b"waits".to_vec()));
        assert!(new.forward(&path(), b"and back"));
        assert_eq!(agent.recv().await.unwrap().1, b"and back");
        drop(new);
        assert!(!dir.path().join(DATAPLANE_SOCKET).exists());
    }

    #[test]
    fn what_cannot_be_read_is_counted_and_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let plane = DataplaneEnd::bind(dir.path()).unwrap();
        let stranger = UnixDatagram::unbound().unwrap();
        let socket = dir.path().join(DATAPLANE_SOCKET);
        stranger.send_to(b"what?", &socket).unwrap();
        stranger
            .send_to(&encode(&path(), b"fine").unwrap(), &socket)
            .unwrap();
        assert_eq!(plane.recv().unwrap().1, b"fine");
        assert_eq!(plane.malformed(), 1);
        plane.set_nonblocking().unwrap();
        assert_eq!(plane.recv().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
