//! Leases whose interface is gone, and interfaces that nobody finished: watched until it is certain that nobody is at them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use espalier_ipam::{Key, Lease};
use espalier_podnet::HostVeth;

/// For so long an interface must have been missing at every look. An ADD may have its lease before its interface, and takes 30 s at
/// the most, whatever hangs (`CALL_TIMEOUT` of the plugin, `CARRIER_PATIENCE` of podnet). The clock stands still while the
/// machine sleeps.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// What was missing at the last look, and since when.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// A lease of the same interface that is taken anew is another one: hence its time.
    leases: BTreeMap<(Key, u64), Instant>,
    half_made: BTreeMap<(String, u32), Instant>,
}

impl Orphans {
    /// Leases that have had no interface for [`PATIENCE`]. `there` was listed before the leases.
    pub(super) fn look<'a>(
        &mut self,
        there: &[HostVeth],
        leases: impl Iterator<Item = &'a Lease>,
        now: Instant,
    ) -> Vec<Key> {
        // By name, and by what the interface says of itself: somebody may have renamed it.
        let names: BTreeSet<&str> = there.iter().map(|veth| veth.name.as_str()).collect();
        let owners: BTreeSet<Key> = there
            .iter()
            .filter_map(|veth| veth.owner.as_ref())
            .map(|owner| Key::new(owner.container_id.as_str(), owner.ifname.as_str()))
            .collect();
        let has_interface = |key: &Key| {
            let name = espalier_podnet::host_name(&key.container_id, &key.ifname);
            owners.contains(key) || names.contains(name.as_str())
        };
        let missing = leases.filter(|lease| !has_interface(&lease.key));
        let missing = missing.map(|lease| (lease.key.clone(), lease.allocated_at_ms));
        let gone = watch(&mut self.leases, missing, now);
        gone.into_iter().map(|(key, _)| key).collect()
    }

    /// Interfaces that have not said whose they are for [`PATIENCE`].
    pub(super) fn half_made(&mut self, there: &[HostVeth], now: Instant) -> Vec<HostVeth> {
        let half_made = there.iter().filter(|veth| veth.owner.is_none());
        let identity = |veth: &HostVeth| (veth.name.clone(), veth.index);
        let left = watch(&mut self.half_made, half_made.map(identity), now);
        let is_left = |veth: &&HostVeth| left.contains(&identity(veth));
        there.iter().filter(is_left).cloned().collect()
    }
}

/// Remembers since when each of `found` is found, forgets all others, and gives those that were for [`PATIENCE`].
fn watch<K: Clone + Ord>(
    since: &mut BTreeMap<K, Instant>,
    found: impl Iterator<Item = K>,
    now: Instant,
) -> BTreeSet<K> {
    let before = std::mem::take(since);
    for key in found {
        let first = before.get(&key).copied().unwrap_or(now);
        since.insert(key, first);
    }
    let long = |first: &Instant| now.saturating_duration_since(*first) >= PATIENCE;
    let ripe = since.iter().filter(|(_, first)| long(first));
    ripe.map(|(key, _)| key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use espalier_ipam::Owner;
    use espalier_podnet::Identity;

    use super::*;

    const LOOK: Duration = Duration::from_secs(30);

    fn lease(container: &str, at: u64) -> Lease {
        Lease {
            key: Key::new(container, "eth0"),
            owner: Owner::default(),
            addresses: Vec::new(),
            allocated_at_ms: at,
        }
    }

    fn veth(container: &str) -> HostVeth {
        let owner = Identity {
            network: "mesh".into(),
            container_id: container.into(),
            ifname: "eth0".into(),
        };
        HostVeth {
            name: espalier_podnet::host_name(container, "eth0"),
            index: 7,
            owner: Some(owner),
        }
    }

    /// Looks every [`LOOK`]; gives what was found at each.
    fn looks(rounds: &[(Vec<HostVeth>, Vec<Lease>)]) -> Vec<Vec<Key>> {
        let (mut orphans, mut now) = (Orphans::default(), Instant::now());
        let look = |(there, leases): &(Vec<HostVeth>, Vec<Lease>)| {
            now += LOOK;
            orphans.look(there, leases.iter(), now)
        };
        rounds.iter().map(look).collect()
    }

    #[test]
    fn a_lease_goes_when_its_interface_was_missing_at_every_look() {
        let round = (
            vec![veth("alive")],
            vec![lease("alive", 1), lease("gone", 1)],
        );
        let found = looks(&vec![round; 5]);
        assert_eq!(found[..4], [const { Vec::new() }; 4]);
        assert_eq!(found[4], [Key::new("gone", "eth0")]);
    }

    #[test]
    fn an_interface_that_comes_late_keeps_its_lease() {
        let leases = vec![lease("slow", 1)];
        let mut rounds = vec![(Vec::new(), leases.clone()); 3];
        rounds.push((vec![veth("slow")], leases.clone()));
        rounds.extend(vec![(Vec::new(), leases); 4]);
        assert!(looks(&rounds).iter().all(Vec::is_empty));
    }

    #[test]
    fn a_lease_taken_anew_begins_anew() {
        let mut rounds = vec![(Vec::new(), vec![lease("again", 1)]); 4];
        rounds.extend(vec![(Vec::new(), vec![lease("again", 2)]); 4]);
        assert!(looks(&rounds).iter().all(Vec::is_empty));
    }

    #[test]
    fn a_renamed_interface_and_one_that_says_nothing_keep_their_leases() {
        let renamed = HostVeth {
            name: "renamed".into(),
            ..veth("a")
        };
        let silent = HostVeth {
            owner: None,
            ..veth("b")
        };
        let round = (vec![renamed, silent], vec![lease("a", 1), lease("b", 1)]);
        assert!(looks(&vec![round; 8]).iter().all(Vec::is_empty));
    }

    #[test]
    fn what_nobody_finished_goes_and_what_is_finished_stays() {
        let (mut orphans, start) = (Orphans::default(), Instant::now());
        let half = HostVeth {
            owner: None,
            ..veth("half")
        };
        let there = [veth("whole"), half.clone()];
        assert!(orphans.half_made(&there, start).is_empty());
        assert!(orphans.half_made(&there, start + PATIENCE / 2).is_empty());
        assert_eq!(orphans.half_made(&there, start + PATIENCE), [half]);
        assert!(orphans.half_made(&there[..1], start + PATIENCE).is_empty());
    }
}
