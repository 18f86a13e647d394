//! `XFRM_MSG_NEWSA` as the kernel answers: one state, with its key.

use std::net::IpAddr;

use espalier_dataplane_core::{Direction, SaMode, Spi, Suite};
use espalier_secret::SecretBytes;
use netlink_packet_xfrm::constants::{
    XFRM_MODE_TUNNEL, XFRM_STATE_ESN, XFRMA_ALG_AEAD, XFRMA_ALG_AUTH_TRUNC, XFRMA_ENCAP,
    XFRMA_LASTUSED, XFRMA_OFFLOAD_DEV, XFRMA_REPLAY_ESN_VAL,
};
use netlink_packet_xfrm::{UserSaInfo, XFRM_USER_SA_INFO_LEN};

use super::attr::{Attributes, SA_DIR, SA_PCPU, be16_at, u32_at, u64_of};
use super::state_id::StateId;
use super::{ParseError, address, split};
use crate::algorithm;

/// A state of the SAD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) id: StateId,
    pub(crate) source: IpAddr,
    pub(crate) reqid: u32,
    pub(crate) direction: Direction,
    /// `None`: an algorithm that is none of ours, or none at all.
    pub(crate) suite: Option<Suite>,
    /// It has an algorithm. What has none is a larval state: the kernel asked for an SA (ACQUIRE).
    pub(crate) keyed: bool,
    pub(crate) key: SecretBytes,
    pub(crate) mode: SaMode,
    pub(crate) esn: bool,
    pub(crate) window: u32,
    /// Source and destination port of UDP.
    pub(crate) ports: Option<(u16, u16)>,
    pub(crate) hard_seconds: u64,
    pub(crate) cpu: Option<u32>,
    pub(crate) offloaded: bool,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Replayed, outside the window, or with a wrong ICV.
    pub(crate) drops: u64,
    /// Seconds since 1970.
    pub(crate) added: u64,
    /// Seconds since 1970; 0: never.
    pub(crate) first_used: u64,
    /// Seconds since 1970; 0: never, or a kernel before 6.2.
    pub(crate) last_used: u64,
}

impl State {
    pub(crate) fn spi(&self) -> Spi {
        Spi(self.id.spi)
    }

    /// Reads the body of a message.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let (fixed, attributes) = split(body, XFRM_USER_SA_INFO_LEN, "xfrm_usersa_info")?;
        let mut state = Self::from_info(&info(fixed)?)?;
        for attribute in Attributes::new(attributes) {
            let (kind, value) = attribute?;
            state.take(kind, value);
        }
        Ok(state)
    }

    pub(crate) fn from_info(info: &UserSaInfo) -> Result<Self, ParseError> {
        let stats = &info.stats;
        let drops = [stats.replay_window, stats.replay, stats.integrity_failed];
        Ok(Self {
            id: StateId {
                destination: address(info.family, &info.id.daddr)?,
                spi: info.id.spi,
                protocol: info.id.proto,
            },
            source: address(info.family, &info.saddr)?,
            reqid: info.reqid,
            // Ours are marked by it; kernels from 6.10 on say it themselves.
            direction: match info.lifetime_cfg.soft_packet_limit {
                1 => Direction::In,
                _ => Direction::Out,
            },
            suite: None,
            keyed: false,
            key: SecretBytes::default(),
            mode: if info.mode == XFRM_MODE_TUNNEL {
                SaMode::Tunnel
            } else {
                SaMode::Transport
            },
            esn: info.flags & XFRM_STATE_ESN != 0,
            window: info.replay_window.into(),
            ports: None,
            hard_seconds: info.lifetime_cfg.hard_add_expires_seconds,
            cpu: None,
            offloaded: false,
            packets: info.lifetime_cur.packets,
            bytes: info.lifetime_cur.bytes,
            drops: drops.into_iter().map(u64::from).sum(),
            added: info.lifetime_cur.add_time,
            first_used: info.lifetime_cur.use_time,
            last_used: 0,
        })
    }

    /// An attribute that is too short counts as one that is not there.
    fn take(&mut self, kind: u16, value: &[u8]) {
        match kind {
            XFRMA_ALG_AEAD => self.take_algorithm(value, algorithm::aead),
            XFRMA_ALG_AUTH_TRUNC => self.take_algorithm(value, algorithm::auth),
            XFRMA_ENCAP => self.ports = be16_at(value, 2).zip(be16_at(value, 4)),
            XFRMA_REPLAY_ESN_VAL => self.window = u32_at(value, 20).unwrap_or(self.window),
            XFRMA_LASTUSED => self.last_used = u64_of(value).unwrap_or_default(),
            XFRMA_OFFLOAD_DEV => self.offloaded = true,
            SA_DIR => match value.first() {
                Some(1) => self.direction = Direction::In,
                Some(2) => self.direction = Direction::Out,
                _ => {}
            },
            SA_PCPU => self.cpu = u32_at(value, 0),
            _ => {}
        }
    }

    /// Name in 64 bytes, bits of the key, bits of the ICV, key.
    fn take_algorithm(&mut self, value: &[u8], suite: fn(&str, u32, u32) -> Option<Suite>) {
        self.keyed = true;
        let (Some((name, rest)), Some(bits), Some(icv)) = (
            value.split_at_checked(64),
            u32_at(value, 64),
            u32_at(value, 68),
        ) else {
            return;
        };
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        let name = String::from_utf8_lossy(&name[..end]);
        self.suite = suite(&name, bits, icv);
        let key = rest.get(8..).unwrap_or_default();
        let length = (bits / 8) as usize;
        self.key = SecretBytes::copy_from(key.get(..length).unwrap_or_default());
    }
}

fn info(fixed: &[u8]) -> Result<UserSaInfo, ParseError> {
    UserSaInfo::parse(fixed).map_err(|_| ParseError::Truncated {
        what: "xfrm_usersa_info",
        expected: XFRM_USER_SA_INFO_LEN,
        got: fixed.len(),
    })
}
