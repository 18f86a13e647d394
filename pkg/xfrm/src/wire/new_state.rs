//! `XFRM_MSG_NEWSA`: one SA with its key.

use std::net::IpAddr;

use espalier_dataplane_core::{Direction, SaMode, Spi, Suite};
use netlink_packet_core::Emitable as _;
use netlink_packet_xfrm::constants::{
    AF_UNSPEC, IPPROTO_AH, IPPROTO_ESP, XFRM_MODE_TRANSPORT, XFRM_MODE_TUNNEL, XFRM_MSG_NEWSA,
    XFRM_STATE_AF_UNSPEC, XFRM_STATE_ALIGN4, XFRM_STATE_ESN, XFRMA_ALG_AEAD, XFRMA_ALG_AUTH_TRUNC,
    XFRMA_ENCAP, XFRMA_OFFLOAD_DEV, XFRMA_REPLAY_ESN_VAL,
};
use netlink_packet_xfrm::{
    Address, EncapTmpl, Id, LifetimeConfig, Selector, UserSaInfo, XFRM_ENCAP_TMPL_LEN,
    XFRM_USER_SA_INFO_LEN,
};

use super::attr::{Body, SA_DIR, SA_PCPU};
use super::{Message, family_of};
use crate::algorithm;

/// `UDP_ENCAP_ESPINUDP` (linux/udp.h).
const ESP_IN_UDP: u16 = 2;
/// `xfrm_replay_state_esn` without its bitmap.
const ESN_HEADER: usize = 24;
/// Algorithm with name and key, encapsulation, window, direction, CPU, offload: more than all of them need.
const ROOM: usize = 256;
/// Kernels that are not told the direction want a window for ESN outbound too, where it has no effect.
const OUTBOUND_WINDOW: u32 = 32;

/// What is asked of the kernel.
#[derive(Clone, Copy)]
pub(crate) struct NewState<'a> {
    pub(crate) direction: Direction,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) spi: Spi,
    pub(crate) reqid: u32,
    pub(crate) suite: Suite,
    pub(crate) key: &'a [u8],
    pub(crate) mode: SaMode,
    pub(crate) esn: bool,
    /// Packets, inbound.
    pub(crate) window: u32,
    /// Source and destination port of UDP.
    pub(crate) ports: Option<(u16, u16)>,
    pub(crate) hard_seconds: u32,
    pub(crate) cpu: Option<u32>,
    /// Interface for crypto offload.
    pub(crate) offload: Option<u32>,
    /// The kernel knows `XFRMA_SA_DIR`.
    pub(crate) tell_direction: bool,
}

