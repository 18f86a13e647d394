//! What the agent does to a kernel data plane, and in which order.

mod world;

use espalier_api::Protocol;
use espalier_dataplane_core::{Direction, Encapsulation, Spi};
use espalier_ike::{Identity, IkeStatus};
use espalier_overlay::{Engine, Protect, RoutePath};

use super::PlaneFact;
use world::{NAMES, World, kernel, policy, userspace};

async fn two_kernels() -> World {
    let mut world = World::new([Some(kernel(1)), Some(kernel(2))], &policy(|_| {})).await;
    world.until("both are protected", World::protected).await;
    world
}

fn ike(world: &World, index: usize) -> IkeStatus {
    let peer = Identity::from(NAMES[1 - index]);
    world.agents[index].parts.endpoint.status(&peer)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernels_policies_pin_the_sa_that_the_peer_opens() {
    let world = two_kernels().await;
    for (index, node) in world.nodes.iter().enumerate() {
        let state = node.lock();
        let peer = NAMES[1 - index];
        assert_eq!(state.desired.as_ref().unwrap().engine, Engine::Kernel);
        let protect = state.route(peer).protect.unwrap();
        let active = state.active.values().next().unwrap();
        assert_eq!(
            (protect.reqid, protect.spi, protect.ah),
            (7, Some(active.0), false)
        );
        assert!(state.sas.iter().all(|sa| sa.hard_seconds == 24 * 3600));
        assert!(state.sas.iter().all(|sa| sa.replay_window == 4096));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn states_are_removed_when_no_policy_names_them() {
    let mut world = two_kernels().await;
    let old = world.nodes[0]
        .lock()
        .active
        .values()
        .next()
        .copied()
        .unwrap();
    let peer = Identity::from("b");
    world.agents[0]
        .parts
        .endpoint
        .rekey_child(&peer, std::time::Instant::now());
    let other = move |world: &World| {
        let state = world.nodes[0].lock();
        state.active.values().all(|spi| *spi != old) && state.pinned() != [old.0]
    };
    world.until("the new SA is in use", other).await;
    // The data plane of the test refuses to remove what a policy names.
    let gone = move |world: &World| !world.nodes[0].lock().has(Direction::Out, old.0);
    world.until("the old SA is gone", gone).await;
    assert!(world.protected());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_kernels_process_is_away_everything_carries_on() {
    let mut world = two_kernels().await;
    let before = world.nodes[0].lock().desired.clone().unwrap();
    let sas = world.nodes[0].lock().sas.len();
    world.nodes[0].lock().away = true;
    world.agents[0]
        .take_plane_fact(PlaneFact::Down("closed".to_owned()))
        .await;
    world.run().await;
    assert_eq!(world.nodes[0].lock().desired.as_ref(), Some(&before));
    assert_eq!(world.nodes[0].lock().sas.len(), sas);
    assert_eq!(ike(&world, 0), IkeStatus::Established);
    let problem = world.agents[0].uplink.problem().unwrap();
    assert!(
        problem.contains("is espalier-dataplane running?"),
        "{problem}"
    );

    world.nodes[0].lock().away = false;
    world.agents[0]
        .take_plane_fact(PlaneFact::Up(kernel(1)))
        .await;
    world.run().await;
    assert_eq!(world.nodes[0].lock().desired.as_ref(), Some(&before));
    assert_eq!(world.agents[0].uplink.problem(), None);

    // A reboot: the kernel's states are gone, and all is made anew.
    let old = before.peers["b"].protect;
    world.nodes[0].lock().sas.clear();
    world.nodes[0].lock().active.clear();
    world.agents[0]
        .take_plane_fact(PlaneFact::Up(kernel(9)))
        .await;
    let anew =
        move |world: &World| world.protected() && world.nodes[0].lock().route("b").protect != old;
    world.until("protected anew", anew).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sas_that_come_while_the_process_goes_away_wait_for_it() {
    let mut world = two_kernels().await;
    let sas = world.nodes[1].lock().sas.len();
    world.nodes[1].lock().away = true; // and nobody has noticed yet
    let peer = Identity::from("b");
    let now = std::time::Instant::now();
    world.agents[0].parts.endpoint.rekey_child(&peer, now);
    world.run().await;
    assert_eq!(world.agents[1].peers["a"].waiting.len(), 1);
    assert!(world.agents[1].uplink.is_kernel_away());
    assert_eq!(ike(&world, 1), IkeStatus::Established);

    world.nodes[1].lock().away = false;
    world.agents[1]
        .take_plane_fact(PlaneFact::Up(kernel(2)))
        .await;
    let installed = move |world: &World| world.nodes[1].lock().sas.len() == sas + 2;
    world.until("it is installed", installed).await;
    let used = |world: &World| world.agents[0].peers["b"].sas.len() == 2;
    world.until("the answer is repeated and used", used).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_adopts_kernel_states_even_without_their_process() {
    let mut world = two_kernels().await;
    let before = world.nodes[0].lock().route("b").protect.unwrap();
    let remote = world.nodes[0].lock().route("b").remote;
    {
        let mut state = world.nodes[0].lock();
        state.away = true;
        state.hello = None;
        let cidr = "10.244.1.0/24".parse().unwrap();
        state.observed.paths.insert(cidr, RoutePath::Clear);
        state.observed.protects.insert(remote, before);
    }
    world.restart(0).await;
    world.run().await;
    {
        let state = world.nodes[0].lock();
        assert_eq!(state.desired.as_ref().unwrap().engine, Engine::Kernel);
        assert_eq!(state.route("b").protect, Some(before));
        assert_eq!(state.route("b").path, RoutePath::Encrypted);
    }
    // It comes back: what was adopted is replaced, and only then removed.
    {
        let mut state = world.nodes[0].lock();
        state.away = false;
        state.hello = Some(kernel(1));
    }
    world.agents[0]
        .take_plane_fact(PlaneFact::Up(kernel(1)))
        .await;
    let spi = before.spi.unwrap();
    let replaced = move |world: &World| {
        let state = world.nodes[0].lock();
        state
            .route("b")
            .protect
            .is_some_and(|p: Protect| p.spi != Some(spi))
            && !state.has(Direction::Out, spi)
    };
    world.until("replaced", replaced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ah_is_installed_and_named_as_such() {
    let ah = policy(|policy| policy.protection.protocol = Protocol::Ah);
    let mut world = World::new([Some(kernel(1)), Some(kernel(2))], &ah).await;
    world.until("both are protected", World::protected).await;
    assert!(world.nodes[0].lock().route("b").protect.unwrap().ah);
    assert!(
        world
            .encapsulations()
            .iter()
            .all(|e| *e == Encapsulation::Raw)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_starts_pairs_anew() {
    let mut world = two_kernels().await;
    let ah = policy(|policy| policy.protection.protocol = Protocol::Ah);
    world.set_policy(0, ah.clone()).await;
    world.set_policy(1, ah).await;
    let is_ah = |world: &World| {
        world.protected()
            && world.nodes.iter().all(|node| {
                node.lock()
                    .desired
                    .as_ref()
                    .unwrap()
                    .peers
                    .values()
                    .all(|peer| peer.protect.is_some_and(|p| p.ah))
            })
    };
    world.until("AH", is_ah).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_and_userspace_make_a_pair_in_udp() {
    let mut world = World::new([Some(kernel(1)), Some(userspace(2))], &policy(|_| {})).await;
    world
        .until("SAs", |world| {
            world
                .nodes
                .iter()
                .all(|node| !node.lock().active.is_empty())
        })
        .await;
    let is_udp = |e: &Encapsulation| {
        matches!(
            e,
            Encapsulation::Udp {
                local_port: 4500,
                ..
            }
        )
    };
    assert!(world.encapsulations().iter().all(is_udp));
    assert_eq!(
        world.nodes[1]
            .lock()
            .sas
            .iter()
            .map(|sa| sa.hard_seconds)
            .max(),
        Some(0)
    );
    let Spi(spi) = *world.nodes[0].lock().active.values().next().unwrap();
    assert_eq!(world.nodes[0].lock().pinned(), [spi]);
}
