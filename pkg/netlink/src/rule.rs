use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use crate::{
    Error, Route, Socket,
    link::family,
    socket::{EXCLUSIVE, PLAIN},
};

/// Table `main`.
const MAIN: u8 = 254;

/// A routing rule for what has a source in a network. Packets to the host itself are routed by the local table before any such rule
/// is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Name of the interface that they come in by; `None`: any.
    pub interface: Option<String>,
    /// Sources.
    pub source: IpNet,
    /// Destinations; `None`: any.
    pub destination: Option<IpNet>,
    /// What becomes of them.
    pub then: Then,
    /// The rule with the smallest number is asked first.
    pub priority: u32,
    /// Who made it (FRA_PROTOCOL).
    pub protocol: u8,
}

/// What a rule does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nobody hears of it again.
    Drop,
    /// It goes where the table `main` says, whatever rules come after; where that says nothing, they are asked.
    Main,
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let network = self.source.network();
        let mut message = RuleMessage::default();
        message.header.family = family(network);
        message.header.src_len = self.source.prefix_len();
        match self.then {
            Then::Drop => message.header.action = RuleAction::Blackhole,
            Then::Main => {
                message.header.action = RuleAction::ToTable;
                message.header.table = MAIN;
            }
        }
        message.attributes = vec![
            RuleAttribute::Source(network),
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Protocol(RouteProtocol::from(self.protocol)),
        ];
        let interface = self.interface.iter().cloned().map(RuleAttribute::Iifname);
        message.attributes.extend(interface);
        if let Some(destination) = self.destination {
            message.header.dst_len = destination.prefix_len();
            let to = RuleAttribute::Destination(destination.network());
            message.attributes.push(to);
        }
        message
    }

    /// None for rules that this type cannot express.
    fn parse(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let (mut source, mut destination, mut interface) = (None::<IpAddr>, None::<IpAddr>, None);
        let (mut priority, mut protocol) = (0, 0);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Source(ip) => source = Some(*ip),
                RuleAttribute::Destination(ip) => destination = Some(*ip),
                RuleAttribute::Iifname(name) => interface = Some(name.clone()),
                RuleAttribute::Priority(number) => priority = *number,
                RuleAttribute::Protocol(who) => protocol = (*who).into(),
                _ => {}
            }
        }
        let then = match header.action {
            RuleAction::Blackhole => Then::Drop,
            RuleAction::ToTable if header.table == MAIN => Then::Main,
            _ => return None,
        };
        let destination = destination.map(|to| IpNet::new(to, header.dst_len));
        Some(Self {
            interface,
            source: IpNet::new(source?, header.src_len).ok()?,
            destination: destination.transpose().ok()?,
            then,
            priority,
            protocol,
        })
    }
}

impl Socket<Route> {
    /// All rules of this kind, IPv4 and IPv6.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn rules(&mut self) -> Result<Vec<Rule>, Error> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let list = self.dump(RouteNetlinkMessage::GetRule(message))?;
            rules.extend(list.iter().filter_map(|m| match m {
                RouteNetlinkMessage::NewRule(m) => Rule::parse(m),
                _ => None,
            }));
        }
        Ok(rules)
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// As [`Socket::request`]; EEXIST when the same rule is there.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        self.request(RouteNetlinkMessage::NewRule(rule.message()), EXCLUSIVE)
            .map(drop)
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// As [`Socket::request`]; ENOENT when it is not there.
    pub fn del_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        self.request(RouteNetlinkMessage::DelRule(rule.message()), PLAIN)
            .map(drop)
    }
}
