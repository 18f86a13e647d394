//! Pods' packets that come in by any device but one are dropped, but for those of some sources.

use ipnet::IpNet;

use super::{
    Chain, Netfilter, Rule, Table, comment,
    expression::{End, Expressions},
    labels,
    message::Kind,
};
use crate::{Error, Socket};

/// The table, of both IP families, which is ours with all that is in it.
pub const GUARD_TABLE: &str = "espalier-guard";

const TABLE: Table = Table {
    name: GUARD_TABLE,
    chains: &[ARRIVING, FORWARDED],
};

/// `NF_INET_PRE_ROUTING` and `NF_IP_PRI_RAW`: before connection tracking, for the host's own addresses, too.
const ARRIVING: Chain = Chain {
    name: "arriving",
    kind: "filter",
    hook: 0,
    priority: -300,
};

/// `NF_INET_FORWARD` and `NF_IP_PRI_FILTER`: behind what gives a packet for a Service or a host's port the address of a pod.
const FORWARDED: Chain = Chain {
    name: "forwarded",
    kind: "filter",
    hook: 2,
    priority: 0,
};

/// In the label of a rule that lets a source in.
const FROM: &str = "from ";

/// Which packets are dropped wherever they come in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Those between these networks,
    pub refused: Vec<(IpNet, IpNet)>,
    /// unless they come in by one of these devices,
    pub devices: Vec<String>,
    /// from these networks of this node,
    pub own: Vec<IpNet>,
    /// or from these, which are accepted;
    pub accepted: Vec<IpNet>,
    /// and those that come in by this device as from one of this node's own.
    pub underlay: Option<String>,
}

impl Guard {
    pub(super) fn rules(&self) -> Vec<Rule> {
        let arriving = self.expressions().map(|(rule, accepted)| Rule {
            label: accepted.map(|network| format!("{FROM}{network}")),
            ..Rule::of(&ARRIVING, rule)
        });
        let forwarded = self.expressions();
        let forwarded = forwarded.map(|(rule, _)| Rule::of(&FORWARDED, rule));
        arriving.chain(forwarded).collect()
    }

    /// Of one chain, in order, and the network that a rule accepts.
    fn expressions(&self) -> impl Iterator<Item = (Expressions, Option<IpNet>)> {
        let new = Expressions::new;
        let from = move |network: &IpNet| new().address(End::Source, *network);
        let devices = self.devices.iter();
        let devices = devices.map(move |name| new().comes_by(name).leave_alone());
        let forged = self.underlay.iter().flat_map(move |underlay| {
            let own = self.own.iter();
            own.map(move |network| {
                let by = new().comes_by(underlay);
                by.address(End::Source, *network).drop()
            })
        });
        let own = self
            .own
            .iter()
            .map(move |network| from(network).leave_alone());
        let accepted = self.accepted.iter();
        let accepted = accepted.map(move |net| (from(net).leave_alone(), Some(*net)));
        let refused = self.refused.iter().map(move |(source, destination)| {
            let between = from(source).address(End::Destination, *destination);
            (between.drop(), None)
        });
        let first = devices.chain(forged).chain(own);
        first
            .map(|rule| (rule, None))
            .chain(accepted)
            .chain(refused)
    }
}

impl Socket<Netfilter> {
    /// Writes the rules unless exactly these are there. True: they were not.
    ///
    /// # Errors
    /// As [`Socket::request`]; nothing has changed then.
    pub fn put_guard(&mut self, wanted: &Guard) -> Result<bool, Error> {
        self.put(&TABLE, &wanted.rules())
    }

    /// What a guard that is there in full accepts; `None` where there is none.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn guard_accepts(&mut self) -> Result<Option<Vec<IpNet>>, Error> {
        let there = self.dump(TABLE.rules(Kind::GetRule))?;
        let comments = there.iter().map(|rule| rule.userdata().and_then(comment));
        let comments: Option<Vec<&str>> = comments.collect();
        let labels = comments.as_deref().and_then(labels);
        let networks = |labels: Vec<Option<&str>>| {
            let from = labels.into_iter().flatten();
            from.filter_map(|label| label.strip_prefix(FROM)?.parse().ok())
                .collect()
        };
        Ok(labels.map(networks))
    }

    /// Removes the table. True: there was one.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn remove_guard(&mut self) -> Result<bool, Error> {
        self.remove(&TABLE)
    }
}
