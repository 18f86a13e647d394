use std::io;
use std::path::{Path as FilePath, PathBuf};

use espalier_ike::Path;
use tokio::net::UnixDatagram;
use tracing::warn;

use super::{MAX_DATAGRAM, decode, encode};
use crate::socket::{self, Name};
use crate::{AGENT_SOCKET, DATAPLANE_SOCKET, Error};

/// The agent's end.
#[derive(Debug)]
pub struct AgentEnd {
    socket: UnixDatagram,
    dataplane: PathBuf,
    buffer: Vec<u8>,
    _name: Name,
}

impl AgentEnd {
    /// Takes the agent's name in `run_dir`. The data plane need not be there, and may come and go. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`Error::SocketInUse`], [`Error::Socket`].
    pub fn bind(run_dir: &FilePath) -> Result<Self, Error> {
        let path = run_dir.join(AGENT_SOCKET);
        let (socket, name) = socket::bind(&path)?;
        let socket = socket
            .set_nonblocking(true)
            .and_then(|()| UnixDatagram::from_std(socket))
            .map_err(|cause| Error::Socket { path, cause })?;
        Ok(Self {
            socket,
            dataplane: run_dir.join(DATAPLANE_SOCKET),
            buffer: vec![0; MAX_DATAGRAM],
            _name: name,
        })
    }

    /// The next IKE message that came in on UDP 4500. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn recv(&mut self) -> io::Result<(Path, Vec<u8>)> {
        loop {
            let length = self.socket.recv(&mut self.buffer).await?;
            match decode(self.buffer.get(..length).unwrap_or_default()) {
                Ok((path, message)) => return Ok((path, message.to_vec())),
                Err(error) => warn!(%error, "the data plane relayed something unreadable"),
            }
        }
    }

    /// Sends an IKE message out of UDP 4500, along `path`.
    ///
    /// # Errors
    /// Names the data plane's socket when nobody is there.
    pub async fn send(&self, path: &Path, message: &[u8]) -> io::Result<()> {
        let datagram = encode(path, message).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "local and remote address are of different families",
            )
        })?;
        match self.socket.send_to(&datagram, &self.dataplane).await {
            Ok(_length) => Ok(()),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn explain(&self, error: io::Error) -> io::Error {
        let socket = self.dataplane.display();
        io::Error::new(
            error.kind(),
            format!("{error} on {socket}; is espalier-dataplane running on this node?"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_data_plane_the_error_names_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let agent = AgentEnd::bind(dir.path()).unwrap();
        let path = Path {
            local: "10.0.0.1:4500".parse().unwrap(),
            remote: "10.0.0.2:4500".parse().unwrap(),
        };
        let error = agent.send(&path, b"message").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = error.to_string();
        assert!(
            error.contains("dataplane-ike.sock") && error.contains("espalier-dataplane"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_second_agent_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _agent = AgentEnd::bind(dir.path()).unwrap();
        assert!(matches!(
            AgentEnd::bind(dir.path()),
            Err(Error::SocketInUse(_))
        ));
    }
}
