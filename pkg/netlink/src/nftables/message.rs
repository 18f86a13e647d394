//! Messages of NETLINK_NETFILTER, as far as nf_tables needs them.
//!
//! ```text
//!  nlmsghdr │ u8 family │ u8 version 0 │ be16 resource │ attributes
//!           └──────────── nfgenmsg ────────────────────┘
//! ```

use std::{convert::Infallible, fmt};

use netlink_packet_core::{
    NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::{Family, nftables::attributes::Attributes};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`: IPv4 and IPv6 in one table.
const INET: u8 = 1;
/// Length of nfgenmsg, and of an attribute's header, in bytes.
const HEADER: usize = 4;
/// The attribute of tables that has their name.
const TABLE_NAME: u16 = 1;
/// The attribute of rules that is for whoever made them.
const RULE_USERDATA: u16 = 7;

/// The netfilter family: nf_tables.
#[derive(Clone, Copy, Debug)]
pub enum Netfilter {}

/// What is asked for, or was answered (linux/netfilter/nf_tables.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    BatchBegin,
    BatchEnd,
    NewTable,
    GetTable,
    DelTable,
    NewChain,
    NewRule,
    GetRule,
    DelRule,
    Other(u16),
}

impl Kind {
    const ALL: [(Self, u16); 9] = [
        (Self::BatchBegin, 16),
        (Self::BatchEnd, 17),
        (Self::NewTable, SUBSYSTEM << 8),
        (Self::GetTable, SUBSYSTEM << 8 | 1),
        (Self::DelTable, SUBSYSTEM << 8 | 2),
        (Self::NewChain, SUBSYSTEM << 8 | 3),
        (Self::NewRule, SUBSYSTEM << 8 | 6),
        (Self::GetRule, SUBSYSTEM << 8 | 7),
        (Self::DelRule, SUBSYSTEM << 8 | 8),
    ];

    fn number(self) -> u16 {
        match self {
            Self::Other(number) => number,
            known => Self::ALL
                .iter()
                .find(|(kind, _)| *kind == known)
                .map_or(0, |(_, number)| *number),
        }
    }

    fn of(number: u16) -> Self {
        let known = Self::ALL.iter().find(|(_, other)| *other == number);
        known.map_or(Self::Other(number), |(kind, _)| *kind)
    }
}

/// A message of the netfilter family.
#[derive(Clone, PartialEq, Eq)]
pub struct NetfilterMessage {
    pub(crate) kind: Kind,
    family: u8,
    resource: u16,
    /// The object, for errors; empty in answers.
    object: String,
    attributes: Vec<u8>,
}

impl fmt::Debug for NetfilterMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.object)
    }
}

impl NetfilterMessage {
    pub(super) fn new(kind: Kind, object: impl Into<String>, attributes: Attributes) -> Self {
        Self {
            kind,
            family: INET,
            resource: 0,
            object: object.into(),
            attributes: attributes.into_bytes(),
        }
    }

    /// The ends of a batch, which say whose it is.
    pub(super) fn batch(kind: Kind) -> Self {
        Self {
            family: 0,
            resource: SUBSYSTEM,
            ..Self::new(kind, "nf_tables", Attributes::new())
        }
    }

    /// A table's name.
    pub(super) fn table(&self) -> Option<&str> {
        let name = self.attribute(TABLE_NAME)?;
        std::str::from_utf8(name.strip_suffix(&[0]).unwrap_or(name)).ok()
    }

    /// What the maker of a rule wrote to it.
    pub(super) fn userdata(&self) -> Option<&[u8]> {
        self.attribute(RULE_USERDATA)
    }

    fn attribute(&self, kind: u16) -> Option<&[u8]> {
        let nla = NlasIterator::new(self.attributes.as_slice())
            .flatten()
            .find(|nla| nla.kind() == kind)?;
        let length = nla.value_length();
        nla.into_inner().get(HEADER..HEADER + length)
    }
}

impl NetlinkSerializable for NetfilterMessage {
    fn message_type(&self) -> u16 {
        self.kind.number()
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let [high, low] = self.resource.to_be_bytes();
        let head = [self.family, 0, high, low];
        let bytes = head.iter().chain(&self.attributes);
        buffer
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
    }
}

impl NetlinkDeserializable for NetfilterMessage {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        let attributes = payload.get(HEADER..).unwrap_or_default().to_vec();
        Ok(Self {
            kind: Kind::of(header.message_type),
            family: payload.first().copied().unwrap_or_default(),
            resource: 0,
            object: String::new(),
            attributes,
        })
    }
}

impl Family for Netfilter {
    const PROTOCOL: isize = NETLINK_NETFILTER;
    const STRICT: bool = false;
    const SECRET: bool = false;
    type Message = NetfilterMessage;

    fn is_write(message_type: u16) -> bool {
        !matches!(
            Kind::of(message_type),
            Kind::BatchBegin | Kind::BatchEnd | Kind::GetTable | Kind::GetRule
        )
    }

    fn describe(message: &NetfilterMessage) -> String {
        let name = match message.kind {
            Kind::BatchBegin => "NFNL_MSG_BATCH_BEGIN",
            Kind::BatchEnd => "NFNL_MSG_BATCH_END",
            Kind::NewTable => "NFT_MSG_NEWTABLE",
            Kind::GetTable => "NFT_MSG_GETTABLE",
            Kind::DelTable => "NFT_MSG_DELTABLE",
            Kind::NewChain => "NFT_MSG_NEWCHAIN",
            Kind::NewRule => "NFT_MSG_NEWRULE",
            Kind::GetRule => "NFT_MSG_GETRULE",
            Kind::DelRule => "NFT_MSG_DELRULE",
            Kind::Other(number) => return format!("netfilter message type {number:#x}"),
        };
        format!("{name} {}", message.object)
    }
}
