use std::time::Duration;

use espalier_pki::{Authority, Validity};

use super::*;

fn anchor() -> Anchor {
    let validity = Validity::starting(Duration::from_secs(1_800_000_000), 100);
    Authority::make(&validity).unwrap().anchor().clone()
}

/// Controller, ConfigMap and nodes, with every step done as the real ones do it.
struct World {
    authorities: Authorities,
    told: Option<Trust>,
    nodes: Vec<Report>,
    /// Names of nodes that no longer say anything.
    silent: Vec<String>,
    made: Anchor,
}

impl World {
    fn new(nodes: &[&str]) -> Self {
        let report = |node: &&str| Report {
            node: (*node).to_owned(),
            ..Report::default()
        };
        let authorities = Authorities {
            signing: anchor(),
            next: None,
            previous: Vec::new(),
            replaced: None,
            asked: false,
        };
        let mut world = Self {
            authorities,
            told: None,
            nodes: nodes.iter().map(report).collect(),
            silent: Vec::new(),
            made: anchor(),
        };
        world.run();
        world.agents();
        world
    }

    fn step(&self) -> Step {
        self.authorities.step(self.told.as_ref(), &self.nodes)
    }

    /// One step of the controller; false when it waits.
    fn act(&mut self) -> bool {
        match self.step() {
            Step::Rest | Step::Wait(..) => return false,
            Step::Tell(trust) => self.told = Some(trust),
            Step::Begin => {
                self.authorities.next = Some(self.made.clone());
                self.authorities.asked = false;
            }
            Step::Switch => {
                self.authorities.replaced = None;
                if let Some(next) = self.authorities.next.take() {
                    let old = std::mem::replace(&mut self.authorities.signing, next);
                    self.authorities.previous.insert(0, old);
                }
            }
            Step::Finish => self.authorities.previous.clear(),
        }
        self.check();
        true
    }

    fn run(&mut self) {
        for _ in 0..20 {
            if !self.act() {
                return;
            }
        }
        panic!("the controller never rests: {:?}", self.step());
    }

    /// Every agent that is not silent takes the bundle, and a certificate of the announced signer when it trusts it.
    fn agents(&mut self) {
        let told = self.told.clone().unwrap();
        for node in &mut self.nodes {
            if !self.silent.contains(&node.node) {
                node.trust = Some(told.bundle.hash());
                node.issuer = Some(told.signer.clone());
            }
        }
        self.check();
    }

    /// The invariant: whatever certificate a node has, its CA is in the bundle that is told; and a CA signs only after all nodes
    /// had it in their bundles.
    fn check(&self) {
        let told = self.told.as_ref().unwrap();
        for node in &self.nodes {
            if let Some(issuer) = &node.issuer {
                assert!(
                    told.bundle.contains(issuer),
                    "{}'s CA is not trusted",
                    node.node
                );
            }
        }
        assert!(told.bundle.contains(&told.signer));
    }
}

#[test]
fn without_a_wish_nothing_changes() {
    let mut world = World::new(&["a", "b"]);
    assert_eq!(world.step(), Step::Rest);
    assert!(!world.act());
}

#[test]
fn a_rotation_goes_through_all_steps_in_order() {
    let mut world = World::new(&["a", "b"]);
    let (old, new) = (
        world.authorities.signing.fingerprint(),
        world.made.fingerprint(),
    );
    world.authorities.asked = true;
    assert_eq!(world.step(), Step::Begin);
    world.run();
    let told = world.told.clone().unwrap();
    assert_eq!(told.bundle.anchors()[0].fingerprint(), new, "newest first");
    assert_eq!((told.bundle.anchors().len(), &told.signer), (2, &old));
    let both = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(world.step(), Step::Wait(Stage::Distribute, both.clone()));
    world.agents();
    assert_eq!(world.step(), Step::Switch);
    world.run();
    assert_eq!(world.told.as_ref().unwrap().signer, new);
    assert_eq!(world.step(), Step::Wait(Stage::Renew, both));
    world.agents();
    world.run();
    assert_eq!(world.step(), Step::Rest);
    let told = world.told.clone().unwrap();
    assert_eq!((told.bundle.anchors().len(), told.signer), (1, new));
}