impl NewState<'_> {
    pub(crate) fn protocol(&self) -> u8 {
        if self.suite.is_ah() {
            IPPROTO_AH
        } else {
            IPPROTO_ESP
        }
    }

    /// The message. Send it with [`espalier_netlink::EXCLUSIVE`].
    pub(crate) fn message(&self) -> Message {
        let mut fixed = [0; XFRM_USER_SA_INFO_LEN];
        self.info().emit(&mut fixed);
        let mut body = Body::new(&fixed, ROOM);
        self.push_algorithm(&mut body);
        self.push_encapsulation(&mut body);
        self.push_replay(&mut body);
        if self.tell_direction {
            let code = match self.direction {
                Direction::In => 1,
                Direction::Out => 2,
            };
            body.push(SA_DIR, &[&[code]]);
        }
        if let Some(cpu) = self.cpu {
            body.push(SA_PCPU, &[&cpu.to_ne_bytes()]);
        }
        if let Some(interface) = self.offload {
            let flags = u8::from(self.direction == Direction::In) << 1;
            body.push(
                XFRMA_OFFLOAD_DEV,
                &[&interface.to_ne_bytes(), &[flags, 0, 0, 0]],
            );
        }
        Message {
            kind: XFRM_MSG_NEWSA,
            what: self.what(),
            body: body.finish(),
        }
    }

    fn what(&self) -> String {
        let way = match self.direction {
            Direction::In => "inbound",
            Direction::Out => "outbound",
        };
        format!(
            "installing {way} SA {} {} to {} with {}",
            self.spi,
            self.source,
            self.destination,
            algorithm::name(self.suite)
        )
    }

    fn info(&self) -> UserSaInfo {
        let (mode, family_flag) = match self.mode {
            SaMode::Transport => (XFRM_MODE_TRANSPORT, 0),
            // Without a family of its own the selector takes inner packets of both.
            SaMode::Tunnel => (XFRM_MODE_TUNNEL, XFRM_STATE_AF_UNSPEC),
        };
        // RFC 4302 §3.3.3.2.1: the ICV is padded to 32 bits over IPv4, to 64 over IPv6.
        let align = if self.suite.is_ah() && self.source.is_ipv4() {
            XFRM_STATE_ALIGN4
        } else {
            0
        };
        let esn = if self.esn { XFRM_STATE_ESN } else { 0 };
        UserSaInfo {
            selector: Selector {
                family: AF_UNSPEC,
                ..Selector::default()
            },
            id: Id {
                daddr: Address::from_ip(&self.destination),
                spi: self.spi.0,
                proto: self.protocol(),
            },
            saddr: Address::from_ip(&self.source),
            lifetime_cfg: self.lifetime(),
            reqid: self.reqid,
            family: family_of(self.source),
            mode,
            // RFC 6040: ECN is carried over at both ends (no NOECN). RFC 4301 §5.1.2.1: the inner DSCP stays as it was (no
            // DECAP_DSCP), the outer one is copied from it.
            flags: family_flag | align | esn,
            ..UserSaInfo::default()
        }
    }

    /// Inbound: the kernel says so (soft EXPIRE) when a packet comes after the first authenticated one.
    fn lifetime(&self) -> LifetimeConfig {
        let soft = LifetimeConfig {
            hard_add_expires_seconds: self.hard_seconds.into(),
            ..LifetimeConfig::default()
        };
        match self.direction {
            Direction::In => LifetimeConfig {
                soft_packet_limit: 1,
                ..soft
            },
            Direction::Out => soft,
        }
    }

    fn push_algorithm(&self, body: &mut Body) {
        let mut name = [0; 64];
        let text = algorithm::name(self.suite).as_bytes();
        name[..text.len()].copy_from_slice(text);
        let bits = u32::try_from(self.key.len() * 8).unwrap_or_default();
        let kind = if self.suite.is_ah() {
            XFRMA_ALG_AUTH_TRUNC
        } else {
            XFRMA_ALG_AEAD
        };
        let icv = algorithm::ICV_BITS.to_ne_bytes();
        body.push(kind, &[&name, &bits.to_ne_bytes(), &icv, self.key]);
    }

    fn push_encapsulation(&self, body: &mut Body) {
        let Some((source, destination)) = self.ports else {
            return;
        };
        let mut bytes = [0; XFRM_ENCAP_TMPL_LEN];
        let template = EncapTmpl {
            encap_type: ESP_IN_UDP,
            encap_sport: source,
            encap_dport: destination,
            encap_oa: Address::default(),
        };
        template.emit(&mut bytes);
        body.push(XFRMA_ENCAP, &[&bytes]);
    }

    /// `bmp_len, oseq, seq, oseq_hi, seq_hi, replay_window`, u32 each. From 6.10 on an outbound SA must have no window;
    /// before, ESN must have one.
    fn push_replay(&self, body: &mut Body) {
        let window = match self.direction {
            Direction::In => self.window,
            Direction::Out if self.tell_direction => 0,
            Direction::Out => OUTBOUND_WINDOW,
        };
        if self.direction == Direction::Out && !self.esn {
            return;
        }
        let words = window.div_ceil(32);
        let mut header = [0; ESN_HEADER];
        header[..4].copy_from_slice(&words.to_ne_bytes());
        header[20..].copy_from_slice(&window.to_ne_bytes());
        // The kernel makes the bitmap itself when only its length comes.
        body.push(XFRMA_REPLAY_ESN_VAL, &[&header]);
    }
}
