//! What an endpoint says: events, datagrams to send, status.

use std::net::SocketAddr;
use std::time::Duration;

use espalier_secret::SecretBytes;

use crate::config::{ChildId, Identity, TrafficSelector, Volume};
use crate::suite::ChildSuite;

/// Where a datagram came in or goes out. The UDP ports tell the framing: on 4500 the I/O adds and strips the non-ESP marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// This node's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// A datagram to send: an IKE message without non-ESP marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// From and to.
    pub path: Path,
    /// The IKE message.
    pub payload: Vec<u8>,
}

/// Which side of an exchange this node was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Sent the request.
    Initiator,
    /// Answered it.
    Responder,
}

/// Key material of one direction, as long as [`ChildSuite::key_lens`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildKeys {
    /// Encryption key, followed by the salt where the suite has one. Empty with AH.
    pub key: SecretBytes,
    /// Integrity key. Empty where the cipher has its own integrity.
    pub integrity: SecretBytes,
}

impl ChildKeys {
    /// Splits one direction's part of KEYMAT: the encryption key comes first (RFC 7296 §2.17).
    pub(crate) fn split(keymat: &SecretBytes, suite: ChildSuite) -> Self {
        let all = keymat.expose();
        let (key, integrity) = all
            .split_at_checked(suite.key_lens().0)
            .unwrap_or((all, &[]));
        Self {
            key: SecretBytes::copy_from(key),
            integrity: SecretBytes::copy_from(integrity),
        }
    }
}

/// What is around ESP or AH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// Nothing.
    Raw,
    /// UDP (RFC 3948).
    Udp,
}

/// A negotiated CHILD_SA pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildSa {
    /// Which of the configured ones.
    pub id: ChildId,
    /// The peer takes further ones of this kind, one for each CPU (RFC 9611). Only said of the fallback.
    pub per_cpu: bool,
    /// Chosen by this node: what the peer seals with.
    pub spi_in: u32,
    /// Chosen by the peer: what this node seals with.
    pub spi_out: u32,
    /// Protocol and algorithms.
    pub suite: ChildSuite,
    /// Extended sequence numbers agreed.
    pub esn: bool,
    /// Transport mode agreed; else tunnel.
    pub transport: bool,
    /// For `spi_in`.
    pub keys_in: ChildKeys,
    /// For `spi_out`.
    pub keys_out: ChildKeys,
    /// What it may carry, with this node's random part: report with [`crate::Endpoint::note_usage`] how much it has, or act on
    /// it where the counters are (soft: [`crate::Endpoint::rekey_child_sa`]).
    pub volume: Volume,
    /// Narrowed selectors of this node.
    pub local_ts: Vec<TrafficSelector>,
    /// Narrowed selectors of the peer.
    pub remote_ts: Vec<TrafficSelector>,
    /// Which side this node was. An initiator may seal with `spi_out` at once: the responder installed before it answered.
    /// A responder waits until the initiator is known to be ready (its announcement, or a packet on `spi_in`).
    pub role: Role,
    /// What both ends, nodes of a mesh, agreed on; `None`: they did not speak of it.
    pub encapsulation: Option<Encapsulation>,
    /// ESP must travel in UDP between these two (RFC 3948): agreed, or a NAT is between the ends, or one of them says so. `None`: it
    /// need not; that IKE uses port 4500 says nothing.
    pub udp_encapsulation: Option<Path>,
}

/// Why a handshake did not succeed; the text names cause and remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HandshakeError(pub String);

/// Why something ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// This node asked for it.
    Local,
    /// The peer deleted it.
    Peer,
    /// A newer one took its place and is confirmed.
    Replaced,
    /// The peer did not answer, or one end could not read what the other said. CHILD_SAs stay in the data plane: they may
    /// still carry traffic.
    Timeout,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An IKE SA is established and its peer authenticated.
    IkeUp {
        /// Who.
        peer: Identity,
        /// From the first to the last message of the handshake, as this side saw it.
        took: Duration,
        /// This node's role.
        role: Role,
    },
    /// A CHILD_SA pair is negotiated: install both directions before draining transmits.
    ChildUp {
        /// Whose.
        peer: Identity,
        /// With keys.
        child: Box<ChildSa>,
        /// What the peer announced in the same exchange, if it did.
        announcement: Option<Vec<u8>>,
    },
    /// A CHILD_SA pair ended: remove both directions.
    ChildDown {
        /// Whose.
        peer: Identity,
        /// Which, inbound SPI.
        spi_in: u32,
        /// Which, outbound SPI.
        spi_out: u32,
        /// Why. Never [`CloseReason::Timeout`].
        reason: CloseReason,
    },
    /// The last IKE SA with a peer ended.
    IkeDown {
        /// Whose.
        peer: Identity,
        /// Why. After [`CloseReason::Timeout`] the CHILD_SAs are the driver's to keep until they are replaced.
        reason: CloseReason,
    },
    /// The ends of an established IKE SA have changed (RFC 7296 §2.23, RFC 4555): the peer's SAs are to be sent between the new
    /// ones. The peer is authenticated, and its address one of its [`crate::PeerConfig::addresses`].
    AddressChanged {
        /// Whose.
        peer: Identity,
        /// This node's end and the peer's.
        path: Path,
        /// As [`ChildSa::udp_encapsulation`].
        udp_encapsulation: Option<Path>,
    },
    /// The peer announced something (INFORMATIONAL).
    Announcement {
        /// Who.
        peer: Identity,
        /// What, opaque.
        data: Vec<u8>,
    },
    /// The peer acknowledged this node's last announcement.
    AnnouncementAcked {
        /// Who.
        peer: Identity,
        /// What it acknowledged.
        data: Vec<u8>,
    },
    /// A handshake failed. The endpoint tries again by itself while the peer is wanted.
    HandshakeFailed {
        /// With whom; `None` when the other side never said who it is.
        peer: Option<Identity>,
        /// Where the other side is.
        remote: SocketAddr,
        /// Cause and remedy.
        error: HandshakeError,
    },
}

/// State of IKE with one peer, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IkeStatus {
    /// Nothing.
    None,
    /// A handshake is under way or will be tried again.
    Connecting,
    /// At least one IKE SA is established.
    Established,
}
