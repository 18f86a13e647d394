//! Messages to the seam's types and back. What comes in is checked: an error names the field, what was expected and what
//! came. What goes out is always valid.

use std::fmt;
use std::mem;
use std::net::IpAddr;

use espalier_dataplane_core::{self as core, Error, PeerId, Spi};
use espalier_secret::SecretBytes;
use ipnet::IpNet;
use zeroize::Zeroize;

use crate::dataplane as proto;

/// SPIs below are reserved (RFC 4303 §2.1).
const FIRST_SPI: u32 = 256;
/// VXLAN Network Identifiers have 24 bits (RFC 7348 §5).
const MAX_VNI: u32 = (1 << 24) - 1;

fn invalid(field: &'static str, why: impl Into<String>) -> Error {
    Error::Invalid {
        field,
        why: why.into(),
    }
}

fn missing(field: &'static str) -> Error {
    invalid(field, "is missing; both ends must be of the same version")
}

fn peer_id(field: &'static str, id: String) -> Result<PeerId, Error> {
    if id.is_empty() {
        Err(invalid(field, "expected the name of a node, got nothing"))
    } else {
        Ok(PeerId(id))
    }
}

fn spi(number: u32) -> Result<Spi, Error> {
    if number < FIRST_SPI {
        return Err(invalid(
            "spi",
            format!("expected {FIRST_SPI} or more, got {number} (reserved)"),
        ));
    }
    Ok(Spi(number))
}

fn address(field: &'static str, text: &str) -> Result<IpAddr, Error> {
    text.parse()
        .map_err(|_| invalid(field, format!("expected an IP address, got {text:?}")))
}

fn port(field: &'static str, number: u32) -> Result<u16, Error> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| {
            invalid(
                field,
                format!("expected a port from 1 to 65535, got {number}"),
            )
        })
}

fn mac(field: &'static str, bytes: &[u8]) -> Result<[u8; 6], Error> {
    bytes
        .try_into()
        .map_err(|_| invalid(field, format!("expected 6 bytes, got {}", bytes.len())))
}

fn cidrs(field: &'static str, texts: &[String]) -> Result<Vec<IpNet>, Error> {
    let cidr = |text: &String| {
        text.parse().map_err(|_| {
            invalid(
                field,
                format!("expected a CIDR such as 10.244.1.0/24, got {text:?}"),
            )
        })
    };
    texts.iter().map(cidr).collect()
}

impl From<core::Direction> for proto::Direction {
    fn from(direction: core::Direction) -> Self {
        match direction {
            core::Direction::In => Self::In,
            core::Direction::Out => Self::Out,
        }
    }
}

impl TryFrom<proto::Direction> for core::Direction {
    type Error = Error;

    fn try_from(direction: proto::Direction) -> Result<Self, Error> {
        match direction {
            proto::Direction::In => Ok(Self::In),
            proto::Direction::Out => Ok(Self::Out),
            proto::Direction::Unspecified => Err(missing("direction")),
        }
    }
}

fn direction(number: i32) -> Result<core::Direction, Error> {
    proto::Direction::try_from(number)
        .map_err(|_| {
            invalid(
                "direction",
                format!("expected 1 (in) or 2 (out), got {number}"),
            )
        })?
        .try_into()
}

impl From<core::Suite> for proto::Suite {
    fn from(suite: core::Suite) -> Self {
        match suite {
            core::Suite::Aes128Gcm16 => Self::Aes128Gcm16,
            core::Suite::Aes256Gcm16 => Self::Aes256Gcm16,
            core::Suite::ChaCha20Poly1305 => Self::Chacha20Poly1305,
            core::Suite::Aes128Gmac => Self::Aes128Gmac,
            core::Suite::Aes256Gmac => Self::Aes256Gmac,
            core::Suite::AhHmacSha256 => Self::AhHmacSha256,
        }
    }
}

impl TryFrom<proto::Suite> for core::Suite {
    type Error = Error;

    fn try_from(suite: proto::Suite) -> Result<Self, Error> {
        let known = core::Suite::ALL.into_iter();
        let found = known
            .into_iter()
            .find(|known| proto::Suite::from(*known) == suite);
        found.ok_or_else(|| missing("suite"))
    }
}

fn suite(number: i32) -> Result<core::Suite, Error> {
    proto::Suite::try_from(number)
        .map_err(|_| {
            let most = core::Suite::ALL.len();
            invalid(
                "suite",
                format!("expected 1 to {most}, got {number}; use a newer data plane"),
            )
        })?
        .try_into()
}

