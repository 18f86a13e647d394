//! Messages to a state and back. Every field of what comes in is bounded; whether it fits together is for the data plane to say.

use espalier_dataplane_core::{
    self as core, Frozen, FrozenCounters, FrozenPeer, FrozenSa, FrozenTun, FrozenUsed, Progress,
    Spi,
};

use crate::format::FormatError;
use crate::{Plane, Role, State, proto};

/// A Node's name: a DNS subdomain (RFC 1123), or an external peer's IKE identity.
const MAX_NAME: usize = 1024;
/// CIDRs of a peer or of this node.
const MAX_CIDRS: usize = 4096;
/// Peers and SAs of a mesh.
const MAX_PEERS: usize = 100_000;
const MAX_SAS: usize = 1_000_000;
/// Texts for people.
const MAX_TEXT: usize = 4096;
const MAX_NOTES: usize = 64;
/// Reasons for drops.
const MAX_REASONS: usize = 256;
/// Descriptors that one message carries (`SCM_MAX_FD`), without those that are not of a role.
const MAX_DESCRIPTORS: usize = 250;
/// Words of the largest replay window.
const MAX_WORDS: usize = 1025;
/// Bytes of a key's hash.
const KEY_HASH: usize = 16;

impl From<State> for proto::State {
    fn from(state: State) -> Self {
        let role = |role: Role| proto::Role::from(role).into();
        let plane = match state.plane {
            Plane::Kernel => proto::state::Plane::Kernel(proto::Kernel {}),
            Plane::Userspace(frozen) => proto::state::Plane::Userspace(frozen.into()),
        };
        Self {
            writer: state.writer,
            digest: state.digest.to_string(),
            frozen_at_ns: state.frozen_at_ns,
            notes: state.notes,
            descriptors: state.descriptors.into_iter().map(role).collect(),
            plane: Some(plane),
        }
    }
}

impl TryFrom<proto::State> for State {
    type Error = FormatError;

    fn try_from(state: proto::State) -> Result<Self, FormatError> {
        at_most("writer", MAX_TEXT, state.writer.len())?;
        at_most("notes", MAX_NOTES, state.notes.len())?;
        let longest = state.notes.iter().map(String::len).max().unwrap_or(0);
        at_most("notes", MAX_TEXT, longest)?;
        at_most("descriptors", MAX_DESCRIPTORS, state.descriptors.len())?;
        let digest = state.digest.parse().map_err(|error| FormatError::Field {
            field: "digest",
            why: format!("{error}"),
        })?;
        Ok(Self {
            writer: state.writer,
            digest,
            frozen_at_ns: state.frozen_at_ns,
            notes: state.notes,
            descriptors: each(state.descriptors, role)?,
            plane: match state.plane.ok_or_else(|| missing("plane"))? {
                proto::state::Plane::Kernel(proto::Kernel {}) => Plane::Kernel,
                proto::state::Plane::Userspace(frozen) => Plane::Userspace(frozen.try_into()?),
            },
        })
    }
}

impl From<Role> for proto::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Lock => Self::Lock,
            Role::Listener => Self::Listener,
            Role::IkeRelay => Self::IkeRelay,
            Role::Udp => Self::Udp,
            Role::Tun => Self::Tun,
            Role::Raw => Self::Raw,
        }
    }
}

/// An unknown one is refused: what it is for would not go on.
fn role(number: i32) -> Result<Role, FormatError> {
    match proto::Role::try_from(number) {
        Ok(proto::Role::Lock) => Ok(Role::Lock),
        Ok(proto::Role::Listener) => Ok(Role::Listener),
        Ok(proto::Role::IkeRelay) => Ok(Role::IkeRelay),
        Ok(proto::Role::Udp) => Ok(Role::Udp),
        Ok(proto::Role::Tun) => Ok(Role::Tun),
        Ok(proto::Role::Raw) => Ok(Role::Raw),
        Ok(proto::Role::Unspecified) | Err(_) => Err(FormatError::Field {
            field: "descriptors",
            why: format!("expected 1 to 6, got {number}"),
        }),
    }
}

impl From<Frozen> for proto::Userspace {
    fn from(frozen: Frozen) -> Self {
        Self {
            instance: frozen.instance,
            peers: frozen.peers.into_iter().map(Into::into).collect(),
            sas: frozen.sas.iter().map(Into::into).collect(),
            drops: frozen.drops.into_iter().collect(),
            used_spis: frozen.used.outbound.into_iter().map(|spi| spi.0).collect(),
            used_keys: frozen.used.keys.concat(),
            tun: proto::Tun::from(frozen.tun).into(),
        }
    }
}

impl TryFrom<proto::Userspace> for Frozen {
    type Error = FormatError;

