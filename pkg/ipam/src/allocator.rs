use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::pool::Pool;
use crate::{Family, Key, Lease, LeasedAddress, Owner};

/// Freed addresses to remember per family before the oldest is preferred to one that was never used. Bounds the memory
/// that a wide CIDR costs.
const REMEMBER_FREED: usize = 1024;

/// Who has which address of this node's pod CIDRs.
///
/// An address that was freed is taken again as late as possible: first those never used, then the least recently freed,
/// and none before the delay is over, so that what is still under way to the old pod does not reach a new one.
#[derive(Clone, Debug)]
pub struct Allocator {
    pools: Vec<Pool>,
    reuse_delay: Duration,
    leases: BTreeMap<Key, Lease>,
    used: HashSet<IpAddr>,
    /// Least recently freed first.
    freed: VecDeque<Freed>,
}

/// Why there is no allocator, or no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No CIDR at all.
    #[error("this node has no pod CIDR: expected at least one in the Node's spec.podCIDRs")]
    NoCidr,
    /// A CIDR that has no address for a pod.
    #[error(
        "pod CIDR {cidr} is too small: expected at least a /30 (IPv4) or /126 (IPv6); change the Node's spec.podCIDRs"
    )]
    TooSmall {
        /// Which.
        cidr: IpNet,
    },
    /// Two CIDRs that share addresses.
    #[error(
        "pod CIDRs {first} and {second} overlap: expected disjoint ones in the Node's spec.podCIDRs"
    )]
    Overlap {
        /// One.
        first: IpNet,
        /// The other.
        second: IpNet,
    },
    /// Nothing free now.
    #[error(
        "no free {family} address: {in_use} of {capacity} in use, {cooling} freed too recently{}; \
         remove pods from this node or give it another pod CIDR",
        retry(*retry_in)
    )]
    Exhausted {
        /// Of which family.
        family: Family,
        /// Addresses that pods have now.
        in_use: usize,
        /// Addresses that pods can have.
        capacity: u128,
        /// Free addresses whose delay is not over.
        cooling: usize,
        /// When the first of those can be had.
        retry_in: Option<Duration>,
    },
    /// Two leases share something.
    #[error("the leases contradict each other: {what} is leased twice")]
    Contradiction {
        /// Address or key.
        what: String,
    },
}

fn retry(delay: Option<Duration>) -> String {
    delay
        .map(|d| format!(" (the next is free in {} ms)", d.as_millis()))
        .unwrap_or_default()
}

/// What outlives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    leases: Vec<Lease>,
    freed: Vec<Freed>,
    /// Per CIDR the lowest address that was never leased.
    next: Vec<(IpNet, IpAddr)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Freed {
    address: IpAddr,
    at_ms: u64,
}

/// A free address, found but not taken.
#[derive(Clone, Copy)]
struct Pick {
    address: IpAddr,
    pool: usize,
}

impl Allocator {
    /// An allocator for a node's own pod CIDRs, in order of preference. Without leases.
    ///
    /// # Errors
    /// [`Error::NoCidr`], [`Error::TooSmall`], [`Error::Overlap`].
    pub fn new(cidrs: &[IpNet], reuse_delay: Duration) -> Result<Self, Error> {
        let pools = pools(cidrs)?;
        let (leases, used, freed) = Default::default();
        Ok(Self {
            pools,
            reuse_delay,
            leases,
            used,
            freed,
        })
    }

    /// Takes one address per family for `key`. When `key` has a lease already, that is the answer.
    ///
    /// # Errors
    /// [`Error::Exhausted`]; nothing is taken then.
    pub fn allocate(&mut self, key: &Key, owner: Owner, now: SystemTime) -> Result<Lease, Error> {
        if let Some(lease) = self.leases.get(key) {
            return Ok(lease.clone());
        }
        let picks = self
            .families()
            .map(|f| self.pick(f, now))
            .collect::<Result<Vec<_>, _>>()?;
        let addresses = picks.into_iter().map(|pick| self.take(pick)).collect();
        let lease = Lease {
            key: key.clone(),
            owner,
            addresses,
            allocated_at_ms: millis(now),
        };
        self.leases.insert(key.clone(), lease.clone());
        Ok(lease)
    }