impl From<core::Overlay> for proto::Overlay {
    fn from(overlay: core::Overlay) -> Self {
        use proto::overlay::Kind;
        let kind = match overlay {
            core::Overlay::Vxlan { vni, port } => Kind::Vxlan(proto::Vxlan {
                vni,
                port: port.into(),
            }),
            core::Overlay::Ipip => Kind::Ipip(proto::Ipip {}),
            core::Overlay::Native => Kind::Native(proto::Native {}),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::Overlay> for core::Overlay {
    type Error = Error;

    fn try_from(overlay: proto::Overlay) -> Result<Self, Error> {
        use proto::overlay::Kind;
        match overlay.kind.ok_or_else(|| missing("overlay"))? {
            Kind::Vxlan(proto::Vxlan { vni, .. }) if vni > MAX_VNI => Err(invalid(
                "overlay",
                format!("expected a VNI of 24 bits, got {vni}"),
            )),
            Kind::Vxlan(vxlan) => Ok(Self::Vxlan {
                vni: vxlan.vni,
                port: port("overlay", vxlan.port)?,
            }),
            Kind::Ipip(proto::Ipip {}) => Ok(Self::Ipip),
            Kind::Native(proto::Native {}) => Ok(Self::Native),
        }
    }
}

impl From<core::Peer> for proto::Peer {
    fn from(peer: core::Peer) -> Self {
        Self {
            id: peer.id.0,
            local: peer.local.to_string(),
            remote: peer.remote.to_string(),
            pod_cidrs: peer.pod_cidrs.iter().map(ToString::to_string).collect(),
            own_cidrs: peer.own_cidrs.iter().map(ToString::to_string).collect(),
            overlay: Some(peer.overlay.into()),
            local_mac: peer.local_mac.to_vec(),
            remote_mac: peer.remote_mac.to_vec(),
        }
    }
}

impl TryFrom<proto::Peer> for core::Peer {
    type Error = Error;

    fn try_from(peer: proto::Peer) -> Result<Self, Error> {
        Ok(Self {
            id: peer_id("id", peer.id)?,
            local: address("local", &peer.local)?,
            remote: address("remote", &peer.remote)?,
            pod_cidrs: cidrs("pod_cidrs", &peer.pod_cidrs)?,
            own_cidrs: cidrs("own_cidrs", &peer.own_cidrs)?,
            overlay: peer.overlay.ok_or_else(|| missing("overlay"))?.try_into()?,
            local_mac: mac("local_mac", &peer.local_mac)?,
            remote_mac: mac("remote_mac", &peer.remote_mac)?,
        })
    }
}

/// The message's own copy of the key is wiped when it is dropped.
impl From<&core::Sa> for proto::Sa {
    fn from(sa: &core::Sa) -> Self {
        Self {
            peer: sa.peer.0.clone(),
            direction: proto::Direction::from(sa.direction).into(),
            spi: sa.spi.0,
            suite: proto::Suite::from(sa.suite).into(),
            key: sa.key.expose().to_vec(),
            esn: sa.esn,
            replay_window: sa.replay_window,
            udp: udp_ports(sa.encapsulation),
            tunnel: sa.mode == core::SaMode::Tunnel,
            hard_seconds: sa.hard_seconds,
            cpu: sa.cpu,
        }
    }
}

fn udp_ports(encapsulation: core::Encapsulation) -> Option<proto::UdpPorts> {
    match encapsulation {
        core::Encapsulation::Udp {
            local_port,
            remote_port,
        } => Some(proto::UdpPorts {
            local: local_port.into(),
            remote: remote_port.into(),
        }),
        core::Encapsulation::Raw => None,
    }
}

/// The key moves into the [`core::Sa`] or is wiped with the message, also when another field is wrong.
impl TryFrom<proto::Sa> for core::Sa {
    type Error = Error;

    fn try_from(mut sa: proto::Sa) -> Result<Self, Error> {
        let suite = suite(sa.suite)?;
        if sa.key.len() != suite.key_material_len() {
            let why = format!(
                "expected {} bytes for {suite:?}, got {}",
                suite.key_material_len(),
                sa.key.len()
            );
            return Err(invalid("key", why));
        }
        Ok(Self {
            peer: peer_id("peer", mem::take(&mut sa.peer))?,
            direction: direction(sa.direction)?,
            spi: spi(sa.spi)?,
            suite,
            mode: if sa.tunnel {
                core::SaMode::Tunnel
            } else {
                core::SaMode::Transport
            },
            esn: sa.esn,
            replay_window: sa.replay_window,
            encapsulation: encapsulation(sa.udp)?,
            hard_seconds: sa.hard_seconds,
            cpu: sa.cpu,
            key: take_secret(&mut sa.key),
        })
    }
}

fn encapsulation(udp: Option<proto::UdpPorts>) -> Result<core::Encapsulation, Error> {
    let Some(ports) = udp else {
        return Ok(core::Encapsulation::Raw);
    };
    let (local_port, remote_port) = (port("udp", ports.local)?, port("udp", ports.remote)?);
    Ok(core::Encapsulation::Udp {
        local_port,
        remote_port,
    })
}

/// Takes the bytes over. Where the vector has room to spare the allocator would copy it: then it is copied here and wiped.
fn take_secret(bytes: &mut Vec<u8>) -> SecretBytes {
    if bytes.capacity() == bytes.len() {
        return SecretBytes::new(mem::take(bytes));
    }
    let secret = SecretBytes::copy_from(bytes);
    bytes.zeroize();
    secret
}

impl Drop for proto::Sa {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for proto::Sa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sa")
            .field("peer", &self.peer)
            .field("direction", &self.direction())
            .field("spi", &Spi(self.spi))
            .field("suite", &self.suite())
            .field("key", &format_args!("{} bytes, redacted", self.key.len()))
            .field("esn", &self.esn)
            .field("replay_window", &self.replay_window)
            .field("udp", &self.udp)
            .field("tunnel", &self.tunnel)
            .field("hard_seconds", &self.hard_seconds)
            .field("cpu", &self.cpu)
            .finish()
    }
}

impl From<core::Hello> for proto::HelloReply {
    fn from(hello: core::Hello) -> Self {
        Self {
            instance: hello.instance,
            version: hello.version,
            digest: hello.digest,
            kind: hello.kind,
            device: hello.device.unwrap_or_default(),
            pid: hello.pid,
            can: Some(hello.can.into()),
        }
    }
}

impl From<core::Capabilities> for proto::Capabilities {
    fn from(can: core::Capabilities) -> Self {
        let suites = can.suites.into_iter();
        Self {
            suites: suites
                .map(|suite| proto::Suite::from(suite).into())
                .collect(),
            raw: can.raw,
            raw_untried: can.raw_untried,
            udp: can.udp,
            tunnel: can.tunnel,
            esn: can.esn,
            max_replay_window: can.max_replay_window,
            cpus: can.cpus,
            notes: can.notes,
        }
    }
}

/// Suites that this version does not know are left out: they cannot be used.
impl From<proto::Capabilities> for core::Capabilities {
    fn from(can: proto::Capabilities) -> Self {
        let suites = can.suites.into_iter();
        Self {
            suites: suites.filter_map(|number| suite(number).ok()).collect(),
            raw: can.raw,
            raw_untried: can.raw_untried,
            udp: can.udp,
            tunnel: can.tunnel,
            esn: can.esn,
            max_replay_window: can.max_replay_window,
            cpus: can.cpus,
            notes: can.notes,
        }
    }
}

impl From<core::Reqid> for proto::PutPeerReply {
    fn from(reqid: core::Reqid) -> Self {
        Self { reqid: reqid.0 }
    }
}

impl From<proto::HelloReply> for core::Hello {
    fn from(hello: proto::HelloReply) -> Self {
        Self {
            instance: hello.instance,
            version: hello.version,
            digest: hello.digest,
            kind: hello.kind,
            device: Some(hello.device).filter(|device| !device.is_empty()),
            pid: hello.pid,
            can: hello.can.unwrap_or_default().into(),
        }
    }
}

impl From<core::SaInfo> for proto::SaInfo {
    fn from(sa: core::SaInfo) -> Self {
        Self {
            peer: sa.peer.0,
            direction: proto::Direction::from(sa.direction).into(),
            spi: sa.spi.0,
            suite: proto::Suite::from(sa.suite).into(),
            active: sa.active,
            age_s: sa.age_s,
            packets: sa.packets,
            bytes: sa.bytes,
            drops: sa.drops,
            idle_ms: sa.idle_ms,
            udp: udp_ports(sa.encapsulation),
            cpu: sa.cpu,
        }
    }
}

impl TryFrom<proto::SaInfo> for core::SaInfo {
    type Error = Error;

    fn try_from(sa: proto::SaInfo) -> Result<Self, Error> {
        Ok(Self {
            peer: peer_id("peer", sa.peer)?,
            direction: direction(sa.direction)?,
            spi: spi(sa.spi)?,
            suite: suite(sa.suite)?,
            encapsulation: encapsulation(sa.udp)?,
            active: sa.active,
            age_s: sa.age_s,
            packets: sa.packets,
            bytes: sa.bytes,
            drops: sa.drops,
            idle_ms: sa.idle_ms,
            cpu: sa.cpu,
        })
    }
}

impl From<(core::Peer, core::PeerStats)> for proto::PeerStats {
    fn from((peer, stats): (core::Peer, core::PeerStats)) -> Self {
        Self {
            peer: Some(peer.into()),
            no_sa_drops: stats.no_sa_drops,
            policy_drops: stats.policy_drops,
        }
    }
}

impl TryFrom<proto::PeerStats> for (core::Peer, core::PeerStats) {
    type Error = Error;

    fn try_from(stats: proto::PeerStats) -> Result<Self, Error> {
        let peer = stats.peer.ok_or_else(|| missing("peer"))?.try_into()?;
        Ok((
            peer,
            core::PeerStats {
                no_sa_drops: stats.no_sa_drops,
                policy_drops: stats.policy_drops,
            },
        ))
    }
}

impl From<core::Dump> for proto::DumpReply {
    fn from(dump: core::Dump) -> Self {
        Self {
            peers: dump.peers.into_iter().map(Into::into).collect(),
            sas: dump.sas.into_iter().map(Into::into).collect(),
            drops: dump.drops.into_iter().collect(),
        }
    }
}

/// Drop counters come out sorted by reason.
impl TryFrom<proto::DumpReply> for core::Dump {
    type Error = Error;

    fn try_from(dump: proto::DumpReply) -> Result<Self, Error> {
        let mut drops: Vec<_> = dump.drops.into_iter().collect();
        drops.sort_unstable();
        Ok(Self {
            peers: dump
                .peers
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            sas: dump
                .sas
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            drops,
        })
    }
}

impl TryFrom<proto::PeerRef> for PeerId {
    type Error = Error;

    fn try_from(peer: proto::PeerRef) -> Result<Self, Error> {
        peer_id("id", peer.id)
    }
}

impl TryFrom<proto::SaRef> for (core::Direction, Spi) {
    type Error = Error;

    fn try_from(sa: proto::SaRef) -> Result<Self, Error> {
        Ok((direction(sa.direction)?, spi(sa.spi)?))
    }
}

impl TryFrom<proto::SwitchRequest> for (PeerId, Option<Spi>) {
    type Error = Error;

    fn try_from(switch: proto::SwitchRequest) -> Result<Self, Error> {
        Ok((
            peer_id("peer", switch.peer)?,
            switch.spi.map(spi).transpose()?,
        ))
    }
}

impl From<core::Event> for proto::Event {
    fn from(event: core::Event) -> Self {
        use proto::event::Kind;
        let kind = match event {
            core::Event::FirstPacket { peer, spi } => Kind::FirstPacket(proto::FirstPacket {
                peer: peer.0,
                spi: spi.0,
            }),
            core::Event::Acquire { peer } => Kind::Acquire(proto::Acquire { peer: peer.0 }),
            core::Event::Expired {
                peer,
                direction,
                spi,
            } => Kind::Expired(proto::Expired {
                peer: peer.0,
                direction: proto::Direction::from(direction).into(),
                spi: spi.0,
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::Event> for core::Event {
    type Error = Error;

    fn try_from(event: proto::Event) -> Result<Self, Error> {
        use proto::event::Kind;
        Ok(match event.kind.ok_or_else(|| missing("kind"))? {
            Kind::FirstPacket(first) => Self::FirstPacket {
                peer: peer_id("peer", first.peer)?,
                spi: spi(first.spi)?,
            },
            Kind::Acquire(acquire) => Self::Acquire {
                peer: peer_id("peer", acquire.peer)?,
            },
            Kind::Expired(expired) => Self::Expired {
                peer: peer_id("peer", expired.peer)?,
                direction: direction(expired.direction)?,
                spi: spi(expired.spi)?,
            },
        })
    }
}

#[cfg(test)]
mod tests;
