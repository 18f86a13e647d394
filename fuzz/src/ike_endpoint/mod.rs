//! The IKE endpoint: datagrams from anybody, in both roles and all stages of a handshake, and payloads from somebody who has
//! the keys.
//!
//! Everything is seeded, so the genuine handshake is the same in every run: an input may contain its datagrams, and whatever
//! is not one of them proves nothing.

mod node;
mod raw;

use espalier_ike::limits::ANNOUNCEMENT_MAX;
use espalier_ike::wire::HEADER_LEN;
use espalier_ike::{Event, IkeStatus, Role};

use node::{Node, authenticated, transcript};

pub use node::genuine_datagrams;
pub use raw::{child_chain, ike_endpoint_fragments, ike_endpoint_inner, ike_endpoint_key_exchange};

/// To a node that began: the first byte says how far its handshake is, then datagrams, each behind its length (2 bytes).
pub fn ike_endpoint_initiator(data: &[u8]) {
    run(Role::Initiator, data);
}

/// To a node that waits, likewise.
pub fn ike_endpoint_responder(data: &[u8]) {
    run(Role::Responder, data);
}

fn run(role: Role, data: &[u8]) {
    let Some((stage, frames)) = data.split_first() else {
        return;
    };
    let frames = split(frames);
    let mut node = Node::at_stage(role, stage % 3);
    let established = node.status() == IkeStatus::Established;
    let genuine = frames.iter().any(|frame| transcript().contains(frame));
    for frame in &frames {
        let sent = node.receive(frame);
        assert!(sent <= 3, "one datagram made {sent}");
        if let Some(mended) = mend_length(frame) {
            node.receive(&mended);
        }
        assert!(node.endpoint.ike_sas() <= 2 + 2 * frames.len());
    }
    if !genuine {
        let proof = node.events.iter().find(|event| authenticated(event));
        assert_eq!(proof, None, "nothing here is authentic (S6)");
        assert_eq!(node.status() == IkeStatus::Established, established, "S6");
    }
    node.pass_time();
}

/// At most 16 datagrams: each behind its length, which may lie.
fn split(mut data: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (frame, rest) = rest.split_at(length);
        frames.push(frame.to_vec());
        data = rest;
    }
    frames.truncate(16);
    frames
}

/// The header's length field made right, where it is not.
fn mend_length(frame: &[u8]) -> Option<Vec<u8>> {
    let mut mended = frame.to_vec();
    let length = u32::try_from(frame.len()).ok()?.to_be_bytes();
    mended
        .get_mut(HEADER_LEN - 4..HEADER_LEN)?
        .copy_from_slice(&length);
    (mended != frame && !transcript().contains(&mended)).then_some(mended)
}

/// What a CHILD_SA of the node may be, whoever its `peer` is.
fn check_child(event: &Event, peer: Role) {
    if let Event::AddressChanged { path, .. } = event {
        assert_eq!(path.remote.ip(), node::address(peer).ip(), "S5");
    }
    let Event::ChildUp {
        peer: name,
        child,
        announcement,
    } = event
    else {
        return;
    };
    assert_eq!(*name, node::id(peer), "the only configured peer");
    assert!(child.spi_in >= 256 && child.spi_out >= 256);
    assert!(child.id.number < 2 && child.id.cpu.is_none_or(|cpu| cpu < 2));
    assert!(
        announcement
            .as_ref()
            .is_none_or(|data| data.len() <= ANNOUNCEMENT_MAX)
    );
    for (selectors, side) in [
        (&child.local_ts, node::other(peer)),
        (&child.remote_ts, peer),
    ] {
        let most = node::selector(side);
        let protocol = if child.id.number == 0 {
            most.protocol
        } else {
            6
        };
        assert!(!selectors.is_empty());
        for ts in selectors {
            assert_eq!(
                (ts.start, ts.end, ts.protocol),
                (most.start, most.end, protocol)
            );
            assert!(ts.start_port <= ts.end_port);
        }
    }
}
