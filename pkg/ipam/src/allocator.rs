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

    /// Would [`Self::allocate`] find addresses for somebody new?
    ///
    /// # Errors
    /// [`Error::Exhausted`].
    pub fn room(&self, now: SystemTime) -> Result<(), Error> {
        self.families()
            .try_for_each(|f| self.pick(f, now).map(drop))
    }

    /// Undoes an [`Self::allocate`] that nobody was told of: the addresses can be had at once.
    pub(crate) fn take_back(&mut self, key: &Key) {
        let lease = self.leases.remove(key);
        for LeasedAddress { address, .. } in lease.into_iter().flat_map(|lease| lease.addresses) {
            self.used.remove(&address);
            self.remember_freed(Freed { address, at_ms: 0 });
        }
    }

    /// A lease that is there already, by what was said earlier: its addresses are free no more.
    ///
    /// # Errors
    /// [`Error::Contradiction`].
    pub(crate) fn put_back(&mut self, lease: Lease) -> Result<(), Error> {
        for LeasedAddress { address, .. } in &lease.addresses {
            self.freed.retain(|freed| freed.address != *address);
            self.pass(*address);
        }
        self.adopt(lease)
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
        self.pass(address);
        LeasedAddress {
            address,
            gateway: self.pools[pool].gateway(),
        }
    }

    /// The address is none that was never used.
    fn pass(&mut self, address: IpAddr) {
        let of = |pool: &&mut Pool| pool.serves(address);
        if let Some(pool) = self.pools.iter_mut().find(of) {
            pool.next = pool.next.max(pool.offset(address).saturating_add(1));
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
mod tests;
