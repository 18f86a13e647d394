use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_xfrm::{
    Address, Id, LifetimeConfig, Selector, UserPolicyId, UserPolicyInfo, UserTemplate, XfrmAttrs,
    XfrmMessage,
    constants::{
        AF_INET, AF_INET6, XFRM_MODE_TRANSPORT, XFRM_MODE_TUNNEL, XFRM_POLICY_ALLOW,
        XFRM_POLICY_BLOCK, XFRM_POLICY_FWD, XFRM_POLICY_IN, XFRM_POLICY_OUT,
    },
    policy::{DelGetMessage as PolicyDelGetMessage, ModifyMessage as PolicyModifyMessage},
};

use crate::{Error, PLAIN, Socket, Xfrm};

/// Which way of a packet a policy guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Delivered to this host.
    In,
    /// Leaving this host, its own and forwarded ones alike.
    Out,
    /// Forwarded by this host.
    Forward,
}

/// What becomes of a packet that a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It passes: as it is (RFC 4301: BYPASS), or as the policy's template says (PROTECT).
    Allow,
    /// It is dropped (RFC 4301: DISCARD).
    Block,
}

/// The IPsec protocol of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Encapsulating Security Payload (RFC 4303), in UDP or not: the state says.
    Esp,
    /// Authentication Header (RFC 4302).
    Ah,
}

/// How a template's state wraps packets (RFC 4301 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Between the IP header and what it carries.
    Transport,
    /// Around the whole packet.
    Tunnel,
}

/// The state that must seal what leaves, or must have opened what came in. A packet without one is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Template {
    /// ESP or AH.
    pub protocol: Protocol,
    /// Transport or tunnel.
    pub mode: Mode,
    /// Outer source address.
    pub source: IpAddr,
    /// Outer destination address; of the same family.
    pub destination: IpAddr,
    /// Tag of the states; 0 means any.
    pub reqid: u32,
    /// The one state; `None` means any with this tag.
    pub spi: Option<u32>,
    /// Packets without such a state pass too, but none with another tunnel mode state.
    pub optional: bool,
}

/// A policy of the SPD with at most one template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Policy {
    /// Direction.
    pub direction: Direction,
    /// Allow or block.
    pub action: Action,
    /// What [`Action::Allow`] demands; `None`: nothing, the packet passes as it is.
    pub template: Option<Template>,
    /// Source addresses.
    pub source: IpNet,
    /// Destination addresses; of the same family.
    pub destination: IpNet,
    /// IP protocol; 0 means any.
    pub protocol: u8,
    /// Destination port; 0 means any.
    pub port: u16,
    /// Index of the outgoing interface; 0 means any.
    pub interface: u32,
    /// The policy with the smallest number decides.
    pub priority: u32,
}

/// A policy as it stands in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstalledPolicy {
    /// What it says.
    pub policy: Policy,
    /// The kernel's number for it.
    pub index: u32,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            direction,
            action,
            template,
            source,
            destination,
            protocol,
            port,
            interface,
            ..
        } = self;
        write!(f, "{action:?} {direction:?} {source} to {destination}")?;
        if *protocol != 0 {
            write!(f, " protocol {protocol} port {port}")?;
        }
        if *interface != 0 {
            write!(f, " on interface {interface}")?;
        }
        match template {
            Some(template) => write!(f, " by {template}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            mode,
            source,
            destination,
            reqid,
            spi,
            optional,
        } = self;
        write!(
            f,
            "{protocol:?} {mode:?} {source} to {destination} reqid {reqid}"
        )?;
        if let Some(spi) = spi {
            write!(f, " SPI {spi:08x}")?;
        }
        f.write_str(if *optional { " or as it is" } else { "" })
    }
}

impl Policy {
    /// Message that adds the policy; the kernel answers EEXIST if one with this selector and direction is there, whoever
    /// made it.
    #[must_use]
    pub fn add(&self) -> XfrmMessage {
        XfrmMessage::AddPolicy(self.modify())
    }

    /// Message that puts the policy atomically in the place of the one with the same selector and direction.
    #[must_use]
    pub fn update(&self) -> XfrmMessage {
        XfrmMessage::UpdatePolicy(self.modify())
    }

    /// Selector and direction alone, the rest made equal: the kernel keeps one policy for each.
    #[must_use]
    pub fn place(&self) -> Self {
        Self {
            action: Action::Allow,
            template: None,
            priority: 0,
            ..*self
        }
    }

    fn modify(&self) -> PolicyModifyMessage {
        let user_policy_info = UserPolicyInfo {
            selector: self.selector(),
            lifetime_cfg: LifetimeConfig::default(),
            priority: self.priority,
            direction: self.direction.code(),
            action: match self.action {
                Action::Allow => XFRM_POLICY_ALLOW,
                Action::Block => XFRM_POLICY_BLOCK,
            },
            ..UserPolicyInfo::default()
        };
        PolicyModifyMessage {
            user_policy_info,
            nlas: self
                .template
                .iter()
                .map(|template| XfrmAttrs::Template(vec![template.encode()]))
                .collect(),
        }
    }

    fn selector(&self) -> Selector {
        Selector {
            saddr: Address::from_ip(&self.source.network()),
            daddr: Address::from_ip(&self.destination.network()),
            prefixlen_s: self.source.prefix_len(),
            prefixlen_d: self.destination.prefix_len(),
            family: if self.source.addr().is_ipv4() {
                AF_INET
            } else {
                AF_INET6
            },
            dport: self.port,
            dport_mask: if self.port == 0 { 0 } else { u16::MAX },
            proto: self.protocol,
            ifindex: self.interface.cast_signed(),
            ..Selector::default()
        }
    }

