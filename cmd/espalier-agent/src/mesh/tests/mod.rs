//! What the agent does to a kernel data plane, and in which order.

mod cpus;
mod external;
mod world;

use std::time::Instant;

use espalier_api::{Establish, Masquerade, Protocol, UdpEncapsulation};
use espalier_dataplane_core::{Direction, Encapsulation, Event, PeerId, Sa, Spi};
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

/// Somebody flushed the states while no agent ran: the policies that name them are no SAs, and the pair is not said to encrypt.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_whose_state_is_gone_is_not_adopted() {
    let mut world = two_kernels().await;
    let before = world.nodes[0].lock().route("b").protect.unwrap();
    {
        let mut state = world.nodes[0].lock();
        let remote = state.route("b").remote;
        state.sas.clear();
        state.active.clear();
        let cidr = "10.244.1.0/24".parse().unwrap();
        state.observed.paths.insert(cidr, RoutePath::Encrypted);
        state.observed.protects.insert(remote, before);
    }
    world.restart(0).await;
    world.agents[0].settle_world().await;
    let route = world.nodes[0].lock().route("b");
    assert_ne!(route.path, RoutePath::Encrypted);
    assert_eq!(route.protect.and_then(|protect| protect.spi), None);
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
async fn masquerading_is_as_the_policy_says() {
    let mut world = two_kernels().await;
    let masquerades = |world: &World| {
        let state = world.nodes[0].lock();
        state.desired.as_ref().unwrap().masquerade
    };
    assert!(masquerades(&world));
    let never = policy(|policy| policy.masquerade = Masquerade::Never);
    world.set_policy(0, never).await;
    let off = |world: &World| !masquerades(world);
    world.until("the rules are not wanted", off).await;
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
        Some(24 * 3600)
    );
    let Spi(spi) = *world.nodes[0].lock().active.values().next().unwrap();
    assert_eq!(world.nodes[0].lock().pinned(), [spi]);
}

/// What seals at both ends is all of this kind.
fn sealing(world: &World, raw: bool) -> bool {
    world.protected()
        && world.nodes.iter().all(|node| {
            let state = node.lock();
            let seals = |sa: &&Sa| {
                sa.direction == Direction::Out && state.active.values().any(|spi| *spi == sa.spi)
            };
            let mut sas = state.sas.iter().filter(seals);
            sas.all(|sa| (sa.encapsulation == Encapsulation::Raw) == raw)
        })
}

