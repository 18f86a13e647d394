//! nf_tables, as far as one chain needs it that gives pods' packets the node's address where they leave the cluster.
//!
//! ```text
//!  table inet espalier {
//!    chain masquerade {                                    # postrouting, priority srcnat
//!      oifname "espalier.vx" return                        # what goes on inside of the mesh
//!      meta l4proto udp th dport 4789 return               # what looks like the overlay never comes from the host's address
//!      ip daddr 10.244.0.0/16 return                       # pods
//!      ip saddr 10.244.1.0/24 masquerade
//!    }
//!  }
//! ```
//!
//! Every rule has a comment with a digest of all of them: a chain that has these comments, in this order and no more, is ours as
//! it was written. It is written in one transaction.

mod attributes;
mod expression;
mod message;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use nix::errno::Errno;

pub use message::{Netfilter, NetfilterMessage};

use crate::{Error, PLAIN, Socket, socket::CREATE};
use attributes::Attributes;
use expression::{End, Expressions};
use message::Kind;

/// The table, of both IP families, which is ours with all that is in it.
pub const MASQUERADE_TABLE: &str = "espalier";
const CHAIN: &str = "masquerade";
/// `NF_INET_POST_ROUTING` and `NF_IP_PRI_NAT_SRC`.
const HOOK: (u32, u32) = (4, 100);
/// Of the digest (FNV-1a, 64 bits): it tells versions of our own rules apart, and guards against nobody.
const FNV: (u64, u64) = (0xcbf2_9ce4_8422_2325, 0x0100_0000_01b3);

/// Which packets get the address of the device that they leave by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// Those that come from here,
    pub sources: Vec<IpNet>,
    /// do not go there,
    pub excluded: Vec<IpNet>,
    /// do not leave by these devices,
    pub devices: Vec<String>,
    /// are not UDP to these ports,
    pub udp_ports: Vec<u16>,
    /// and not of these IP protocols.
    pub protocols: Vec<u8>,
}

impl Masquerade {
    fn rules(&self) -> Vec<Attributes> {
        let new = Expressions::new;
        let devices = self.devices.iter().map(|name| new().leaves_by(name));
        let ports = self.udp_ports.iter().map(|port| new().udp_port(*port));
        let protocols = self.protocols.iter().map(|number| new().protocol(*number));
        let networks = self.excluded.iter();
        let networks = networks.map(|network| new().address(End::Destination, *network));
        let others = devices.chain(ports).chain(protocols).chain(networks);
        let sources = self.sources.iter();
        let sources = sources.map(|network| new().address(End::Source, *network).masquerade());
        let rules = others.map(Expressions::leave_alone).chain(sources);
        rules.map(Expressions::into_attributes).collect()
    }

    /// The rules' comments, by which they are known, in order.
    fn comments(rules: &[Attributes]) -> Vec<Vec<u8>> {
        let bytes = rules.iter().flat_map(|rule| rule.clone().into_bytes());
        let digest = bytes.fold(FNV.0, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(FNV.1)
        });
        let count = rules.len();
        let comment = |n| format!("espalier {digest:016x} {n}/{count}");
        (1..=count).map(|n| userdata(&comment(n))).collect()
    }

    fn transaction(&self) -> Vec<(NetfilterMessage, u16)> {
        let rules = self.rules();
        let comments = Self::comments(&rules);
        let mut batch = vec![
            (table(Kind::NewTable), CREATE),
            (chain(), CREATE),
            (rule(Kind::DelRule, Attributes::new()), PLAIN),
        ];
        batch.extend(rules.iter().zip(&comments).map(|(expressions, comment)| {
            let attributes = Attributes::new().nested(4, expressions).bytes(7, comment);
            (rule(Kind::NewRule, attributes), NLM_F_CREATE | NLM_F_APPEND)
        }));
        batch
    }
}

/// A comment as `nft` writes and shows it: type 0, length, text.
fn userdata(comment: &str) -> Vec<u8> {
    let text = [comment.as_bytes(), &[0]].concat();
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[0, length], text.as_slice()].concat()
}

fn table(kind: Kind) -> NetfilterMessage {
    let name = Attributes::new().text(1, MASQUERADE_TABLE);
    NetfilterMessage::new(kind, format!("table inet {MASQUERADE_TABLE}"), name)
}

fn chain() -> NetfilterMessage {
    let hook = Attributes::new().number(1, HOOK.0).number(2, HOOK.1);
    let attributes = Attributes::new()
        .text(1, MASQUERADE_TABLE)
        .text(3, CHAIN)
        .nested(4, &hook)
        .text(7, "nat");
    NetfilterMessage::new(Kind::NewChain, object(), attributes)
}

/// A rule of the chain; without anything more, all of them.
fn rule(kind: Kind, more: Attributes) -> NetfilterMessage {
    let place = Attributes::new().text(1, MASQUERADE_TABLE).text(2, CHAIN);
    NetfilterMessage::new(kind, object(), place.and(more))
}

fn object() -> String {
    format!("chain inet {MASQUERADE_TABLE} {CHAIN}")
}

impl Socket<Netfilter> {
    /// Writes the rules unless exactly these are there. True: they were not.
    ///
    /// # Errors
    /// As [`Socket::request`]; nothing has changed then. ENOENT and EOPNOTSUPP: this kernel has no NAT in nf_tables.
    pub fn put_masquerade(&mut self, wanted: &Masquerade) -> Result<bool, Error> {
        let there = self.dump(rule(Kind::GetRule, Attributes::new()))?;
        let comments = Masquerade::comments(&wanted.rules());
        let there = there.iter().map(NetfilterMessage::userdata);
        if there.eq(comments.iter().map(|comment| Some(comment.as_slice()))) {
            return Ok(false);
        }
        if let Err(e) = self.transaction(wanted.transaction()) {
            // A chain of this name that hangs elsewhere, in a table that is ours: EEXIST, or in newer kernels EOPNOTSUPP.
            let in_the_way = e.is_exists() || e.errno() == Some(Errno::EOPNOTSUPP);
            if !in_the_way || !self.remove_masquerade()? {
                return Err(e);
            }
            self.transaction(wanted.transaction())?;
        }
        Ok(true)
    }

    /// Removes the table. True: there was one.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn remove_masquerade(&mut self) -> Result<bool, Error> {
        let all = self.dump(table(Kind::GetTable))?;
        if !all.iter().any(|t| t.table() == Some(MASQUERADE_TABLE)) {
            return Ok(false);
        }
        match self.transaction(vec![(table(Kind::DelTable), PLAIN)]) {
            Err(e) if e.errno() == Some(Errno::ENOENT) => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn transaction(&mut self, requests: Vec<(NetfilterMessage, u16)>) -> Result<(), Error> {
        let ends = [Kind::BatchBegin, Kind::BatchEnd].map(NetfilterMessage::batch);
        let [begin, end] = ends;
        self.atomic(begin, requests, end)
    }
}

#[cfg(test)]
mod tests;
