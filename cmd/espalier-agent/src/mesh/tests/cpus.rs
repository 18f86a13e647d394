//! SAs of single CPUs (RFC 9611). The data plane of the tests refuses a state that the kernel would take too soon, and the removal of
//! one that it may have taken; and after each step nobody seals with what the other end cannot open.

use std::collections::BTreeSet;
use std::time::Instant;

use espalier_api::{PerCpu, UdpEncapsulation};
use espalier_dataplane_core::{Direction, Hello};
use espalier_overlay::RoutePath;

use super::super::PlaneFact;
use super::world::{NAMES, World, kernel, policy};

fn with_cpus(instance: u64, cpus: u32) -> Option<Hello> {
    let mut hello = kernel(instance);
    hello.can.cpus = cpus;
    Some(hello)
}

async fn pair(cpus: [u32; 2]) -> World {
    let hellos = [with_cpus(1, cpus[0]), with_cpus(2, cpus[1])];
    World::new(hellos, &policy(|_| {})).await
}

/// Outbound SAs at each end: the newest of each CPU, and of none, and nothing else.
fn by_cpu(world: &World, cpus: usize) -> bool {
    world.nodes.iter().all(|node| {
        let state = node.lock();
        let outbound = state.sas.iter();
        let outbound = outbound.filter(|sa| sa.direction == Direction::Out);
        outbound.count() == cpus + 1 && state.chosen().len() == cpus + 1
    })
}

