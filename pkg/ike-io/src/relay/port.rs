//! UDP 4500 of a data plane that leaves ESP to the kernel: only IKE comes up to the socket, and goes to the agent and back.

use std::io;
use std::time::Duration;

use espalier_ike::Path;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tracing::{debug, trace};

use super::DataplaneEnd;
use crate::nat_t::{Datagram, classify, mark};
use crate::udp::UdpIke;
use crate::{DATAPLANE_SOCKET, Error};

/// After an error of the port, which the network may have caused.
const PAUSE: Duration = Duration::from_millis(50);

/// The port and the agent.
#[derive(Debug)]
pub struct PortRelay {
    udp: UdpIke,
    relay: DataplaneEnd,
    waiting: UnixDatagram,
}

impl PortRelay {
    /// Takes both over. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn new(udp: UdpIke, relay: DataplaneEnd) -> Result<Self, Error> {
        let waiting = relay.waiting().map_err(|cause| Error::Socket {
            path: DATAPLANE_SOCKET.into(),
            cause,
        })?;
        Ok(Self {
            udp,
            relay,
            waiting,
        })
    }

    /// Passes IKE messages on, without end.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                datagram = self.udp.recv() => match datagram {
                    Ok((path, datagram)) => self.take_in(&path, &datagram),
                    Err(error) => {
                        debug!(%error, "reading the port failed, going on");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                message = next(&self.waiting, &self.relay) => match message {
                    Ok((path, message)) => self.send_out(&path, &message).await,
                    Err(error) => {
                        debug!(%error, "reading the agent's messages failed, going on");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    /// ESP comes up only while the kernel does not take it; keepalives have done their work on their way.
    fn take_in(&self, path: &Path, datagram: &[u8]) {
        match classify(datagram) {
            Datagram::Ike(message) => {
                if !self.relay.forward(path, message) {
                    debug!(?path, "no agent takes an IKE message");
                }
            }
            other => trace!(?path, ?other, "not IKE"),
        }
    }

    async fn send_out(&self, path: &Path, message: &[u8]) {
        if let Err(error) = self.udp.send(path, &mark(message)).await {
            debug!(?path, %error, "IKE message not sent");
        }
    }
}

/// The agent's next message. Nothing is lost when the future is dropped.
async fn next(waiting: &UnixDatagram, relay: &DataplaneEnd) -> io::Result<(Path, Vec<u8>)> {
    loop {
        waiting.readable().await?;
        match waiting.try_io(Interest::READABLE, || relay.recv()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            message => return message,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::relay::AgentEnd;

    fn bind_free() -> (UdpIke, u16) {
        loop {
            let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
            let port = probe.local_addr().unwrap().port();
            drop(probe);
            if let Ok(udp) = UdpIke::bind(port) {
                return (udp, port);
            }
        }
    }

    #[tokio::test]
    async fn ike_passes_both_ways_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let (udp, port) = bind_free();
        let relay = PortRelay::new(udp, DataplaneEnd::bind(dir.path()).unwrap()).unwrap();
        let running = tokio::spawn(relay.run());
        let mut agent = AgentEnd::bind(dir.path()).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        for datagram in [&[0xff][..], &[1, 2, 3, 4, 5, 6, 7, 8], b"\0\0\0\0request"] {
            peer.send_to(datagram, ("127.0.0.1", port)).unwrap();
        }
        let (path, message) = agent.recv().await.unwrap();
        assert_eq!(message, b"request");
        assert_eq!(path.remote, peer.local_addr().unwrap());
        agent.send(&path, b"response").await.unwrap();
        let (answer, _) = tokio::task::spawn_blocking(move || {
            let mut buffer = [0; 64];
            let (length, _) = peer.recv_from(&mut buffer).unwrap();
            (buffer[..length].to_vec(), peer)
        })
        .await
        .unwrap();
        assert_eq!(answer, b"\0\0\0\0response");
        running.abort();
    }
}
