//! What can go wrong, by whose fault: [`ConfigError`] is the caller's; [`Failure`] is a handshake's, with one conversion to
//! the notify that tells the peer and one text that tells the admin cause and remedy.

use std::net::{IpAddr, SocketAddr};

use crate::config::{Encapsulations, Identity};
use crate::crypto::{AuthError, CryptoError};
use crate::event::HandshakeError;
use crate::identity::IdentityError;
use crate::limits;
use crate::wire::{self, AuthMethod, NotifyType};

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a name that fits ID_FQDN.
    #[error(
        "identity {0:?} is no node name: 1 to {max} printable ASCII characters expected",
        max = limits::IDENTITY_MAX
    )]
    Identity(String),
    /// A live endpoint keeps its name.
    #[error("the endpoint is {is}; to become {wanted}, make a new endpoint")]
    IdentityChange {
        /// Present.
        is: Identity,
        /// Asked for.
        wanted: Identity,
    },
    /// A node cannot be its own peer.
    #[error("peer {0} has this node's own identity: leave this node out of its peers")]
    Own(Identity),
    /// Certificates without a certificate.
    #[error(
        "peer {0} is to be authenticated by certificate, but this node has no certificate: issue one with `espalier pki issue`, or give a PSK for this peer"
    )]
    NoCredentials(Identity),
    /// Certificates without a CA.
    #[error(
        "peer {0} is to be authenticated by certificate, but this node has no CA certificate: give ca.crt, or a PSK for this peer"
    )]
    NoTrust(Identity),
    /// A PSK that can be guessed.
    #[error(
        "PSK for peer {peer} has {got} bytes, at least {min} expected: make one with `espalier pki psk`",
        min = limits::PSK_MIN
    )]
    ShortPsk {
        /// For whom.
        peer: Identity,
        /// Its length.
        got: usize,
    },
    /// A PPK that can be guessed, or without a name.
    #[error(
        "PPK for peer {peer} has a name of {name} bytes (1 to {longest} expected) and {got} bytes of key (at least {min} expected): make one with `espalier pki psk`",
        longest = limits::PPK_ID_MAX,
        min = limits::PPK_MIN
    )]
    Ppk {
        /// For whom.
        peer: Identity,
        /// Length of its name.
        name: usize,
        /// Its length.
        got: usize,
    },
    /// Nobody could ever be this peer.
    #[error("peer {0} has no address: its Node needs an address of type InternalIP")]
    NoAddress(Identity),
    /// An IKE SA without algorithms.
    #[error("the IKE policy {of} lists no {what}: name at least one, or leave the policy out")]
    NoIkeAlgorithm {
        /// Whose policy.
        of: String,
        /// What is missing.
        what: &'static str,
    },
    /// AES-CBC towards everybody.
    #[error(
        "this node's own IKE policy lists AES-CBC: list it in the policy of the one peer that has no AEAD"
    )]
    CbcForAll,
    /// A move to where the peer is not.
    #[error(
        "peer {peer} has no address {address}: its Node needs it as an address of type InternalIP"
    )]
    Address {
        /// Whose.
        peer: Identity,
        /// Asked for.
        address: IpAddr,
    },
    /// A CHILD_SA without algorithms, or with too many.
    #[error("peer {0} needs 1 to {max} ESP or AH suites for a CHILD_SA", max = limits::SUITES_MAX)]
    NoSuites(Identity),
    /// Nobody to have it with.
    #[error("{0} is no peer: put the peer before its further CHILD_SAs")]
    NoPeer(Identity),
    /// Too many CHILD_SAs, or one in the place of the first.
    #[error(
        "CHILD_SA {number} with peer {peer} cannot be added: a number from 1 on and at most {max} of them expected; number 0 is the peer's own configuration",
        max = limits::CHILDREN_MAX
    )]
    ChildNumber {
        /// With whom.
        peer: Identity,
        /// Asked for.
        number: u32,
    },
    /// More CHILD_SAs per CPU than anybody has CPUs.
    #[error(
        "{asked} CHILD_SAs per CPU asked for with peer {peer}, at most {max} expected",
        max = limits::PER_CPU_MAX
    )]
    PerCpu {
        /// With whom.
        peer: Identity,
        /// How many.
        asked: u32,
    },
    /// Selectors that select nothing, or too many.
    #[error(
        "peer {0} needs 1 to {max} traffic selectors per side, each with ranges in order and of one address family",
        max = limits::SELECTORS_MAX
    )]
    Selectors(Identity),
    /// Too long for the notify.
    #[error(
        "announcement to peer {peer} has {got} bytes, at most {max} fit",
        max = limits::ANNOUNCEMENT_MAX
    )]
    Announcement {
        /// To whom.
        peer: Identity,
        /// Its length.
        got: usize,
    },
}

