//! The node's address for what pods send out of the cluster.

use ipnet::IpNet;

use super::{
    Chain, Netfilter, Rule, Table,
    expression::{End, Expressions},
};
use crate::{Error, Socket};

/// The table, of both IP families, which is ours with all that is in it.
pub const MASQUERADE_TABLE: &str = "espalier";

pub(super) const TABLE: Table = Table {
    name: MASQUERADE_TABLE,
    chains: &[CHAIN],
};

/// `NF_INET_POST_ROUTING` and `NF_IP_PRI_NAT_SRC`.
pub(super) const CHAIN: Chain = Chain {
    name: "masquerade",
    kind: "nat",
    hook: 4,
    priority: 100,
};

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
    pub(super) fn rules(&self) -> Vec<Rule> {
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
        rules.map(|rule| Rule::of(&CHAIN, rule)).collect()
    }
}

impl Socket<Netfilter> {
    /// Writes the rules unless exactly these are there. True: they were not.
    ///
    /// # Errors
    /// As [`Socket::request`]; nothing has changed then. ENOENT and EOPNOTSUPP: this kernel has no NAT in nf_tables.
    pub fn put_masquerade(&mut self, wanted: &Masquerade) -> Result<bool, Error> {
        self.put(&TABLE, &wanted.rules())
    }

    /// Removes the table. True: there was one.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn remove_masquerade(&mut self) -> Result<bool, Error> {
        self.remove(&TABLE)
    }
}