/// SPIs of all SAs of a node, of both directions.
fn spis(world: &World, index: usize) -> BTreeSet<u32> {
    let state = world.nodes[index].lock();
    state.sas.iter().map(|sa| sa.spi.0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cpu_that_both_ends_have_seals_with_an_sa_of_its_own() {
    for (cpus, agreed) in [([2, 2], 2), ([2, 4], 2), ([64, 3], 3)] {
        let mut world = pair(cpus).await;
        world.until("by CPU", |world| by_cpu(world, agreed)).await;
        for (index, node) in world.nodes.iter().enumerate() {
            let state = node.lock();
            let of = |direction| {
                let sas = state.sas.iter();
                let sas = sas.filter(|sa| sa.direction == direction);
                sas.map(|sa| sa.cpu).collect::<Vec<_>>()
            };
            // Where the other end has fewer, it is by chance which CPUs have one.
            let found: BTreeSet<_> = of(Direction::Out).into_iter().collect();
            assert!(found.contains(&None) && found.len() == agreed + 1);
            let own = state.hello.as_ref().unwrap().can.cpus;
            assert!(found.iter().flatten().all(|cpu| *cpu < own));
            assert_eq!(of(Direction::In), vec![None; agreed + 1]);
            let peer = &world.agents[index].peers[NAMES[1 - index]];
            assert_eq!(peer.cpus() as usize, agreed);
            // Whatever is pinned, now or later, is for every CPU.
            let active = state.find(Direction::Out, peer.active.unwrap().0);
            assert_eq!(active.cpu, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_cpus_at_one_end_all_is_as_ever() {
    let never = policy(|policy| policy.protection.per_cpu = PerCpu::Never);
    let mut worlds = Vec::new();
    for cpus in [[0, 2], [2, 0], [1, 2]] {
        worlds.push(pair(cpus).await);
    }
    let hellos = [with_cpus(1, 2), with_cpus(2, 2)];
    worlds.push(World::new(hellos, &never).await);
    for mut world in worlds {
        world.until("protected", World::protected).await;
        world.run().await;
        assert!(world.nodes.iter().all(|node| node.lock().sas.len() == 2));
        assert!(world.protected());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_them_is_rekeyed() {
    let mut world = pair([2, 2]).await;
    world.until("by CPU", |world| by_cpu(world, 2)).await;
    let old = [0, 1].map(|index| spis(&world, index));
    let pairs = world.agents[0].peers["b"].sas.clone();
    for (index, sa) in pairs.iter().enumerate() {
        let endpoint = &mut world.agents[0].parts.endpoint;
        endpoint.rekey_child_sa(sa.spi_in.0, Instant::now());
        let count = 3 + index;
        let there = move |world: &World| world.agents[0].peers["b"].sas.len() >= count.min(4);
        world.until("a new one", there).await;
    }
    let replaced = |world: &World| {
        let gone = |index: usize| spis(world, index).is_disjoint(&old[index]);
        gone(0) && gone(1) && by_cpu(world, 2)
    };
    world.until("all are replaced", replaced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_adopts_them_and_waits_for_the_peers() {
    for index in [0, 1] {
        let (own, peer) = (NAMES[index], NAMES[1 - index]);
        let mut world = pair([2, 2]).await;
        world.until("by CPU", |world| by_cpu(world, 2)).await;
        let old = spis(&world, index);
        {
            let mut state = world.nodes[index].lock();
            let route = state.route(peer);
            let cidr = route.pod_cidrs[0];
            state.observed.paths.insert(cidr, RoutePath::Encrypted);
            let protect = route.protect.unwrap();
            assert_eq!(protect.spi, None);
            state.observed.protects.insert(route.remote, protect);
        }
        world.restart(index).await;
        world.agents[index].settle_world().await;
        let route = world.nodes[index].lock().route(peer);
        assert_eq!(route.path, RoutePath::Encrypted, "{own} goes on");
        let replaced = |world: &World| spis(world, index).is_disjoint(&old) && by_cpu(world, 2);
        world.until("replaced", replaced).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_restarts_while_the_process_is_away_leaves_the_choice_to_the_kernel() {
    let mut world = pair([2, 2]).await;
    world.until("by CPU", |world| by_cpu(world, 2)).await;
    let hello = {
        let mut state = world.nodes[0].lock();
        state.away = true;
        let route = state.route("b");
        let cidr = route.pod_cidrs[0];
        state.observed.paths.insert(cidr, RoutePath::Encrypted);
        let protect = route.protect.unwrap();
        state.observed.protects.insert(route.remote, protect);
        state.hello.take().unwrap()
    };
    world.restart(0).await;
    world.agents[0].settle_world().await;
    let route = world.nodes[0].lock().route("b");
    let spi = route.protect.and_then(|protect| protect.spi);
    assert_eq!((route.path, spi), (RoutePath::Encrypted, None));

    {
        let mut state = world.nodes[0].lock();
        (state.away, state.hello) = (false, Some(hello.clone()));
    }
    world.agents[0].take_plane_fact(PlaneFact::Up(hello)).await;
    world.until("by CPU again", |world| by_cpu(world, 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_raw_only_while_raw_passes() {
    let policy = policy(|_| {});
    let mut world = World::starting([with_cpus(1, 2), with_cpus(2, 2)], &policy);
    world.passes = [false, false];
    world.start_all().await;
    world.until("in UDP", World::protected).await;
    world.passes = [true, true];
    world.until("by CPU", |world| by_cpu(world, 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_in_udp_have_them_too() {
    let always = policy(|policy| policy.protection.udp_encapsulation = UdpEncapsulation::Always);
    let hellos = [with_cpus(1, 2), with_cpus(2, 2)];
    let mut world = World::new(hellos, &always).await;
    world.until("by CPU", |world| by_cpu(world, 2)).await;
}

/// Both ends ask at the same time, so that one announcement tells of SAs of several exchanges.
#[tokio::test(flavor = "multi_thread")]
async fn rekeys_of_both_ends_at_once_leave_nothing_behind() {
    let mut world = pair([3, 3]).await;
    world.until("by CPU", |world| by_cpu(world, 3)).await;
    let old = [0, 1].map(|index| spis(&world, index));
    for index in [0, 1] {
        let sas = world.agents[index].peers[NAMES[1 - index]].sas.clone();
        for (at, sa) in sas.iter().enumerate() {
            if at % 2 == index {
                let endpoint = &mut world.agents[index].parts.endpoint;
                endpoint.rekey_child_sa(sa.spi_in.0, Instant::now());
            }
        }
    }
    let replaced = |world: &World| {
        let replaced = |index: usize| old[index].difference(&spis(world, index)).count() >= 4;
        replaced(0) && replaced(1) && by_cpu(world, 3)
    };
    world.until("replaced", replaced).await;
}