/// Why a handshake failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    // --- Found out here about the peer: told to it by a notify. ---
    #[error(
        "{remote} claims to be {claimed}, which is no peer of this node: add a Node of that name, or look who uses that address"
    )]
    UnknownPeer {
        claimed: Identity,
        remote: SocketAddr,
    },
    #[error(
        "identity {claimed} came from {remote}, which is not an address of Node {claimed} (it has {addresses}): correct the Node's addresses, or look who uses its key"
    )]
    WrongAddress {
        claimed: Identity,
        remote: IpAddr,
        addresses: String,
    },
    #[error(
        "{remote} sent an identity of another kind than ID_FQDN or none: it is no Espalier node, or its identity is not set to its node name"
    )]
    NoIdentity { remote: SocketAddr },
    #[error(
        "{peer} wants to talk to {wanted}, but this is {own}: a wrong address for {wanted} on {peer}"
    )]
    NotMe {
        peer: Identity,
        wanted: String,
        own: Identity,
    },
    #[error(
        "expected {peer} at this address, but {answered} answered: correct the address of Node {peer}"
    )]
    OtherPeer { peer: Identity, answered: String },
    #[error("{peer}: {error}")]
    Certificate {
        peer: Identity,
        error: IdentityError,
    },
    #[error("{peer}: {error}")]
    Auth { peer: Identity, error: AuthError },
    #[error(
        "{peer} sent no AUTH payload (EAP is not supported): configure certificates or a PSK on it"
    )]
    NoAuth { peer: Identity },
    #[error(
        "{peer} authenticates by {got:?}, but this node expects {expected}: configure the same way on both nodes"
    )]
    Method {
        peer: Identity,
        expected: &'static str,
        got: AuthMethod,
    },
    #[error(
        "{peer} does not use the post-quantum preshared key that is required for it (RFC 8784): set the same PPK on both nodes, or make it optional here"
    )]
    PpkRequired { peer: Identity },
    #[error(
        "{peer} insists on the post-quantum preshared key {named:?}, which this node does not have for it: set the same PPK on both nodes, or make it optional there"
    )]
    PpkUnknown { peer: Identity, named: String },
    #[error(
        "{failure} (Or its post-quantum preshared key of the same name differs from this node's: put the same one on both.)"
    )]
    PpkDiffers { failure: Box<Failure> },
    #[error(
        "{peer} does not accept signatures with hash {wanted} (RFC 7427), only {listed:?}: use another kind of key for this node's certificate"
    )]
    Hash {
        peer: String,
        wanted: u16,
        listed: Vec<u16>,
    },
    #[error("no IKE proposal in common: the peer offered {offered}; this node takes {own}")]
    NoIkeProposal { offered: String, own: String },
    #[error(
        "{peer} and this node agreed on {chosen} for the IKE SA by its address, which the policy for {peer} does not allow: set the same IKE policy on both, or give {peer} an address of its own"
    )]
    IkePolicy { peer: Identity, chosen: String },
    #[error(
        "no ESP or AH proposal in common with {peer}: it offered {offered}; this node takes {own}: set the same suites on both"
    )]
    NoChildProposal {
        peer: Identity,
        offered: String,
        own: String,
    },
    #[error("{peer} wants {theirs} mode, this node {ours} mode: set the same overlay on both")]
    Mode {
        peer: Identity,
        ours: &'static str,
        theirs: &'static str,
    },
    #[error(
        "no way for ESP in common with {peer}: it says {theirs}, this node {ours}: set udpEncapsulation: Auto on both (through a NAT only UDP works, AH never does)"
    )]
    Encapsulation {
        peer: Identity,
        ours: Encapsulations,
        theirs: Encapsulations,
    },
    #[error(
        "traffic selectors have nothing in common with {peer}: it offered {offered}; this node allows {own}: the nodes disagree about each other's addresses or the overlay"
    )]
    Selectors {
        peer: Identity,
        offered: String,
        own: String,
    },
    #[error("both nodes started at once; the lower identity's handshake goes on")]
    Crossing,
    #[error("malformed message: {0}; the peer has another version or a fault")]
    Malformed(#[from] wire::Error),
    #[error("{what} is missing in the {message}: the peer has a fault")]
    Missing {
        what: &'static str,
        message: &'static str,
    },
    #[error("{0}")]
    Crypto(#[from] CryptoError),

    // --- Told by the peer, or not told at all. ---
    #[error(
        "{peer} accepted this node but refused the CHILD_SA with {notify:?}: the reason is in {peer}'s log"
    )]
    Childless { peer: Identity, notify: NotifyType },
    #[error(
        "{peer} refused this node's identity or key (AUTHENTICATION_FAILED): the reason is in {peer}'s log"
    )]
    RefusedByPeer { peer: Identity },
    #[error(
        "{peer} authenticated this node and then ended the IKE SA, or did not answer, before there was a CHILD_SA: the reason is in {peer}'s log"
    )]
    NoFirstChild { peer: Identity },
    #[error(
        "{peer} refused CHILD_SA {number} with {notify:?}: the reason is in {peer}'s log; configure the same CHILD_SA there"
    )]
    ChildRefused {
        peer: Identity,
        number: u32,
        notify: NotifyType,
    },
    #[error("{peer} refused the handshake with {notify:?}: the reason is in {peer}'s log")]
    PeerNotify { peer: Identity, notify: NotifyType },
    #[error(
        "no answer from {remote} after {tries} tries: is UDP {port} open between the nodes, and is the agent running on {peer}?{hint}"
    )]
    NoAnswer {
        peer: Identity,
        remote: SocketAddr,
        port: u16,
        tries: u32,
        hint: String,
    },
    #[error(
        "{remote} answered IKE_SA_INIT but not {exchange} after {tries} tries: are large or fragmented UDP packets dropped between the nodes, or was the agent on {peer} restarted?"
    )]
    NoAuthAnswer {
        peer: Identity,
        exchange: &'static str,
        remote: SocketAddr,
        tries: u32,
    },
}