    /// None for policies that this type cannot express: with several templates, marks, interface ids, port ranges, of sockets.
    fn parse(message: &PolicyModifyMessage) -> Option<InstalledPolicy> {
        let info = &message.user_policy_info;
        let selector = &info.selector;
        let (mut template, mut odd) = (None, false);
        for nla in &message.nlas {
            match nla {
                XfrmAttrs::Template(list) => match list.as_slice() {
                    [] => {}
                    [one] => template = Some(Template::parse(one)?),
                    _ => odd = true,
                },
                XfrmAttrs::Mark(_) | XfrmAttrs::IfId(_) | XfrmAttrs::SecurityContext(_) => {
                    odd = true;
                }
                _ => {}
            }
        }
        let whole_port = selector.dport_mask == if selector.dport == 0 { 0 } else { u16::MAX };
        if odd || !whole_port || selector.sport_mask != 0 || selector.user != 0 {
            return None;
        }
        let policy = Self {
            direction: Direction::of(info.direction)?,
            action: if info.action == XFRM_POLICY_BLOCK {
                Action::Block
            } else {
                Action::Allow
            },
            template,
            source: net(&selector.saddr, selector.prefixlen_s, selector.family)?,
            destination: net(&selector.daddr, selector.prefixlen_d, selector.family)?,
            protocol: selector.proto,
            port: selector.dport,
            interface: selector.ifindex.cast_unsigned(),
            priority: info.priority,
        };
        Some(InstalledPolicy {
            policy,
            index: info.index,
        })
    }
}

impl Template {
    fn encode(&self) -> UserTemplate {
        let mut template = UserTemplate {
            id: Id {
                daddr: Address::default(),
                spi: self.spi.unwrap_or_default(),
                proto: self.protocol.code(),
            },
            reqid: self.reqid,
            mode: self.mode.code(),
            optional: u8::from(self.optional),
            ..UserTemplate::default()
        };
        template.source(&self.source);
        template.destination(&self.destination);
        template
    }

    /// None for what this type cannot express: single algorithms, other protocols and modes.
    fn parse(template: &UserTemplate) -> Option<Self> {
        let whole = UserTemplate::default();
        let plain = template.share == whole.share
            && (template.aalgos, template.ealgos, template.calgos)
                == (whole.aalgos, whole.ealgos, whole.calgos);
        let ip = |address: &Address| ip(address, template.family);
        Some(Self {
            protocol: Protocol::of(template.id.proto).filter(|_| plain)?,
            mode: Mode::of(template.mode)?,
            source: ip(&template.saddr)?,
            destination: ip(&template.id.daddr)?,
            reqid: template.reqid,
            spi: Some(template.id.spi).filter(|spi| *spi != 0),
            optional: template.optional != 0,
        })
    }
}

impl Protocol {
    /// Its number in IP headers.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Esp => 50,
            Self::Ah => 51,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Self::Esp, Self::Ah].into_iter().find(|p| p.code() == code)
    }
}

impl Mode {
    fn code(self) -> u8 {
        match self {
            Self::Transport => XFRM_MODE_TRANSPORT,
            Self::Tunnel => XFRM_MODE_TUNNEL,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Self::Transport, Self::Tunnel]
            .into_iter()
            .find(|m| m.code() == code)
    }
}

impl InstalledPolicy {
    /// Message that removes exactly this policy: by the kernel's number, so that no other one with the same selector can be
    /// meant.
    #[must_use]
    pub fn delete(&self) -> XfrmMessage {
        let user_policy_id = UserPolicyId {
            selector: self.policy.selector(),
            index: self.index,
            direction: self.policy.direction.code(),
        };
        XfrmMessage::DeletePolicy(PolicyDelGetMessage {
            user_policy_id,
            nlas: Vec::new(),
        })
    }
}

impl Direction {
    fn code(self) -> u8 {
        match self {
            Self::In => XFRM_POLICY_IN,
            Self::Out => XFRM_POLICY_OUT,
            Self::Forward => XFRM_POLICY_FWD,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Self::In, Self::Out, Self::Forward]
            .into_iter()
            .find(|d| d.code() == code)
    }
}

impl Socket<Xfrm> {
    /// All policies that [`Policy`] can express.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn policies(&mut self) -> Result<Vec<InstalledPolicy>, Error> {
        let list = self.dump(XfrmMessage::GetPolicy(PolicyDelGetMessage::default()))?;
        let parsed = list.iter().filter_map(|m| match m {
            XfrmMessage::AddPolicy(m) | XfrmMessage::UpdatePolicy(m) => Policy::parse(m),
            _ => None,
        });
        Ok(parsed.collect())
    }

    /// The policy that stands in the place of this one, if [`Policy`] can express it; no list is read.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn policy_at(&mut self, place: &Policy) -> Result<Option<InstalledPolicy>, Error> {
        let message = PolicyDelGetMessage {
            user_policy_id: UserPolicyId {
                selector: place.selector(),
                index: 0,
                direction: place.direction.code(),
            },
            nlas: Vec::new(),
        };
        let replies = match self.request(XfrmMessage::GetPolicy(message), PLAIN) {
            Ok(replies) => replies,
            Err(e) if e.is_missing() => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(replies.iter().find_map(|m| match m {
            XfrmMessage::AddPolicy(m) => Policy::parse(m),
            _ => None,
        }))
    }
}

fn net(address: &Address, bits: u8, family: u16) -> Option<IpNet> {
    IpNet::new(ip(address, family)?, bits).ok()
}

fn ip(address: &Address, family: u16) -> Option<IpAddr> {
    match family {
        AF_INET => Some(address.to_ipv4().into()),
        AF_INET6 => Some(address.to_ipv6().into()),
        _ => None,
    }
}
