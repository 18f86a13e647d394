//! Small packets that tell whether raw ESP passes: the kernel's policies put them through the SA under trial, and nothing else through it.
//!
//! What they say proves nothing, since anybody can send the like in clear: what counts is that the counters of an inbound SA move.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use espalier_overlay::PROBE_PORT;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// Asks for an answer.
const ASK: &[u8] = b"espalier?";
/// The answer.
const ANSWER: &[u8] = b"espalier.";

/// The socket of probes. Answers go to peers only.
#[derive(Debug, Default)]
pub(super) struct Probes {
    local: Option<IpAddr>,
    socket: Option<Arc<UdpSocket>>,
    peers: Arc<Mutex<BTreeSet<IpAddr>>>,
    answering: Option<JoinHandle<()>>,
}

impl Probes {
    /// These are all peers.
    pub(super) fn answer_to(&self, peers: impl Iterator<Item = IpAddr>) {
        *self.peers.lock().unwrap_or_else(PoisonError::into_inner) = peers.collect();
    }

    /// From this address. Cheap when it is the same.
    pub(super) fn serve(&mut self, local: IpAddr) {
        if self.local == Some(local) {
            return;
        }
        self.stop();
        match bind(local) {
            Ok(socket) => {
                let socket = Arc::new(socket);
                let answering = answer(socket.clone(), self.peers.clone());
                self.answering = Some(tokio::spawn(answering));
                (self.socket, self.local) = (Some(socket), Some(local));
            }
            Err(error) => {
                warn!(%local, port = PROBE_PORT, %error, "no probes: raw ESP counts as not passing; who else uses this port?");
            }
        }
    }

    pub(super) fn ask(&self, peer: IpAddr) {
        send(
            self.socket.as_deref(),
            SocketAddr::new(peer, PROBE_PORT),
            ASK,
        );
    }

    fn stop(&mut self) {
        (self.socket, self.local) = (None, None);
        if let Some(task) = self.answering.take() {
            task.abort();
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop();
    }
}

fn bind(local: IpAddr) -> std::io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(SocketAddr::new(local, PROBE_PORT))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

fn send(socket: Option<&UdpSocket>, to: SocketAddr, what: &[u8]) {
    // One that is lost is followed by another.
    if let Some(Err(error)) = socket.map(|socket| socket.try_send_to(what, to)) {
        debug!(%to, %error, "a probe could not be sent");
    }
}

async fn answer(socket: Arc<UdpSocket>, peers: Arc<Mutex<BTreeSet<IpAddr>>>) {
    let mut buffer = [0; 64];
    loop {
        // An ICMP error about an earlier probe, which a socket that is not connected hardly sees.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let asked = buffer.get(..length) == Some(ASK);
        let known = || {
            let peers = peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.contains(&from.ip())
        };
        if asked && from.port() == PROBE_PORT && known() {
            send(Some(&socket), from, ANSWER);
        }
    }
}