    fn try_from(state: proto::Userspace) -> Result<Self, FormatError> {
        at_most("peers", MAX_PEERS, state.peers.len())?;
        at_most("sas", MAX_SAS, state.sas.len())?;
        at_most("drops", MAX_REASONS, state.drops.len())?;
        let longest = state.drops.keys().map(String::len).max().unwrap_or(0);
        at_most("drops", MAX_NAME, longest)?;
        let (keys, rest) = state.used_keys.as_chunks::<KEY_HASH>();
        if !rest.is_empty() {
            let got = state.used_keys.len();
            let why = format!("expected hashes of {KEY_HASH} bytes, got {got} bytes");
            return Err(FormatError::Field {
                field: "used_keys",
                why,
            });
        }
        let mut drops: Vec<_> = state.drops.into_iter().collect();
        drops.sort_unstable();
        Ok(Self {
            instance: state.instance,
            peers: each(state.peers, TryInto::try_into)?,
            sas: each(state.sas, TryInto::try_into)?,
            drops,
            tun: tun(state.tun)?,
            used: FrozenUsed {
                outbound: state.used_spis.into_iter().map(Spi).collect(),
                keys: keys.to_vec(),
            },
        })
    }
}

impl From<FrozenTun> for proto::Tun {
    fn from(tun: FrozenTun) -> Self {
        match tun {
            FrozenTun::Plain => Self::Plain,
            FrozenTun::Tcp => Self::Tcp,
            FrozenTun::TcpUdp => Self::TcpUdp,
        }
    }
}

/// An unknown one is refused: its packets could not be read.
fn tun(number: i32) -> Result<FrozenTun, FormatError> {
    match proto::Tun::try_from(number) {
        Ok(proto::Tun::Plain) => Ok(FrozenTun::Plain),
        Ok(proto::Tun::Tcp) => Ok(FrozenTun::Tcp),
        Ok(proto::Tun::TcpUdp) => Ok(FrozenTun::TcpUdp),
        Ok(proto::Tun::Unspecified) | Err(_) => Err(FormatError::Field {
            field: "tun",
            why: format!("expected 1 to 3, got {number}"),
        }),
    }
}

impl From<FrozenPeer> for proto::Peer {
    fn from(peer: FrozenPeer) -> Self {
        Self {
            peer: Some(peer.peer.into()),
            no_sa_drops: peer.stats.no_sa_drops,
            policy_drops: peer.stats.policy_drops,
            active: peer.active.map(|spi| spi.0),
        }
    }
}

impl TryFrom<proto::Peer> for FrozenPeer {
    type Error = FormatError;

    fn try_from(peer: proto::Peer) -> Result<Self, FormatError> {
        let stats = core::PeerStats {
            no_sa_drops: peer.no_sa_drops,
            policy_drops: peer.policy_drops,
        };
        let known = peer.peer.ok_or_else(|| missing("peer"))?;
        at_most("peer", MAX_NAME, known.id.len())?;
        at_most("pod_cidrs", MAX_CIDRS, known.pod_cidrs.len())?;
        at_most("own_cidrs", MAX_CIDRS, known.own_cidrs.len())?;
        Ok(Self {
            peer: core::Peer::try_from(known)?,
            stats,
            active: peer.active.map(Spi),
        })
    }
}

impl From<&FrozenSa> for proto::Sa {
    fn from(sa: &FrozenSa) -> Self {
        let progress = match &sa.progress {
            Progress::Sealed { last } => proto::sa::Progress::Sealed(*last),
            Progress::Opened { top, words, proven } => proto::sa::Progress::Opened(proto::Opened {
                top: *top,
                words: words.clone(),
                proven: *proven,
            }),
        };
        Self {
            sa: Some((&sa.sa).into()),
            age_ms: sa.counters.age_ms,
            last_ms: sa.counters.last_ms,
            packets: sa.counters.packets,
            bytes: sa.counters.bytes,
            drops: sa.counters.drops,
            progress: Some(progress),
        }
    }
}

impl TryFrom<proto::Sa> for FrozenSa {
    type Error = FormatError;

    fn try_from(sa: proto::Sa) -> Result<Self, FormatError> {
        let progress = match sa.progress.ok_or_else(|| missing("progress"))? {
            proto::sa::Progress::Sealed(last) => Progress::Sealed { last },
            proto::sa::Progress::Opened(opened) => {
                at_most("words", MAX_WORDS, opened.words.len())?;
                Progress::Opened {
                    top: opened.top,
                    words: opened.words,
                    proven: opened.proven,
                }
            }
        };
        let known = sa.sa.ok_or_else(|| missing("sa"))?;
        at_most("peer", MAX_NAME, known.peer.len())?;
        Ok(Self {
            sa: core::Sa::try_from(known)?,
            counters: FrozenCounters {
                age_ms: sa.age_ms,
                last_ms: sa.last_ms,
                packets: sa.packets,
                bytes: sa.bytes,
                drops: sa.drops,
            },
            progress,
        })
    }
}

fn each<M, T>(
    messages: Vec<M>,
    convert: impl Fn(M) -> Result<T, FormatError>,
) -> Result<Vec<T>, FormatError> {
    messages.into_iter().map(convert).collect()
}

fn at_most(field: &'static str, most: usize, got: usize) -> Result<(), FormatError> {
    if got > most {
        let why = format!("expected at most {most}, got {got}");
        return Err(FormatError::Field { field, why });
    }
    Ok(())
}

fn missing(field: &'static str) -> FormatError {
    let why = "is missing".to_owned();
    FormatError::Field { field, why }
}
