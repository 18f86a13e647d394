//! Post-quantum preshared keys (RFC 8784): who uses them with whom, and attempts to talk two ends out of it.

use std::time::Duration;

use espalier_ike::wire::{self, Message, NotifyType, Payload};
use espalier_ike::{
    ChildKeys, ConfigError, Connect, Event, PeerAuth, PeerConfig, PostQuantum, Ppk,
};
use espalier_secret::SecretBytes;

use crate::sim::pki::Ca;
use crate::sim::{ANSWER, ASK, AUTH, INIT, Net, Packet, peer_config, psk};

const LONG: Duration = Duration::from_secs(300);
const A_WHILE: Duration = Duration::from_secs(20);

fn ppk(id: &str, key: u8, required: bool) -> Option<Ppk> {
    Some(Ppk {
        id: id.into(),
        key: SecretBytes::copy_from(&[key; 32]),
        required,
    })
}

fn set(net: &mut Net, own: usize, auth: &PeerAuth, ppk: Option<Ppk>) {
    let config = PeerConfig {
        ppk,
        ..peer_config(own, 1 - own, auth.clone())
    };
    let now = net.now;
    net.nodes[own].endpoint.put_peer(config, now).unwrap();
}

/// Always with the same random numbers: keys differ only by what is mixed into them.
fn pair(ours: Option<Ppk>, theirs: Option<Ppk>) -> Net {
    let mut net = Net::new(1, 2, None);
    set(&mut net, 0, &psk(7), ours);
    set(&mut net, 1, &psk(7), theirs);
    net
}

/// What the initiator seals with, where both ends have the same keys.
fn keys(net: &mut Net) -> ChildKeys {
    net.connect(0, 1, Connect::Restart);
    assert!(
        net.run_until(LONG, Net::all_settled),
        "{:?} {:?}",
        net.failures(0),
        net.failures(1)
    );
    let (a, b) = (&net.child_ups(0)[0].1, &net.child_ups(1)[0].1);
    assert_eq!((&a.keys_in, &a.keys_out), (&b.keys_out, &b.keys_in));
    a.keys_out.clone()
}

fn failures(net: &mut Net) -> [String; 2] {
    net.connect(0, 1, Connect::Restart);
    net.run(A_WHILE * 2);
    let up = |event: &Event| matches!(event, Event::IkeUp { .. });
    assert_eq!(net.count(0, up), 0);
    [0, 1].map(|node| net.failures(node).first().cloned().unwrap_or_default())
}

#[test]
fn where_both_have_it_the_ppk_is_in_the_keys() {
    let plain = keys(&mut pair(None, None));
    let mixed = keys(&mut pair(ppk("a", 1, false), ppk("a", 1, false)));
    assert_ne!(plain, mixed);
    for (ours, theirs) in [(true, false), (false, true), (true, true)] {
        assert_eq!(
            keys(&mut pair(ppk("a", 1, ours), ppk("a", 1, theirs))),
            mixed
        );
    }
    let other = keys(&mut pair(ppk("a", 2, true), ppk("a", 2, true)));
    assert_ne!(other, mixed);
}

#[test]
fn where_one_lacks_it_and_none_requires_it_there_is_none() {
    let plain = keys(&mut pair(None, None));
    let own = || ppk("a", 1, false);
    assert_eq!(keys(&mut pair(own(), None)), plain);
    assert_eq!(keys(&mut pair(None, own())), plain);
    assert_eq!(
        keys(&mut pair(own(), ppk("b", 2, false))),
        plain,
        "NO_PPK_AUTH"
    );
}

#[test]
fn where_one_lacks_it_and_one_requires_it_there_is_no_ike_sa() {
    let own = || ppk("a", 1, true);
    let [told, _] = failures(&mut pair(own(), None));
    assert!(
        told.contains("it has no post-quantum preshared key (USE_PPK)"),
        "{told}"
    );
    let required = "does not use the post-quantum preshared key that is required for it";
    let [_, told] = failures(&mut pair(None, own()));
    assert!(
        told.starts_with("node-00") && told.contains(required),
        "{told}"
    );
    let [refused, told] = failures(&mut pair(own(), ppk("b", 2, false)));
    assert!(
        told.contains("insists on the post-quantum preshared key \"a\""),
        "{told}"
    );
    assert!(
        refused.contains("refused this node's identity or key"),
        "{refused}"
    );
    let [_, told] = failures(&mut pair(ppk("b", 2, false), own()));
    assert!(told.contains(required), "{told}");
}

#[test]
fn a_ppk_that_differs_is_named_as_a_cause() {
    for required in [false, true] {
        let [_, told] = failures(&mut pair(ppk("a", 1, required), ppk("a", 2, required)));
        let cause = "Or its post-quantum preshared key of the same name differs";
        assert!(told.contains(cause), "{told}");
    }
}