fn has_fallback(world: &World) -> bool {
    [0, 1]
        .into_iter()
        .any(|i| world.agents[i].peers[NAMES[1 - i]].has_fallback)
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_esp_is_used_where_it_passes_and_needs_no_udp() {
    let world = two_kernels().await;
    assert!(sealing(&world, true) && !has_fallback(&world));
    assert!(
        world
            .encapsulations()
            .iter()
            .all(|e| *e == Encapsulation::Raw)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_esp_that_does_not_arrive_is_not_used_and_returned_to_when_it_does() {
    let policy = policy(|_| {});
    for passes in [[false, false], [true, false], [false, true]] {
        let mut world = World::starting([Some(kernel(1)), Some(kernel(2))], &policy);
        world.passes = passes;
        world.start_all().await;
        world.until("in UDP", |world| sealing(world, false)).await;
        let problem = world.agents[0].peers["b"].way.problem().unwrap();
        assert!(problem.contains("raw ESP does not arrive"), "{problem}");
        let tried = |world: &World| -> usize {
            let counts = world.nodes.iter().map(|node| node.lock().packets.len());
            counts.sum()
        };
        let before = tried(&world);
        let again = move |world: &World| tried(world) > before || passes == [false, false];
        world.until("tried again", again).await;
        assert!(sealing(&world, false), "a trial disturbs nothing");

        world.passes = [true, true];
        world
            .until("raw again", |world| {
                sealing(world, true) && !has_fallback(world)
            })
            .await;
        assert_eq!(world.agents[0].peers["b"].way.problem(), None);
        let no_udp = |world: &World| {
            world
                .encapsulations()
                .iter()
                .all(|e| *e == Encapsulation::Raw)
        };
        world.until("no UDP left", no_udp).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_forbids_udp_or_wants_it_is_kept_to() {
    let pairs = || {
        [
            [kernel(1), kernel(2)],
            [kernel(1), userspace(2)],
            [userspace(1), kernel(2)],
            [userspace(1), userspace(2)],
        ]
    };
    for (wanted, raw) in [
        (UdpEncapsulation::Always, false),
        (UdpEncapsulation::Never, true),
    ] {
        for hellos in pairs() {
            let policy = policy(|policy| policy.protection.udp_encapsulation = wanted);
            let mut world = World::starting(hellos.map(Some), &policy);
            world.passes = [false, false]; // and nobody asks
            world.start_all().await;
            world.until("protected", |world| sealing(world, raw)).await;
            assert!(!has_fallback(&world));
            let same = |e: &Encapsulation| (*e == Encapsulation::Raw) == raw;
            assert!(world.encapsulations().iter().all(same));
        }
    }
}

/// Both nodes take the policy one after the other, and their old SAs go on until a rekey.
#[tokio::test(flavor = "multi_thread")]
async fn a_rekey_leaves_udp_and_returns_to_it_as_the_policy_says() {
    for hellos in [[kernel(1), userspace(2)], [userspace(1), userspace(2)]] {
        let with = |wanted| policy(|policy| policy.protection.udp_encapsulation = wanted);
        let auto = with(UdpEncapsulation::Auto);
        let mut world = World::new(hellos.map(Some), &auto).await;
        world.until("in UDP", |world| sealing(world, false)).await;
        for (wanted, raw) in [
            (UdpEncapsulation::Never, true),
            (UdpEncapsulation::Auto, false),
        ] {
            for index in [0, 1] {
                world.set_policy(index, with(wanted)).await;
            }
            world.run().await;
            assert!(world.protected(), "the old SAs go on");
            let endpoint = &mut world.agents[0].parts.endpoint;
            endpoint.rekey_child(&Identity("b".into()), Instant::now());
            world.until("as wanted", |world| sealing(world, raw)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_userspace_plane_that_cannot_send_raw_refuses_what_needs_it() {
    let never = policy(|policy| policy.protection.udp_encapsulation = UdpEncapsulation::Never);
    let mut lacking = userspace(2);
    lacking.can.raw_untried = false;
    let mut world = World::new([Some(userspace(1)), Some(lacking)], &never).await;
    world
        .until("said", |world| {
            let problem = &world.agents[0].peers["b"].problem;
            problem
                .as_deref()
                .is_some_and(|p| p.contains("udpEncapsulation"))
        })
        .await;
    assert!(world.encapsulations().is_empty());
    let why = world.agents[1].not_ready().join("; ");
    assert!(why.contains("CAP_NET_RAW"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_restarts_goes_on_raw_without_a_trial() {
    let mut world = two_kernels().await;
    {
        let mut state = world.nodes[0].lock();
        let route = state.route("b");
        state
            .observed
            .paths
            .insert("10.244.1.0/24".parse().unwrap(), RoutePath::Encrypted);
        state
            .observed
            .protects
            .insert(route.remote, route.protect.unwrap());
    }
    world.restart(0).await;
    assert!(world.agents[0].peers["b"].way.uses_raw());
    let old = world.nodes[0].lock().route("b").protect;
    let replaced = move |world: &World| {
        sealing(world, true) && world.nodes[0].lock().route("b").protect != old
    };
    world.until("replaced", replaced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_demand_pairs_are_closed_until_a_packet_asks_and_given_up_when_idle() {
    let policy = policy(|policy| policy.protection.establish = Establish::OnDemand);
    let mut world = World::new([Some(kernel(1)), Some(kernel(2))], &policy).await;
    world.run().await;
    for index in [0, 1] {
        assert_eq!(ike(&world, index), IkeStatus::None);
        let route = world.nodes[index].lock().route(NAMES[1 - index]);
        let template = Protect {
            reqid: 7,
            spi: None,
            ah: false,
        };
        assert_eq!(
            (route.path, route.protect),
            (RoutePath::Encrypted, Some(template))
        );
    }
    let acquire = PlaneFact::Event(Event::Acquire {
        peer: PeerId("a".to_owned()),
    });
    world.agents[1].take_plane_fact(acquire).await;
    world.until("made", |world| sealing(world, true)).await;
    // Nobody speaks.
    let later = std::time::Instant::now() + super::demand::IDLE;
    world.agents[0].give_up_idle(later);
    world
        .until("given up", |world| {
            (0..2).all(|i| ike(world, i) == IkeStatus::None)
        })
        .await;
    let idle = |world: &World| {
        (0..2).all(|i| {
            world.nodes[i]
                .lock()
                .route(NAMES[1 - i])
                .protect
                .is_some_and(|p| p.spi.is_none())
        })
    };
    world.until("closed again", idle).await;
    assert!(world.nodes.iter().all(|node| node.lock().sas.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sa_that_is_gone_from_the_kernel_is_replaced_at_once() {
    let mut world = World::new([Some(kernel(1)), Some(kernel(2))], &policy(|_| ())).await;
    world.until("made", |world| sealing(world, true)).await;
    let old = world.agents[0].peers["b"].sas.clone();
    let gone = PlaneFact::Event(Event::Expired {
        peer: PeerId("b".to_owned()),
        direction: Direction::Out,
        spi: old[0].spi_out,
    });
    world.agents[0].take_plane_fact(gone).await;
    let replaced = |world: &World| {
        (0..2).all(|i| {
            let active = world.agents[i].peers[NAMES[1 - i]].active;
            active.is_some_and(|spi| spi != old[0].spi_out && spi != old[0].spi_in)
        })
    };
    world.until("replaced", replaced).await;
}
