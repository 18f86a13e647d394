use std::io;
use std::path::Path as FilePath;
use std::time::Duration;

use espalier_ike::{Path, Transmit};
use tracing::{info, warn};

use crate::Error;
use crate::relay::AgentEnd;
use crate::udp::UdpIke;

/// IKE's own port (RFC 7296 §2).
const IKE_PORT: u16 = 500;
/// How often a port that was taken is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// IKE datagrams of both ports, without non-ESP marker.
///
/// Peers of a mesh use port 4500, so a busy port 500 does not stop it: the port is tried again until it is free, and
/// [`IkeIo::problem`] says so meanwhile.
#[derive(Debug)]
pub struct IkeIo {
    relay: AgentEnd,
    udp: Result<UdpIke, Error>,
    port: u16,
    retry: tokio::time::Interval,
}

impl IkeIo {
    /// Takes UDP 500 and the agent's end of the relay in `run_dir`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::SocketInUse`] and [`Error::Socket`]; a busy UDP port is no error but a [`IkeIo::problem`].
    pub fn bind(run_dir: &FilePath) -> Result<Self, Error> {
        Self::bind_port(run_dir, IKE_PORT)
    }

    /// [`IkeIo::bind`] with another port than 500.
    ///
    /// # Errors
    /// As [`IkeIo::bind`].
    pub fn bind_port(run_dir: &FilePath, port: u16) -> Result<Self, Error> {
        let relay = AgentEnd::bind(run_dir)?;
        let udp = UdpIke::bind(port);
        if let Err(error) = &udp {
            warn!(%error, "IKE on this port is not served; tried again every {} s", RETRY.as_secs());
        }
        let mut retry = tokio::time::interval_at(tokio::time::Instant::now() + RETRY, RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Ok(Self {
            relay,
            udp,
            port,
            retry,
        })
    }

    /// Why UDP 500 is not served now, with the remedy.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.udp.as_ref().err().map(ToString::to_string)
    }

    /// The next IKE message and where it came from. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// Those of the sockets. They do not last: call again.
    pub async fn recv(&mut self) -> io::Result<(Path, Vec<u8>)> {
        loop {
            tokio::select! {
                message = self.relay.recv() => return message,
                message = recv_udp(&mut self.udp) => return message,
                _ = self.retry.tick(), if self.udp.is_err() => self.try_port(),
            }
        }
    }

    /// Sends an IKE message: from port 500 directly, from any other port through the data plane.
    ///
    /// # Errors
    /// The data plane is away, the port is not served, or the network refused. IKE sends again by itself.
    pub async fn send(&self, transmit: &Transmit) -> io::Result<()> {
        if transmit.path.local.port() != self.port {
            return self.relay.send(&transmit.path, &transmit.payload).await;
        }
        match &self.udp {
            Ok(udp) => udp.send(&transmit.path, &transmit.payload).await,
            Err(error) => Err(io::Error::new(io::ErrorKind::AddrInUse, error.to_string())),
        }
    }

    fn try_port(&mut self) {
        self.udp = UdpIke::bind(self.port);
        if self.udp.is_ok() {
            info!(
                port = self.port,
                "the UDP port is free again; IKE is served on it"
            );
        }
    }
}

async fn recv_udp(udp: &mut Result<UdpIke, Error>) -> io::Result<(Path, Vec<u8>)> {
    match udp {
        Ok(udp) => udp.recv().await,
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

    use super::*;
    use crate::relay::DataplaneEnd;

    fn path(local_port: u16, remote: SocketAddr) -> Path {
        Path {
            local: (Ipv4Addr::LOCALHOST, local_port).into(),
            remote,
        }
    }

    fn free_port() -> u16 {
        UdpSocket::bind("0.0.0.0:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    }

    #[tokio::test]
    async fn the_port_decides_the_way_out_and_both_ways_come_in() {
        let dir = tempfile::tempdir().unwrap();
        let plane = DataplaneEnd::bind(dir.path()).unwrap();
        let port = free_port();
        let mut io = IkeIo::bind_port(dir.path(), port).unwrap();
        assert_eq!(io.problem(), None);
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let remote = peer.local_addr().unwrap();

        io.send(&Transmit {
            path: path(port, remote),
            payload: b"direct".to_vec(),
        })
        .await
        .unwrap();
        let mut buffer = [0; 64];
        let (length, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from),
            (&b"direct"[..], (Ipv4Addr::LOCALHOST, port).into())
        );
        io.send(&Transmit {
            path: path(4500, remote),
            payload: b"relayed".to_vec(),
        })
        .await
        .unwrap();
        assert_eq!(
            plane.recv().unwrap(),
            (path(4500, remote), b"relayed".to_vec())
        );

        peer.send_to(b"in", (Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_eq!(
            io.recv().await.unwrap(),
            (path(port, remote), b"in".to_vec())
        );
        assert!(plane.forward(&path(4500, remote), b"in by relay"));
        assert_eq!(
            io.recv().await.unwrap(),
            (path(4500, remote), b"in by relay".to_vec())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_port_is_named_and_taken_once_it_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = daemon.local_addr().unwrap().port();
        let mut io = IkeIo::bind_port(dir.path(), port).unwrap();
        let problem = io.problem().unwrap();
        for word in [&*format!("UDP port {port}"), "charon", "pluto", "stop it"] {
            assert!(problem.contains(word), "{problem}");
        }
        let transmit = Transmit {
            path: path(port, "127.0.0.1:9".parse().unwrap()),
            payload: vec![1],
        };
        assert_eq!(io.send(&transmit).await.unwrap_err().to_string(), problem);

        drop(daemon);
        // Time is virtual: it jumps to the next retry when nothing else is to be done.
        let waited = tokio::time::timeout(RETRY * 2, io.recv()).await;
        assert!(waited.is_err());
        assert_eq!(io.problem(), None);
    }
}
