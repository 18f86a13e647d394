//! Gateways in the node's status, among its peers.

use espalier_dataplane_core::{Dataplane, Direction, Dump, Encapsulation, SaInfo};
use espalier_ike::{Identity, IkeStatus};
use espalier_rpc::agent::PeerStatus;

use super::Gateway;
use crate::mesh::{Kernel, Mesh};

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    /// Why this node has no tunnel with some of them.
    pub(in crate::mesh) fn gateway_problems(&self) -> Vec<String> {
        let gateways = self.gateways.values();
        gateways
            .filter_map(|gateway| self.refusal(gateway))
            .collect()
    }

    pub(in crate::mesh) fn gateway_status(
        &self,
        gateway: &Gateway,
        dump: Option<&Dump>,
    ) -> PeerStatus {
        let name = &gateway.spec.identity;
        let all = dump.iter().flat_map(|dump| &dump.sas);
        let sas: Vec<&SaInfo> = all.filter(|sa| sa.peer.0 == *name).collect();
        let sum = |direction, field: fn(&SaInfo) -> u64| -> u64 {
            let of = sas.iter().filter(|sa| sa.direction == direction);
            of.map(|sa| field(sa)).sum()
        };
        let is_active =
            |sa: &&&SaInfo| sa.direction == Direction::Out && Some(sa.spi) == gateway.active;
        let active = sas.iter().find(is_active);
        let sealed = gateway.route().tunnel.is_some() && self.uplink.is_kernel();
        let problem = self.refusal(gateway);
        let problem = problem.or(gateway.config_problem.clone());
        let newest = gateway.sas.last().map_or(0, |sa| sa.spi_in.0);
        PeerStatus {
            name: gateway.spec.name.clone(),
            kind: "external".to_owned(),
            address: gateway.spec.gateway.to_string(),
            pod_cidrs: words(&gateway.spec.remote_cidrs),
            effective_mode: "Required".to_owned(),
            path: if sealed { "Encrypted" } else { "Blocked" }.to_owned(),
            encapsulation: active.map_or("", encapsulation).to_owned(),
            protocol: active.map_or("", |_| "ESP").to_owned(),
            encrypted: sealed,
            authenticated: sealed,
            accepts_clear: false,
            enforced: true,
            ike: self.gateway_ike(name).to_owned(),
            suite: active.map_or_else(String::new, |sa| format!("{:?}", sa.suite)),
            spi_in: newest,
            spi_out: gateway.active.map_or(0, |spi| spi.0),
            age_s: active.map_or(0, |sa| sa.age_s),
            packets_in: sum(Direction::In, |sa| sa.packets),
            packets_out: sum(Direction::Out, |sa| sa.packets),
            bytes_in: sum(Direction::In, |sa| sa.bytes),
            bytes_out: sum(Direction::Out, |sa| sa.bytes),
            drops: sas.iter().map(|sa| sa.drops).sum(),
            handshake_us: gateway
                .handshake
                .map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            problem: problem.or(gateway.problem.clone()).unwrap_or_default(),
            sas: u32::try_from(sas.len()).unwrap_or(u32::MAX),
            cpus: 0,
        }
    }

    fn gateway_ike(&self, name: &str) -> &'static str {
        match self.parts.endpoint.status(&Identity(name.into())) {
            IkeStatus::None => "none",
            IkeStatus::Connecting => "connecting",
            IkeStatus::Established => "established",
        }
    }
}

fn encapsulation(sa: &&SaInfo) -> &'static str {
    match sa.encapsulation {
        Encapsulation::Raw => "raw",
        Encapsulation::Udp { .. } => "UDP",
    }
}

fn words(networks: &[ipnet::IpNet]) -> Vec<String> {
    networks.iter().map(ToString::to_string).collect()
}
