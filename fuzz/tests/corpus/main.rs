//! Makes the committed corpora, and checks that they are what is made here.
//!
//! `ESPALIER_WRITE_CORPUS=1 cargo test -p espalier-fuzz --test corpus` writes them. Files that are not made here (inputs that
//! once failed) are left alone. Certificates are made by hand, see [`certificates`].

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bytes;
mod capture;
mod certificates;
mod cni;
mod esp;
mod handover;
mod ike_endpoint;
mod ike_messages;
mod ike_payloads;
mod ipam;
mod manifests;
mod xfrm;

use std::fs;
use std::path::PathBuf;

/// Input of a target, with the name of its file.
pub(crate) struct Seed {
    target: &'static str,
    name: String,
    bytes: Vec<u8>,
}

/// Seeds of one target.
pub(crate) fn seeds<const N: usize>(
    target: &'static str,
    named: [(&str, Vec<u8>); N],
) -> Vec<Seed> {
    let seed = |(name, bytes): (&str, _)| Seed {
        target,
        name: name.to_owned(),
        bytes,
    };
    named.into_iter().map(seed).collect()
}

fn all() -> Vec<Seed> {
    let parts = [
        ike_messages::seeds(),
        ike_payloads::seeds(),
        ike_endpoint::seeds(),
        esp::seeds(),
        handover::seeds(),
        manifests::seeds(),
        cni::seeds(),
        ipam::seeds(),
        capture::seeds(),
        xfrm::seeds(),
    ];
    parts.into_iter().flatten().collect()
}

#[test]
fn the_committed_corpora_are_what_is_made_here() {
    let write = std::env::var_os("ESPALIER_WRITE_CORPUS").is_some();
    for seed in all() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(seed.target);
        let file = folder.join(&seed.name);
        if write {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&file, &seed.bytes).unwrap();
        }
        let committed = fs::read(&file).unwrap_or_default();
        let shown = file.display();
        assert_eq!(
            committed, seed.bytes,
            "{shown}: ESPALIER_WRITE_CORPUS=1 writes it anew"
        );
    }
}
