//! After every fact: data plane and IKE are what gateways need.

use std::collections::BTreeMap;
use std::time::Instant;

use espalier_api::ExternalGateway;
use espalier_dataplane_core::{Dataplane, Direction, Error};
use espalier_ike::{Connect, Identity, IkeStatus};
use espalier_overlay::ExternalRoute;
use tracing::{debug, info, warn};

use crate::mesh::{Kernel, Mesh};

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    /// Before the kernel's policies are settled: what they will name is there.
    pub(in crate::mesh) async fn fill_gateways(&mut self, now: Instant) {
        self.drop_drained(now);
        if !self.uplink.answers() {
            return;
        }
        let mut stale = Vec::new();
        for (name, gateway) in &self.gateways {
            let told = gateway.in_plane && gateway.switched;
            let refused = self.refusal(gateway).is_some();
            if !refused && (!told || gateway.best(now) != gateway.active) {
                stale.push(name.clone());
            }
        }
        for name in stale {
            if let Err(e) = self.put_gateway_in_plane(&name).await {
                warn!(gateway = name, error = %e, "the data plane does not take the gateway");
                if let Some(gateway) = self.gateways.get_mut(&name) {
                    gateway.problem = Some(e.to_string());
                }
                continue;
            }
            self.switch_gateway(&name).await;
        }
    }

    pub(super) async fn put_gateway_in_plane(&mut self, name: &str) -> Result<(), Error> {
        let gateway = self.gateways.get(name).filter(|gateway| !gateway.in_plane);
        let wanted = gateway.and_then(|gateway| Some(gateway.for_plane(gateway.local?)));
        let Some(wanted) = wanted else {
            return Ok(());
        };
        self.remove_before_return(&wanted.id).await?;
        let reqid = self.parts.plane.put_peer(wanted).await?;
        if let Some(gateway) = self.gateways.get_mut(name) {
            (gateway.reqid, gateway.in_plane) = (reqid, true);
        }
        Ok(())
    }

    /// Seals with the newest SA that the gateway is known to open.
    pub(super) async fn switch_gateway(&mut self, name: &str) {
        let now = Instant::now();
        let Some(gateway) = self.gateways.get_mut(name) else {
            return;
        };
        let best = gateway.best(now);
        if best == gateway.active && gateway.switched || !gateway.in_plane {
            return;
        }
        match self.parts.plane.switch_outbound(gateway.id(), best).await {
            Ok(()) => {
                debug!(gateway = name, ?best, "outbound SA switched");
                (gateway.active, gateway.switched) = (best, true);
            }
            Err(e) => {
                warn!(gateway = name, error = %e, "the outbound SA cannot be switched");
                gateway.problem = Some(e.to_string());
            }
        }
    }

    /// Gives up what was replaced, or found at start, and has drained.
    fn drop_drained(&mut self, now: Instant) {
        let mut gone = Vec::new();
        for (name, gateway) in &mut self.gateways {
            if gateway.drop_adopted_at.is_some_and(|at| at <= now) {
                (gateway.drop_adopted_at, gateway.found) = (None, None);
                let adopted = std::mem::take(&mut gateway.adopted).into_iter();
                gone.extend(adopted.map(|sa| (name.clone(), sa.direction, sa.spi)));
            }
            let drained = gateway.draining.extract_if(.., |(_, at)| *at <= now);
            gone.extend(drained.map(|(spi, _)| (name.clone(), Direction::In, spi)));
        }
        for (name, direction, spi) in gone {
            self.remove_later(&name, [(direction, spi)]);
        }
    }

    /// IKE SAs where they are wanted, and only there.
    pub(in crate::mesh) fn settle_gateways(&mut self, now: Instant) {
        if self.uplink.is_kernel_away() {
            return; // what there is carries on
        }
        let mut wishes = Vec::new();
        for (name, gateway) in &self.gateways {
            let possible = gateway.config_problem.is_none() && self.refusal(gateway).is_none();
            let why = match gateway.adopted.is_empty() {
                true => Connect::Fresh,
                false => Connect::Restart,
            };
            let wanted = (possible && self.uplink.answers()).then_some(why);
            wishes.push((Identity(name.as_str().into()), wanted));
        }
        for (id, wanted) in wishes {
            let connected = self.parts.endpoint.status(&id) != IkeStatus::None;
            match wanted {
                Some(why) if !connected => {
                    info!(gateway = %id, ?why, "connecting");
                    self.parts.endpoint.connect(&id, why, now);
                }
                None if connected => {
                    info!(gateway = %id, "SAs are not needed any more");
                    self.parts.endpoint.disconnect(&id, now);
                }
                _ => {}
            }
        }
    }

    /// What the kernel is to do with packets between this node's pods and networks outside. Those of gateways that have no tunnel
    /// with this node, or are not in force, are closed.
    pub(in crate::mesh) fn external_routes(&self) -> BTreeMap<String, ExternalRoute> {
        let tunnels = self.gateways.values();
        let mut all: BTreeMap<String, ExternalRoute> = tunnels
            .map(|gateway| (gateway.spec.name.clone(), gateway.route()))
            .collect();
        let closed = |other: &ExternalGateway| ExternalRoute {
            remote_cidrs: other
                .apart_from(&self.snapshot.policy.cluster_cidrs, &self.snapshot.nodes),
            tunnel: None,
        };
        for other in &self.snapshot.externals {
            all.entry(other.name.clone())
                .or_insert_with(|| closed(other));
        }
        for (number, other) in self.snapshot.left_out.iter().enumerate() {
            // It may have the name of one that is in force.
            all.insert(
                format!("{} (left out, {number})", other.name),
                closed(other),
            );
        }
        all
    }
}