impl Failure {
    /// The notify that tells the peer (RFC 7296 §2.21.2: in IKE_AUTH everything about identities is one and the same).
    pub(crate) fn notify(&self) -> NotifyType {
        match self {
            Self::NoIkeProposal { .. }
            | Self::IkePolicy { .. }
            | Self::NoChildProposal { .. }
            | Self::Mode { .. }
            | Self::Encapsulation { .. } => NotifyType::NoProposalChosen,
            Self::Childless { notify, .. } => *notify,
            Self::Selectors { .. } => NotifyType::TsUnacceptable,
            Self::Crossing => NotifyType::TemporaryFailure,
            Self::Malformed(error) => error.notify(),
            Self::Missing { .. }
            | Self::Crypto(CryptoError::KemLength { .. } | CryptoError::KemFailed(_)) => {
                NotifyType::InvalidSyntax
            }
            _ => NotifyType::AuthenticationFailed,
        }
    }

    /// Data of that notify.
    pub(crate) fn notify_data(&self) -> Vec<u8> {
        match self {
            Self::Malformed(wire::Error::UnsupportedCritical(kind)) => vec![*kind],
            _ => Vec::new(),
        }
    }
}

impl From<Failure> for HandshakeError {
    fn from(failure: Failure) -> Self {
        Self(failure.to_string())
    }
}