#[test]
fn certificates_ml_kem_and_a_ppk_go_together_and_rekey() {
    let ca = Ca::new("CA");
    for required in [false, true] {
        let mut net = Net::new(1, 2, Some(&ca));
        net.post_quantum(PostQuantum::Required);
        for node in 0..2 {
            let auth = PeerAuth::Certificate;
            set(&mut net, node, &auth, ppk("a", 1, required));
        }
        keys(&mut net);
        net.rekey_ike(0, 1);
        net.run(A_WHILE);
        net.rekey_child(1, 0);
        net.run(Duration::from_secs(60));
        assert!(net.all_settled());
        assert_eq!(net.child_ups(0).len(), 2);
    }
}

#[test]
fn certificates_fall_back_where_the_ppk_is_another() {
    let ca = Ca::new("CA");
    let mut net = Net::new(1, 2, Some(&ca));
    for (node, name) in ["a", "b"].into_iter().enumerate() {
        set(&mut net, node, &PeerAuth::Certificate, ppk(name, 1, false));
    }
    keys(&mut net);
}

/// A datagram without USE_PPK.
fn stripped(packet: &Packet) -> Packet {
    let mut message = Message::parse(&packet.payload).unwrap();
    let before = message.payloads.len();
    message
        .payloads
        .retain(|payload| !matches!(payload, Payload::Notify(n) if n.kind == NotifyType::UsePpk));
    assert_eq!(message.payloads.len(), before - 1);
    Packet {
        path: packet.path,
        payload: wire::emit(&message.header, &message.payloads),
    }
}

#[test]
fn taking_use_ppk_out_on_the_way_breaks_the_proof_or_is_not_believed() {
    // Out of the request: the proof covers what the initiator sent.
    let mut net = pair(ppk("a", 1, false), ppk("a", 1, false));
    net.by_hand();
    net.connect(0, 1, Connect::Restart);
    let request = net.take(0, INIT, ASK);
    net.deliver(&stripped(&request));
    net.hand(1, INIT, ANSWER);
    net.hand(0, AUTH, ASK);
    assert!(
        net.failures(1)[0].contains("pre-shared key differs"),
        "{:?}",
        net.failures(1)
    );
    // Out of the response: the initiator's own proof is good, the responder's is not.
    let mut net = pair(ppk("a", 1, false), ppk("a", 1, false));
    net.by_hand();
    net.connect(0, 1, Connect::Restart);
    net.hand(0, INIT, ASK);
    let answer = net.take(1, INIT, ANSWER);
    net.deliver(&stripped(&answer));
    net.hand(0, AUTH, ASK);
    net.hand(1, AUTH, ANSWER);
    assert!(
        net.failures(0)[0].contains("pre-shared key differs"),
        "{:?}",
        net.failures(0)
    );
    // Where it is required that answer is not even looked at, and the genuine one is.
    let mut net = pair(ppk("a", 1, true), ppk("a", 1, true));
    net.by_hand();
    net.connect(0, 1, Connect::Restart);
    net.hand(0, INIT, ASK);
    let answer = net.take(1, INIT, ANSWER);
    net.deliver(&stripped(&answer));
    assert!(net.held().is_empty());
    net.deliver(&answer);
    net.exchange(0, AUTH);
    assert_eq!(net.child_ups(0).len(), 1);
}

#[test]
fn short_and_nameless_ppks_are_refused() {
    let mut net = Net::psk_mesh(1, 2);
    let short = Ppk {
        key: SecretBytes::copy_from(&[1; 31]),
        ..ppk("a", 1, false).unwrap()
    };
    for bad in [
        Some(short),
        ppk("", 1, false),
        ppk(&"a".repeat(129), 1, false),
    ] {
        let config = PeerConfig {
            ppk: bad,
            ..peer_config(0, 1, psk(7))
        };
        let now = net.now;
        let refused = net.nodes[0].endpoint.put_peer(config, now).unwrap_err();
        assert!(matches!(refused, ConfigError::Ppk { .. }), "{refused}");
    }
}

#[test]
fn another_ppk_ends_what_the_one_before_made() {
    let mut net = pair(ppk("a", 1, true), ppk("a", 1, true));
    keys(&mut net);
    net.strict = false;
    for node in 0..2 {
        set(&mut net, node, &psk(7), ppk("b", 2, true));
        net.pump(node);
    }
    net.run(A_WHILE);
    let down = |event: &Event| matches!(event, Event::IkeDown { .. });
    assert!(net.count(0, down) > 0);
    assert!(net.run_until(LONG, Net::all_settled));
}
