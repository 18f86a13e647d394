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

/// A routing rule that drops what has a source in a network. Packets to the host itself are routed by the local table before any
/// such rule is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropRule {
    /// Name of the interface that they come in by; `None`: any.
    pub interface: Option<String>,
    /// Sources.
    pub source: IpNet,
    /// Destinations; `None`: any.
    pub destination: Option<IpNet>,
    /// The rule with the smallest number is asked first.
    pub priority: u32,
    /// Who made it (FRA_PROTOCOL).
    pub protocol: u8,
}

impl DropRule {
    fn message(&self) -> RuleMessage {
        let network = self.source.network();
        let mut message = RuleMessage::default();
        message.header.family = family(network);
        message.header.src_len = self.source.prefix_len();
        message.header.action = RuleAction::Blackhole;
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
        let drops = header.action == RuleAction::Blackhole;
        let destination = destination.map(|to| IpNet::new(to, header.dst_len));
        Some(Self {
            interface,
            source: IpNet::new(source.filter(|_| drops)?, header.src_len).ok()?,
            destination: destination.transpose().ok()?,
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
    pub fn drop_rules(&mut self) -> Result<Vec<DropRule>, Error> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let list = self.dump(RouteNetlinkMessage::GetRule(message))?;
            rules.extend(list.iter().filter_map(|m| match m {
                RouteNetlinkMessage::NewRule(m) => DropRule::parse(m),
                _ => None,
            }));
        }
        Ok(rules)
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// As [`Socket::request`]; EEXIST when the same rule is there.
    pub fn add_drop_rule(&mut self, rule: &DropRule) -> Result<(), Error> {
        self.request(RouteNetlinkMessage::NewRule(rule.message()), EXCLUSIVE)
            .map(drop)
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// As [`Socket::request`]; ENOENT when it is not there.
    pub fn del_drop_rule(&mut self, rule: &DropRule) -> Result<(), Error> {
        self.request(RouteNetlinkMessage::DelRule(rule.message()), PLAIN)
            .map(drop)
    }
}