    /// Gives back what `key` has; `None` when it has nothing.
    pub fn release(&mut self, key: &Key, now: SystemTime) -> Option<Lease> {
        let lease = self.leases.remove(key)?;
        for LeasedAddress { address, .. } in &lease.addresses {
            self.used.remove(address);
            if self.pools.iter().any(|pool| pool.serves(*address)) {
                self.freed.push_back(Freed {
                    address: *address,
                    at_ms: millis(now),
                });
            }
        }
        Some(lease)
    }

    /// What `key` has.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Lease> {
        self.leases.get(key)
    }

    /// All leases, by key.
    pub fn leases(&self) -> impl ExactSizeIterator<Item = &Lease> {
        self.leases.values()
    }

    pub(crate) fn state(&self) -> State {
        State {
            leases: self.leases.values().cloned().collect(),
            freed: self.freed.iter().copied().collect(),
            next: self
                .pools
                .iter()
                .map(|pool| (pool.cidr, pool.address(pool.next.min(pool.last()))))
                .collect(),
        }
    }

    /// An allocator that goes on from `state`. Leases outside the CIDRs (which may have changed) stay until released.
    pub(crate) fn restore(
        cidrs: &[IpNet],
        reuse_delay: Duration,
        state: State,
    ) -> Result<Self, Error> {
        let mut allocator = Self::new(cidrs, reuse_delay)?;
        for lease in state.leases {
            allocator.adopt(lease)?;
        }
        for freed in state.freed {
            allocator.remember_freed(freed);
        }
        for (cidr, next) in state.next {
            if let Some(pool) = allocator
                .pools
                .iter_mut()
                .find(|p| p.cidr == cidr && p.serves(next))
            {
                pool.next = pool.offset(next);
            }
        }
        Ok(allocator)
    }

    fn adopt(&mut self, lease: Lease) -> Result<(), Error> {
        for leased in &lease.addresses {
            if !self.used.insert(leased.address) {
                return Err(Error::Contradiction {
                    what: leased.address.to_string(),
                });
            }
        }
        match self.leases.insert(lease.key.clone(), lease) {
            Some(twice) => Err(Error::Contradiction {
                what: twice.key.to_string(),
            }),
            None => Ok(()),
        }
    }

    fn remember_freed(&mut self, freed: Freed) {
        let ours = self.pools.iter().any(|pool| pool.serves(freed.address));
        if ours && !self.used.contains(&freed.address) && !self.was_freed(freed.address) {
            self.freed.push_back(freed);
        }
    }

    fn families(&self) -> impl Iterator<Item = Family> {
        Family::ALL
            .into_iter()
            .filter(|f| self.pools.iter().any(|pool| pool.family() == *f))
    }

    fn pick(&self, family: Family, now: SystemTime) -> Result<Pick, Error> {
        let remembered = self
            .freed
            .iter()
            .filter(|f| Family::of(f.address) == family)
            .count();
        let fresh = || self.never_used(family);
        let again = || self.least_recently_freed(family, now);
        let found = if remembered < REMEMBER_FREED {
            fresh().or_else(again)
        } else {
            again().or_else(fresh)
        };
        found.ok_or_else(|| self.exhausted(family, now))
    }

    fn never_used(&self, family: Family) -> Option<Pick> {
        let pools = self
            .pools
            .iter()
            .enumerate()
            .filter(|(_, pool)| pool.family() == family);
        pools.into_iter().find_map(|(index, pool)| {
            let addresses = (pool.next..=pool.last()).map(|offset| pool.address(offset));
            let free = |address: &IpAddr| !self.used.contains(address) && !self.was_freed(*address);
            addresses.into_iter().find(free).map(|address| Pick {
                address,
                pool: index,
            })
        })
    }

    fn least_recently_freed(&self, family: Family, now: SystemTime) -> Option<Pick> {
        let oldest = self
            .freed
            .iter()
            .find(|f| Family::of(f.address) == family && self.wait(f, now).is_zero())?;
        let pool = self
            .pools
            .iter()
            .position(|pool| pool.serves(oldest.address))?;
        Some(Pick {
            address: oldest.address,
            pool,
        })
    }

    fn take(&mut self, pick: Pick) -> LeasedAddress {
        let Pick { address, pool } = pick;
        self.used.insert(address);
        self.freed.retain(|freed| freed.address != address);
        let pool = &mut self.pools[pool];
        let offset = pool.offset(address);
        if offset >= pool.next {
            pool.next = offset + 1;
        }
        LeasedAddress {
            address,
            gateway: pool.gateway(),
        }
    }

    /// How long until a freed address can be had. A clock that went backwards must not lock it for years: what was freed
    /// "in the future" can be had at once.
    fn wait(&self, freed: &Freed, now: SystemTime) -> Duration {
        let now = millis(now);
        let since = Duration::from_millis(now.saturating_sub(freed.at_ms));
        if freed.at_ms > now {
            Duration::ZERO
        } else {
            self.reuse_delay.saturating_sub(since)
        }
    }

    fn was_freed(&self, address: IpAddr) -> bool {
        self.freed.iter().any(|freed| freed.address == address)
    }

    fn exhausted(&self, family: Family, now: SystemTime) -> Error {
        let pools: Vec<_> = self
            .pools
            .iter()
            .filter(|pool| pool.family() == family)
            .collect();
        let cooling: Vec<_> = self
            .freed
            .iter()
            .filter(|f| Family::of(f.address) == family)
            .collect();
        Error::Exhausted {
            family,
            in_use: self
                .used
                .iter()
                .filter(|a| pools.iter().any(|pool| pool.serves(**a)))
                .count(),
            capacity: pools
                .iter()
                .fold(0, |sum, pool| sum.saturating_add(pool.capacity())),
            cooling: cooling.len(),
            retry_in: cooling.iter().map(|freed| self.wait(freed, now)).min(),
        }
    }
}

