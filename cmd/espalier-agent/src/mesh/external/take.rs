//! Gateways come, change and go with the manifests; and what is found of them at start.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use espalier_api::{ExternalAuth, ExternalGateway, UdpEncapsulation};
use espalier_dataplane_core::{Dataplane, Direction, Reqid, Spi};
use espalier_ike::{ChildConfig, Identity, PeerAuth, PeerConfig, TrafficSelector};
use espalier_overlay::Tunnel;
use espalier_peers::NodeSpec;
use ipnet::IpNet;
use tracing::{info, warn};

use super::{Gateway, address_towards};
use crate::mesh::adopt::{Found, adopted};
use crate::mesh::peer::{Adopted, NAT_T_PORT};
use crate::mesh::removals::Removal;
use crate::mesh::terms::whole;
use crate::mesh::{Kernel, Mesh};

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    /// Brings the gateways in line with the newest manifests.
    pub(in crate::mesh) fn take_gateways(&mut self, found: &Found) {
        let Some(own) = self.set.own.clone() else {
            return;
        };
        let wanted = self.snapshot.externals.iter();
        let wanted: Vec<ExternalGateway> = wanted
            .filter(|gateway| gateway.concerns(&own.name))
            .cloned()
            .collect();
        let is_wanted = |name: &String| wanted.iter().any(|spec| spec.identity == *name);
        let gone: Vec<String> = self.gateways.keys().cloned().collect();
        for name in gone.iter().filter(|name| !is_wanted(name)) {
            self.remove_gateway(name);
        }
        for spec in wanted {
            self.put_gateway(spec, &own, found);
        }
        self.configure_gateways();
    }

    fn put_gateway(&mut self, spec: ExternalGateway, own: &NodeSpec, found: &Found) {
        let name = spec.identity.clone();
        let Some(gateway) = self.gateways.get_mut(&name) else {
            info!(gateway = name, address = %spec.gateway, "gateway added");
            let mut gateway = Gateway::new(spec, own);
            gateway.take_found(found);
            self.gateways.insert(name, gateway);
            return;
        };
        let local = address_towards(own, spec.gateway);
        let same = (local, &own.pod_cidrs) == (gateway.local, &gateway.pods)
            && (spec.gateway, &spec.remote_cidrs)
                == (gateway.spec.gateway, &gateway.spec.remote_cidrs);
        (gateway.local, gateway.pods, gateway.spec) = (local, own.pod_cidrs.clone(), spec);
        if !same {
            self.start_tunnel_anew(&name);
        }
    }

    /// What there is was agreed for other networks or addresses.
    fn start_tunnel_anew(&mut self, name: &str) {
        info!(gateway = name, "gateway changed; its tunnel is made anew");
        let Some(gateway) = self.gateways.get_mut(name) else {
            return;
        };
        gateway.tell_plane_again();
        let old = std::mem::take(&mut gateway.adopted);
        if !old.is_empty() {
            (gateway.active, gateway.found, gateway.drop_adopted_at) = (None, None, None);
        }
        self.remove_later(name, old.into_iter().map(|sa| (sa.direction, sa.spi)));
        let id = Identity(name.into());
        self.parts.endpoint.disconnect(&id, Instant::now());
    }

    fn remove_gateway(&mut self, name: &str) {
        info!(gateway = name, "gateway removed");
        let id = Identity(name.into());
        self.parts.endpoint.remove_peer(&id, Instant::now());
        if let Some(gateway) = self.gateways.remove(name) {
            self.removals.push_back(Removal::Peer(gateway.id()));
        }
    }

    /// Tells IKE what the gateways are now.
    pub(in crate::mesh) fn configure_gateways(&mut self) {
        for name in self.gateways.keys().cloned().collect::<Vec<_>>() {
            let id = Identity(name.as_str().into());
            let now = Instant::now();
            let Some(gateway) = self.gateways.get(&name) else {
                continue;
            };
            let config = match self.refusal(gateway) {
                None => self.gateway_config(gateway),
                Some(_) => None,
            };
            let put = match config {
                Some(config) => self.parts.endpoint.put_peer(config, now),
                None => {
                    self.parts.endpoint.remove_peer(&id, now);
                    Ok(())
                }
            };
            let problem = put.err().map(|e| e.to_string());
            if let Some(problem) = &problem {
                warn!(gateway = name, %problem, "gateway cannot be configured");
            }
            if let Some(gateway) = self.gateways.get_mut(&name) {
                gateway.config_problem = problem;
            }
        }
    }

    fn gateway_config(&self, gateway: &Gateway) -> Option<PeerConfig> {
        let spec = &gateway.spec;
        let auth = match spec.auth {
            ExternalAuth::Certificate => PeerAuth::Certificate,
            ExternalAuth::Psk => PeerAuth::Psk(self.keyring.psks.get(&spec.name)?.clone()),
        };
        let (own, remote): (Vec<_>, Vec<_>) = gateway.offered().into_iter().unzip();
        let child = ChildConfig {
            transport: false,
            suites: self.terms.offered_to_gateways(),
            esn: self.terms.can.esn,
            ..ChildConfig::new(as_selectors(own), as_selectors(remote))
        };
        let at = |address: IpAddr| SocketAddr::new(address, NAT_T_PORT);
        let identity = Identity(spec.identity.as_str().into());
        let always = self.terms.protection.udp_encapsulation == UdpEncapsulation::Always;
        Some(PeerConfig {
            force_udp_encapsulation: always,
            ..PeerConfig::new(identity, at(gateway.local?), at(spec.gateway), auth, child)
        })
    }

    /// S8: why this node cannot have a tunnel with it, and the remedy. Nothing passes to its networks then.
    pub(super) fn refusal(&self, gateway: &Gateway) -> Option<String> {
        let spec = &gateway.spec;
        let hello = self.uplink.hello.as_ref();
        let lacking = hello.filter(|hello| !(hello.is_kernel() && hello.can.tunnel));
        let why = if let Some(hello) = lacking {
            format!(
                "needs tunnel mode, which the {} data plane of this node cannot do; start espalier-dataplane with --dataplane kernel on a kernel with ESP, or leave this node out of spec.nodes",
                hello.kind
            )
        } else if gateway.local.is_none() {
            format!(
                "spec.gateway: {} is of an IP version that this node has no address of; give the node one, or leave it out of spec.nodes",
                spec.gateway
            )
        } else if gateway.offered().is_empty() {
            "spec.remoteCIDRs: none is of an IP version that this node's pods have; add one, or leave this node out of spec.nodes".to_owned()
        } else if hello.is_some() && self.terms.tunnel_suites().is_empty() {
            "the data plane of this node has no suite that encrypts; load the kernel's modules for AES-GCM".to_owned()
        } else if spec.auth == ExternalAuth::Psk && !self.keyring.psks.contains_key(&spec.name) {
            format!(
                "spec.auth: PSK needs {}.psk in the folder of --psk-dir; make it with `espalier pki psk`, or use auth: Certificate",
                spec.name
            )
        } else {
            return None;
        };
        Some(format!(
            "ExternalPeer {}: {why}; nothing passes to its networks from here",
            spec.name
        ))
    }
}

