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
    assert!(refuse(&["10.0.0.0/8", "10.1.0.0/16"]).contains("10.0.0.0/8 and 10.1.0.0/16 overlap"));
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

    /// Pod CIDRs come and go while pods live: each keeps its address, and no other gets it.
    #[test]
    fn cidrs_come_and_go_under_living_pods(
        ops in prop::collection::vec((op(), prop::sample::subsequence(vec![0usize, 1, 2, 3], 1..4)), 0..60)
    ) {
        let all = nets(&["10.0.0.0/29", "fd00:1::/64", "10.0.1.0/30", "10.0.2.0/30"]);
        let mut cidrs = all.clone();
        let mut allocator = Allocator::new(&cidrs, DELAY).unwrap();
        let mut held: BTreeMap<usize, Lease> = BTreeMap::new();
        let mut now = 0;
        for (op, subset) in ops {
            match op {
                Op::Allocate(n) => {
                    if let Ok(lease) = allocator.allocate(&key(n), Owner::default(), at(now)) {
                        let known = held.insert(n, lease.clone());
                        if let Some(known) = known {
                            prop_assert_eq!(known, lease);
                        } else {
                            let inside = |a: &LeasedAddress| cidrs.iter().any(|c| c.contains(&a.address));
                            prop_assert!(lease.addresses.iter().all(inside));
                        }
                    }
                }
                Op::Release(n) => {
                    prop_assert_eq!(allocator.release(&key(n), at(now)), held.remove(&n));
                }
                Op::Wait(seconds) => now += seconds,
                Op::Reload => {
                    cidrs = subset.into_iter().map(|n| all[n]).collect();
                    allocator = Allocator::restore(&cidrs, DELAY, allocator.state()).unwrap();
                }
            }
            let addresses: Vec<_> = held.values().flat_map(|l| &l.addresses).map(|a| a.address).collect();
            let distinct: HashSet<_> = addresses.iter().collect();
            prop_assert_eq!(distinct.len(), addresses.len(), "{:?}", addresses);
            prop_assert_eq!(held.len(), allocator.leases().len());
            prop_assert!(held.iter().all(|(n, lease)| allocator.get(&key(*n)) == Some(lease)));
        }
    }
}