fn pools(cidrs: &[IpNet]) -> Result<Vec<Pool>, Error> {
    let mut pools: Vec<Pool> = Vec::new();
    for pool in cidrs.iter().map(|cidr| Pool::new(*cidr)) {
        let overlaps =
            |other: &&Pool| other.cidr.contains(&pool.cidr) || pool.cidr.contains(&other.cidr);
        if pool.capacity() == 0 {
            return Err(Error::TooSmall { cidr: pool.cidr });
        }
        if let Some(other) = pools.iter().find(overlaps) {
            return Err(Error::Overlap {
                first: other.cidr,
                second: pool.cidr,
            });
        }
        pools.push(pool);
    }
    if pools.is_empty() {
        Err(Error::NoCidr)
    } else {
        Ok(pools)
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::envelope;

    const DELAY: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn key(n: usize) -> Key {
        Key::new(format!("container{n}"), "eth0")
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn allocator(cidrs: &[&str]) -> Allocator {
        Allocator::new(&nets(cidrs), DELAY).unwrap()
    }

    fn allocate(allocator: &mut Allocator, n: usize, second: u64) -> String {
        let lease = allocator
            .allocate(&key(n), Owner::default(), at(second))
            .unwrap();
        lease
            .addresses
            .iter()
            .map(|a| a.address.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn pods_begin_after_the_gateway_and_keep_their_address() {
        let mut a = allocator(&["10.244.1.0/24"]);
        assert_eq!(allocate(&mut a, 0, 0), "10.244.1.2");
        assert_eq!(allocate(&mut a, 1, 0), "10.244.1.3");
        assert_eq!(allocate(&mut a, 0, 5), "10.244.1.2");
        let lease = a.get(&key(0)).unwrap();
        assert_eq!(lease.addresses[0].gateway.to_string(), "10.244.1.1");
        assert_eq!(lease.addresses[0].host_net().to_string(), "10.244.1.2/32");
        assert_eq!(a.leases().len(), 2);
    }

    #[test]
    fn dual_stack_gives_one_of_each_family_whatever_the_order() {
        let mut a = allocator(&["fd00:1::/64", "10.244.1.0/24"]);
        assert_eq!(allocate(&mut a, 0, 0), "10.244.1.2 fd00:1::2");
    }

    #[test]
    fn one_exhausted_family_takes_nothing_of_the_other() {
        let mut a = allocator(&["10.0.0.0/30", "fd00:1::/64"]);
        assert_eq!(allocate(&mut a, 0, 0), "10.0.0.2 fd00:1::2");
        assert!(a.allocate(&key(1), Owner::default(), at(0)).is_err());
        a.release(&key(0), at(0));
        assert_eq!(allocate(&mut a, 1, 60), "10.0.0.2 fd00:1::3");
    }

    #[test]
    fn several_cidrs_are_used_in_order() {
        let mut a = allocator(&["10.0.0.0/30", "10.0.1.0/30"]);
        assert_eq!(allocate(&mut a, 0, 0), "10.0.0.2");
        assert_eq!(allocate(&mut a, 1, 0), "10.0.1.2");
        assert_eq!(
            a.get(&key(1)).unwrap().addresses[0].gateway.to_string(),
            "10.0.1.1"
        );
    }

    #[test]
    fn the_least_recently_freed_comes_first_and_not_before_its_delay() {
        let mut a = allocator(&["10.0.0.0/29"]);
        let all: Vec<_> = (0..5).map(|n| allocate(&mut a, n, 0)).collect();
        a.release(&key(3), at(1));
        a.release(&key(1), at(2));
        let error = a.allocate(&key(9), Owner::default(), at(4)).unwrap_err();
        let retry_in = Some(Duration::from_secs(7));
        assert_eq!(
            error,
            Error::Exhausted {
                family: Family::V4,
                in_use: 3,
                capacity: 5,
                cooling: 2,
                retry_in
            }
        );
        assert_eq!(allocate(&mut a, 10, 12), all[3]);
        assert_eq!(allocate(&mut a, 11, 12), all[1]);
    }

    #[test]
    fn exhaustion_says_how_many_are_in_use() {
        let mut a = allocator(&["10.0.0.0/29"]);
        (0..5).for_each(|n| drop(allocate(&mut a, n, 0)));
        let text = a
            .allocate(&key(9), Owner::default(), at(0))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("no free IPv4 address: 5 of 5 in use, 0 freed too recently;"),
            "{text}"
        );
    }

    #[test]
    fn release_is_idempotent() {
        let mut a = allocator(&["10.0.0.0/29"]);
        allocate(&mut a, 0, 0);
        assert!(a.release(&key(0), at(0)).is_some());
        assert!(a.release(&key(0), at(0)).is_none());
        assert_eq!(a.freed.len(), 1);
    }

    #[test]
    fn a_clock_that_goes_backwards_locks_nothing() {
        let mut a = allocator(&["10.0.0.0/30"]);
        allocate(&mut a, 0, 1000);
        a.release(&key(0), at(1000));
        assert_eq!(allocate(&mut a, 1, 0), "10.0.0.2");
    }

    #[test]
    fn a_wide_cidr_does_not_remember_for_ever() {
        let mut a = allocator(&["fd00:1::/64"]);
        for n in 0..3 * REMEMBER_FREED {
            allocate(&mut a, n, 100 * n as u64);
            a.release(&key(n), at(100 * n as u64));
        }
        assert!(a.freed.len() <= REMEMBER_FREED);
    }

    #[test]
    fn cidrs_that_cannot_work_are_refused_by_name() {
        let refuse = |cidrs: &[&str]| Allocator::new(&nets(cidrs), DELAY).unwrap_err().to_string();
        assert!(refuse(&[]).contains("spec.podCIDRs"));
        assert!(refuse(&["10.0.0.0/31"]).contains("10.0.0.0/31 is too small"));
        assert!(
            refuse(&["10.0.0.0/8", "10.1.0.0/16"]).contains("10.0.0.0/8 and 10.1.0.0/16 overlap")
        );
    }

    #[test]
    fn leases_outlive_a_changed_cidr_and_are_not_counted() {
        let mut a = allocator(&["10.0.0.0/29"]);
        allocate(&mut a, 0, 0);
        let mut b = Allocator::restore(&nets(&["10.9.0.0/30"]), DELAY, a.state()).unwrap();
        assert_eq!(allocate(&mut b, 0, 1), "10.0.0.2");
        assert_eq!(allocate(&mut b, 1, 1), "10.9.0.2");
        assert!(matches!(
            b.allocate(&key(2), Owner::default(), at(1)),
            Err(Error::Exhausted {
                in_use: 1,
                capacity: 1,
                ..
            })
        ));
        b.release(&key(0), at(2));
        assert!(b.freed.is_empty());
    }

    #[test]
    fn an_address_leased_twice_is_refused() {
        let mut a = allocator(&["10.0.0.0/29"]);
        allocate(&mut a, 0, 0);
        let mut state = a.state();
        let mut twin = state.leases[0].clone();
        twin.key = key(1);
        state.leases.push(twin);
        let error = Allocator::restore(&nets(&["10.0.0.0/29"]), DELAY, state).unwrap_err();
        assert_eq!(
            error,
            Error::Contradiction {
                what: "10.0.0.2".into()
            }
        );
    }

    #[derive(Clone, Debug)]
    enum Op {
        Allocate(usize),
        Release(usize),
        Wait(u64),
        Reload,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0usize..12).prop_map(Op::Allocate),
            3 => (0usize..12).prop_map(Op::Release),
            1 => (0u64..12).prop_map(Op::Wait),
            1 => Just(Op::Reload),
        ]
    }

    /// What a reader of the promises would expect, kept apart from the allocator.
    #[derive(Default)]
    struct Model {
        held: BTreeMap<usize, Vec<IpAddr>>,
        freed_at: BTreeMap<IpAddr, u64>,
    }

    impl Model {
        fn allocated(&mut self, n: usize, lease: &Lease, now: u64) -> Result<(), TestCaseError> {
            let got: Vec<_> = lease.addresses.iter().map(|a| a.address).collect();
            if let Some(before) = self.held.get(&n) {
                prop_assert_eq!(before, &got, "not idempotent");
                return Ok(());
            }
            for address in &got {
                prop_assert!(
                    !self.held.values().flatten().any(|a| a == address),
                    "{} twice",
                    address
                );
                let freed = self.freed_at.remove(address);
                prop_assert!(
                    freed.is_none_or(|at| now >= at + DELAY.as_secs()),
                    "{} too early",
                    address
                );
            }
            self.held.insert(n, got);
            Ok(())
        }

        fn refused(&self, n: usize, error: &Error, now: u64) -> Result<(), TestCaseError> {
            let Error::Exhausted { in_use, .. } = error else {
                panic!("{error}")
            };
            prop_assert!(!self.held.contains_key(&n));
            prop_assert_eq!(*in_use, self.held.len());
            let cooling = self
                .freed_at
                .iter()
                .filter(|(a, at)| a.is_ipv4() && now < **at + DELAY.as_secs())
                .count();
            prop_assert_eq!(
                self.held.len() + cooling,
                7,
                "refused although something was free"
            );
            Ok(())
        }

        fn released(&mut self, n: usize, now: u64) -> bool {
            let held = self.held.remove(&n);
            self.freed_at
                .extend(held.iter().flatten().map(|address| (*address, now)));
            held.is_some()
        }
    }

    proptest! {
        /// 10.0.0.0/29 and 10.0.1.0/29 less one CIDR's worth: 5 + 2 = 7 addresses for 12 containers.
        #[test]
        fn no_address_is_held_twice(ops in prop::collection::vec(op(), 0..120)) {
            let cidrs = nets(&["10.0.0.0/29", "fd00:1::/64", "10.0.1.0/30", "10.0.2.0/30"]);
            let mut allocator = Allocator::new(&cidrs, DELAY).unwrap();
            let (mut model, mut now) = (Model::default(), 0);
            for op in ops {
                match op {
                    Op::Allocate(n) => match allocator.allocate(&key(n), Owner::default(), at(now)) {
                        Ok(lease) => model.allocated(n, &lease, now)?,
                        Err(error) => model.refused(n, &error, now)?,
                    },
                    Op::Release(n) => {
                        let had = allocator.release(&key(n), at(now)).is_some();
                        prop_assert_eq!(had, model.released(n, now));
                    }
                    Op::Wait(seconds) => now += seconds,
                    Op::Reload => {
                        let bytes = envelope::seal("test", &allocator.state());
                        let state = envelope::open("test", &bytes).unwrap();
                        allocator = Allocator::restore(&cidrs, DELAY, state).unwrap();
                    }
                }
                prop_assert_eq!(allocator.leases().len(), model.held.len());
            }
        }
    }
}
