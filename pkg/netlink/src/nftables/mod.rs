//! nf_tables, as far as two tables need it: one gives pods' packets the node's address where they leave the cluster, one drops what
//! comes in from pod addresses in clear.
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
//!  table inet espalier-guard {
//!    chain arriving {                                      # prerouting, priority raw
//!      iifname "espalier.tun" return                       # what was opened
//!      iifname "eth0" ip saddr 10.244.1.0/24 drop          # nobody comes in as one of this node's own pods
//!      ip saddr 10.244.1.0/24 return
//!      ip saddr 10.244.2.0/24 return                       # a peer whose clear packets are accepted
//!      ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 drop
//!    }
//!    chain forwarded { … }                                 # the same where a Service's address has become a pod's
//!  }
//! ```
//!
//! Every rule has a comment with a digest of all of them: a table that has these comments, in this order and no more, is ours as
//! it was written. It is written in one transaction.

mod attributes;
mod expression;
mod guard;
mod masquerade;
mod message;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use nix::errno::Errno;

pub use guard::{GUARD_TABLE, Guard};
pub use masquerade::{MASQUERADE_TABLE, Masquerade};
pub use message::{Netfilter, NetfilterMessage};

use crate::{Error, PLAIN, Socket, socket::CREATE};
use attributes::Attributes;
use expression::Expressions;
use message::Kind;

/// Of the digest (FNV-1a, 64 bits): it tells versions of our own rules apart, and guards against nobody.
const FNV: (u64, u64) = (0xcbf2_9ce4_8422_2325, 0x0100_0000_01b3);

/// A table of both IP families, which is ours with all that is in it.
#[derive(Clone, Copy, Debug)]
struct Table {
    name: &'static str,
    chains: &'static [Chain],
}

#[derive(Clone, Copy, Debug)]
struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: u32,
    priority: i32,
}

impl Table {
    fn message(&self, kind: Kind) -> NetfilterMessage {
        let name = Attributes::new().text(1, self.name);
        NetfilterMessage::new(kind, format!("table inet {}", self.name), name)
    }

    fn new_chain(&self, chain: &Chain) -> NetfilterMessage {
        let priority = chain.priority.cast_unsigned();
        let hook = Attributes::new().number(1, chain.hook).number(2, priority);
        let attributes = Attributes::new()
            .text(1, self.name)
            .text(3, chain.name)
            .nested(4, &hook)
            .text(7, chain.kind);
        NetfilterMessage::new(Kind::NewChain, self.object(chain.name), attributes)
    }

    /// All rules of the table.
    fn rules(&self, kind: Kind) -> NetfilterMessage {
        let table = Attributes::new().text(1, self.name);
        NetfilterMessage::new(kind, format!("rules of table inet {}", self.name), table)
    }

    fn new_rule(&self, rule: &Rule, comment: &str) -> NetfilterMessage {
        let attributes = Attributes::new()
            .text(1, self.name)
            .text(2, rule.chain)
            .nested(4, &rule.expressions)
            .bytes(7, &userdata(comment));
        NetfilterMessage::new(Kind::NewRule, self.object(rule.chain), attributes)
    }

    fn object(&self, chain: &str) -> String {
        format!("chain inet {} {chain}", self.name)
    }

    /// Table, chains and these rules in the place of all that are there.
    fn transaction(&self, rules: &[Rule]) -> Vec<(NetfilterMessage, u16)> {
        let chains = self.chains.iter();
        let chains = chains.map(|chain| (self.new_chain(chain), CREATE));
        let mut batch = vec![(self.message(Kind::NewTable), CREATE)];
        batch.extend(chains);
        batch.push((self.rules(Kind::DelRule), PLAIN));
        batch.extend(rules.iter().zip(comments(rules)).map(|(rule, comment)| {
            let message = self.new_rule(rule, &comment);
            (message, NLM_F_CREATE | NLM_F_APPEND)
        }));
        batch
    }
}

/// What one rule does.
#[derive(Clone, Debug)]
struct Rule {
    chain: &'static str,
    expressions: Attributes,
    /// Behind its comment, for who reads it back.
    label: Option<String>,
}

impl Rule {
    fn of(chain: &Chain, expressions: Expressions) -> Self {
        Self {
            chain: chain.name,
            expressions: expressions.into_attributes(),
            label: None,
        }
    }
}

/// The rules' comments, by which they are known, in order.
fn comments(rules: &[Rule]) -> Vec<String> {
    let bytes = rules
        .iter()
        .flat_map(|rule| rule.expressions.clone().into_bytes());
    let digest = bytes.fold(FNV.0, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(FNV.1)
    });
    let count = rules.len();
    let comment = |(at, rule): (usize, &Rule)| {
        let label = rule.label.iter().flat_map(|label| [" ", label]);
        let label: String = label.collect();
        format!("espalier {digest:016x} {}/{count}{label}", at + 1)
    };
    rules.iter().enumerate().map(comment).collect()
}

/// The labels of a table's rules, if all of them are there.
fn labels<'c>(comments: &[&'c str]) -> Option<Vec<Option<&'c str>>> {
    let (first, _) = comments.first()?.split_once(" 1/")?;
    let label = |(at, comment): (usize, &&'c str)| {
        let place = format!("{first} {}/{}", at + 1, comments.len());
        match comment.strip_prefix(&place)? {
            "" => Some(None),
            label => label.strip_prefix(' ').map(Some),
        }
    };
    comments.iter().enumerate().map(label).collect()
}

/// A comment as `nft` writes and shows it: type 0, length, text.
fn userdata(comment: &str) -> Vec<u8> {
    let text = [comment.as_bytes(), &[0]].concat();
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[0, length], text.as_slice()].concat()
}

/// The reverse of [`userdata`].
fn comment(userdata: &[u8]) -> Option<&str> {
    let (&[0, length], text) = userdata.split_first_chunk()? else {
        return None;
    };
    let text = text.get(..usize::from(length))?.strip_suffix(&[0])?;
    std::str::from_utf8(text).ok()
}

impl Socket<Netfilter> {
    /// Writes the rules unless exactly these are there. True: they were not.
    fn put(&mut self, table: &Table, rules: &[Rule]) -> Result<bool, Error> {
        let there = self.dump(table.rules(Kind::GetRule))?;
        let wanted: Vec<_> = comments(rules).iter().map(|c| userdata(c)).collect();
        let there = there.iter().map(NetfilterMessage::userdata);
        if there.eq(wanted.iter().map(|comment| Some(comment.as_slice()))) {
            return Ok(false);
        }
        if let Err(e) = self.transaction(table.transaction(rules)) {
            // A chain of this name that hangs elsewhere, in a table that is ours: EEXIST, or in newer kernels EOPNOTSUPP.
            let in_the_way = e.is_exists() || e.errno() == Some(Errno::EOPNOTSUPP);
            if !in_the_way || !self.remove(table)? {
                return Err(e);
            }
            self.transaction(table.transaction(rules))?;
        }
        Ok(true)
    }

    /// Removes the table. True: there was one.
    fn remove(&mut self, table: &Table) -> Result<bool, Error> {
        let all = self.dump(table.message(Kind::GetTable))?;
        if !all.iter().any(|t| t.table() == Some(table.name)) {
            return Ok(false);
        }
        match self.transaction(vec![(table.message(Kind::DelTable), PLAIN)]) {
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
