//! The end: nothing of ours stays in the kernel.

use espalier_netlink::{Address, GUARD_TABLE, Link, MASQUERADE_TABLE};
use tracing::warn;

use crate::{Error, Overlay, devices, nftables, observe::Through};

impl Overlay {
    /// For uninstalling: removes our devices and all routes, rules, policies and nf_tables tables of ours, and nothing else. The TUN belongs to the
    /// data plane, pods' routes to the CNI plugin, and `ip_forward` and the underlay's `rp_filter` to the node. Gives a line about each that was removed.
    ///
    /// # Errors
    /// Everything that could not be removed; the rest is.
    pub fn remove_all(&mut self) -> Result<Vec<String>, Error> {
        self.applied = None;
        let steps = [
            Self::remove_routes,
            Self::remove_device,
            Self::remove_policies,
            Self::remove_rules,
            Self::remove_guard,
            Self::remove_refusals,
            Self::remove_masquerade,
        ];
        let (mut removed, mut errors) = (Vec::new(), Vec::new());
        for step in steps {
            match step(self) {
                Ok(lines) => removed.extend(lines),
                Err(e) => {
                    warn!(error = %e, "removing the overlay");
                    errors.push(e);
                }
            }
        }
        if errors.is_empty() {
            Ok(removed)
        } else {
            Err(Error::Remove(errors))
        }
    }

    fn remove_routes(&mut self) -> Result<Vec<String>, Error> {
        let own = self.own_routes()?.into_iter();
        let routes: Vec<_> = own
            .filter(|o| o.through != Through::Nothing)
            .map(|o| o.route)
            .collect();
        let lines = routes.iter().map(|r| format!("route to {}", r.to));
        let lines = lines.collect();
        self.del_routes(routes).map(|()| lines)
    }

    fn remove_device(&mut self) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        for (_, name, kinds) in devices::OURS {
            let found = self.route.link(name)?;
            let Some(device) = found.filter(|link| devices::is_kind(link, kinds)) else {
                continue;
            };
            self.remove_addresses_of(&device)?;
            self.route.del_link(device.index)?;
            removed.push(format!("device {name}"));
        }
        Ok(removed)
    }

    /// Those of its addresses that a TUN has too are ours there as well.
    fn remove_addresses_of(&mut self, device: &Link) -> Result<(), Error> {
        let own = self.route.addresses(Some(device.index))?;
        let links = self.route.links()?;
        for tun in links.iter().filter(|link| devices::is_tun(link)) {
            let there = self.route.addresses(Some(tun.index))?;
            let both = |a: &&Address| own.iter().any(|o| o.address == a.address);
            for address in there.iter().filter(both) {
                self.route.del_address(tun.index, address.address)?;
            }
        }
        Ok(())
    }

    fn remove_policies(&mut self) -> Result<Vec<String>, Error> {
        let ours = self.spd.list()?;
        let lines = ours.iter().map(|p| format!("policy {}", p.policy));
        let lines = lines.collect();
        self.spd.remove(ours, false).map(|()| lines)
    }

    fn remove_rules(&mut self) -> Result<Vec<String>, Error> {
        let own = self.own_rules()?;
        let lines = own
            .iter()
            .map(|rule| format!("rule about packets from {}", rule.source));
        let lines = lines.collect();
        self.del_rules(own).map(|()| lines)
    }

    fn remove_guard(&mut self) -> Result<Vec<String>, Error> {
        let there = self.guard.remove()?;
        Ok(there
            .then(|| nftables::in_words(GUARD_TABLE))
            .into_iter()
            .collect())
    }

    fn remove_masquerade(&mut self) -> Result<Vec<String>, Error> {
        let there = self.nat.remove()?;
        Ok(there
            .then(|| nftables::in_words(MASQUERADE_TABLE))
            .into_iter()
            .collect())
    }

    fn remove_refusals(&mut self) -> Result<Vec<String>, Error> {
        let own = self.own_routes()?;
        let lines = own.iter().map(|o| format!("unreachable {}", o.route.to));
        let lines = lines.collect();
        self.del_routes(own.into_iter().map(|o| o.route).collect())
            .map(|()| lines)
    }
}