#[test]
fn an_interruption_after_any_step_loses_nothing() {
    // The controller has no memory of its own: acting once and being replaced is the same as acting on.
    for interrupted_after in 0..12 {
        let mut world = World::new(&["a", "b"]);
        world.authorities.asked = true;
        for round in 0..12 {
            if round == interrupted_after {
                // The ConfigMap is lost as well: it is only a copy.
                world.told = Some(world.authorities.trust());
            }
            world.act();
            world.agents();
        }
        assert_eq!(world.step(), Step::Rest, "{interrupted_after}");
        assert_eq!(world.authorities.signing, world.made);
    }
}

#[test]
fn a_node_that_never_reports_holds_the_rotation_up_until_it_is_gone() {
    for stage in [Stage::Distribute, Stage::Renew] {
        let mut world = World::new(&["a", "b"]);
        world.authorities.asked = true;
        world.run();
        if stage == Stage::Renew {
            world.agents();
            world.run();
        }
        world.silent = vec!["b".into()];
        for _ in 0..5 {
            world.agents();
            world.run();
        }
        assert_eq!(world.step(), Step::Wait(stage, vec!["b".into()]));
        world.nodes.retain(|node| node.node != "b");
        for _ in 0..3 {
            world.run();
            world.agents();
        }
        assert_eq!(world.step(), Step::Rest);
    }
}

#[test]
fn a_node_without_a_certificate_is_waited_for() {
    let mut world = World::new(&["a"]);
    world.nodes.push(Report {
        node: "new".into(),
        ..Report::default()
    });
    world.authorities.asked = true;
    world.run();
    assert!(matches!(world.step(), Step::Wait(Stage::Distribute, nodes) if nodes.len() == 2));
}

#[test]
fn an_empty_mesh_waits_for_nobody() {
    let mut world = World::new(&[]);
    world.authorities.asked = true;
    world.run();
    assert_eq!(
        (world.step(), world.authorities.signing == world.made),
        (Step::Rest, true)
    );
}

#[test]
fn a_wish_during_a_rotation_waits_for_its_end() {
    let mut world = World::new(&["a"]);
    world.authorities.asked = true;
    world.run();
    world.authorities.asked = true;
    world.agents();
    world.run();
    assert!(matches!(world.step(), Step::Wait(Stage::Renew, _)));
    assert!(world.authorities.next.is_none());
    world.agents();
    // Finished, told, and begun anew.
    world.made = anchor();
    world.run();
    assert_eq!(world.authorities.next, Some(world.made.clone()));
}

#[test]
fn a_key_replaced_by_others_is_distributed_before_agents_renew() {
    let mut world = World::new(&["a", "b"]);
    let old = world.authorities.signing.clone();
    world.authorities.signing = world.made.clone();
    world.authorities.previous = vec![old.clone()];
    world.authorities.replaced = Some(old.fingerprint());
    world.run();
    let told = world.told.clone().unwrap();
    assert_eq!(
        (told.bundle.anchors().len(), told.signer),
        (2, old.fingerprint())
    );
    world.agents();
    world.run();
    assert_eq!(
        world.told.as_ref().unwrap().signer,
        world.made.fingerprint()
    );
    world.agents();
    world.run();
    assert_eq!(world.told.as_ref().unwrap().bundle.anchors().len(), 1);
}

#[test]
fn a_bundle_that_was_changed_by_hand_is_put_right() {
    let mut world = World::new(&["a"]);
    let good = world.told.clone();
    world.told.as_mut().unwrap().bundle = Bundle::new([anchor()]);
    assert!(matches!(world.step(), Step::Tell(_)));
    world.told = None;
    world.run();
    assert_eq!(world.told, good);
}
