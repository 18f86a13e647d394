//! Pods' packets that come in by any device but one are dropped, but for those of some sources.

use ipnet::IpNet;

use super::{Netfilter, Place, Rule, comment, expression::End, expression::Expressions, labels};
use crate::{Error, Socket, nftables::message::Kind};

/// The table, of both IP families, which is ours with all that is in it.
pub const GUARD_TABLE: &str = "espalier-guard";

/// `NF_INET_PRE_ROUTING` and `NF_IP_PRI_RAW`: before connection tracking, for the host's own addresses, too.
pub(super) const PLACE: Place = Place {
    table: GUARD_TABLE,
    chain: "guard",
    kind: "filter",
    hook: 0,
    priority: -300,
};

/// In the label of a rule that lets a source in.
const FROM: &str = "from ";

/// Which packets are dropped wherever they come in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Those between these networks,
    pub refused: Vec<(IpNet, IpNet)>,
    /// unless they come in by this device,
    pub device: String,
    /// from these networks of this node,
    pub own: Vec<IpNet>,
    /// or from these, which are accepted.
    pub accepted: Vec<IpNet>,
}

impl Guard {
    pub(super) fn rules(&self) -> Vec<Rule> {
        let new = Expressions::new;
        let from = |network: &IpNet| new().address(End::Source, *network);
        let device = new().comes_by(&self.device).leave_alone();
        let own = self.own.iter().map(|net| from(net).leave_alone());
        let accepted = self.accepted.iter().map(|net| Rule {
            label: Some(format!("{FROM}{net}")),
            ..from(net).leave_alone().into()
        });
        let refused = self.refused.iter();
        let refused =
            refused.map(|(source, to)| from(source).address(End::Destination, *to).drop());
        let open = [device].into_iter().chain(own).map(Rule::from);
        open.chain(accepted)
            .chain(refused.map(Rule::from))
            .collect()
    }
}

impl Socket<Netfilter> {
    /// Writes the rules unless exactly these are there. True: they were not.
    ///
    /// # Errors
    /// As [`Socket::request`]; nothing has changed then.
    pub fn put_guard(&mut self, wanted: &Guard) -> Result<bool, Error> {
        self.put(&PLACE, &wanted.rules())
    }

    /// What a guard that is there in full accepts; `None` where there is none.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn guard_accepts(&mut self) -> Result<Option<Vec<IpNet>>, Error> {
        let there = self.dump(PLACE.rule(Kind::GetRule, super::Attributes::new()))?;
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
        self.remove(&PLACE)
    }
}
