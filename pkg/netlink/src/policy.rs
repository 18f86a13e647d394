use std::fmt;

use ipnet::IpNet;
use netlink_packet_xfrm::{
    Address, LifetimeConfig, Selector, UserPolicyId, UserPolicyInfo, XfrmAttrs, XfrmMessage,
    constants::{
        AF_INET, AF_INET6, XFRM_POLICY_ALLOW, XFRM_POLICY_BLOCK, XFRM_POLICY_FWD, XFRM_POLICY_IN,
        XFRM_POLICY_OUT,
    },
    policy::{DelGetMessage as PolicyDelGetMessage, ModifyMessage as PolicyModifyMessage},
};

use crate::{Error, Socket, Xfrm};

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

/// What becomes of a packet that a policy without templates matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It passes as it is (RFC 4301: BYPASS).
    Allow,
    /// It is dropped (RFC 4301: DISCARD).
    Block,
}

/// A policy of the SPD without templates: it lets pass or drops, it never transforms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Policy {
    /// Direction.
    pub direction: Direction,
    /// Allow or block.
    pub action: Action,
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
        Ok(())
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

    /// The kernel keeps one policy for each selector and direction.
    #[must_use]
    pub fn same_place(&self, other: &Self) -> bool {
        Self {
            action: other.action,
            priority: other.priority,
            ..*self
        } == *other
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
            nlas: Vec::new(),
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

    /// None for policies that this type cannot express: with templates, marks, interface ids, port ranges, of sockets.
    fn parse(message: &PolicyModifyMessage) -> Option<InstalledPolicy> {
        let info = &message.user_policy_info;
        let selector = &info.selector;
        let odd = message.nlas.iter().any(|nla| match nla {
            XfrmAttrs::Template(templates) => !templates.is_empty(),
            XfrmAttrs::Mark(_) | XfrmAttrs::IfId(_) | XfrmAttrs::SecurityContext(_) => true,
            _ => false,
        });
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
    /// All policies without templates.
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
}

fn net(address: &Address, bits: u8, family: u16) -> Option<IpNet> {
    let ip = match family {
        AF_INET => address.to_ipv4().into(),
        AF_INET6 => address.to_ipv6().into(),
        _ => return None,
    };
    IpNet::new(ip, bits).ok()
}