impl Gateway {
    /// Takes over what carried its packets before this agent started, or lost sight of the data plane.
    pub(in crate::mesh) fn take_found(&mut self, found: &Found) {
        let named = found.tunnel(self.spec.gateway);
        if let Some(tunnel) = named {
            self.reqid = Reqid(tunnel.protect.reqid);
            self.found = Some(tunnel.clone());
        }
        let spi = named.and_then(|tunnel| tunnel.protect.spi).map(Spi);
        let spi = spi.or(self.active);
        if found.knows_sas() {
            self.adopted = found.sas_of(&self.spec.identity).map(adopted).collect();
        } else if let Some(tunnel) = named {
            self.adopted = spi.map(|spi| sealing(tunnel, spi)).into_iter().collect();
        }
        let is_out = |sa: &Adopted, spi| (sa.direction, sa.spi) == (Direction::Out, spi);
        self.active = spi.filter(|spi| self.adopted.iter().any(|sa| is_out(sa, *spi)));
        if !self.adopted.is_empty() {
            info!(
                gateway = self.spec.identity,
                sas = self.adopted.len(),
                "adopted SAs; a handshake will replace them"
            );
        }
    }

    pub(in crate::mesh) fn has_sas(&self) -> bool {
        !self.sas.is_empty()
    }
}

/// All that a policy says of a state.
fn sealing(tunnel: &Tunnel, spi: Spi) -> Adopted {
    Adopted {
        direction: Direction::Out,
        spi,
        ah: tunnel.protect.ah,
        raw: false,
        cpu: None,
    }
}

fn as_selectors(mut networks: Vec<IpNet>) -> Vec<TrafficSelector> {
    networks.sort_unstable();
    networks.dedup();
    networks.iter().map(whole).collect()
}
