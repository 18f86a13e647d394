//! Fuzz entry points: one function per target, a table of them, and the mutations that the replay test makes.
//!
//! A target takes any bytes. It panics when the code under test does, and when one of its own assertions fails: mostly that
//! what parses and is written again parses to the same. `fuzz/README.md` says how to run them and how to add one.

// Panics are what targets report by.
#![allow(clippy::expect_used)]

mod capture;
mod cni;
mod esp;
mod handover;
mod ike_crypto;
mod ike_endpoint;
mod ike_wire;
mod ipam;
mod manifests;
pub mod mutate;
mod pki;
mod xfrm;

pub use capture::capture_classify;
pub use cni::{cni_config, cni_env, cni_result};
pub use esp::{esp_frame, esp_join, esp_open, esp_raw, esp_split};
pub use handover::handover_state;
pub use ike_crypto::{ike_sk_open, ike_verify_peer, split_chain};
pub use ike_endpoint::{
    child_chain, genuine_datagrams, ike_endpoint_fragments, ike_endpoint_initiator,
    ike_endpoint_inner, ike_endpoint_key_exchange, ike_endpoint_responder,
};
pub use ike_wire::{
    ike_auth, ike_cert, ike_certreq, ike_delete, ike_id, ike_ke, ike_message, ike_nonce,
    ike_notify, ike_opaque, ike_payload_chain, ike_sa, ike_sk, ike_skf, ike_ts, ike_vendor_id,
};
pub use ipam::ipam_store;
pub use manifests::manifest_text;
pub use pki::pki_request;
pub use xfrm::{xfrm_kernel, xfrm_peers};

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of the function, of `corpus/NAME/` and of `fuzz_targets/NAME.rs`.
    pub name: &'static str,
    /// One run.
    pub run: fn(&[u8]),
    /// Mutants that the replay test tries, over the whole corpus. Slow targets have fewer.
    pub mutants: u32,
}

macro_rules! targets {
    ($($name:ident: $mutants:literal,)+) => {
        /// All targets, in the order of the data path.
        pub const TARGETS: &[Target] = &[
            $(Target { name: stringify!($name), run: $name, mutants: $mutants },)+
        ];
    };
}

targets! {
    ike_message: 5_000,
    ike_payload_chain: 5_000,
    ike_sa: 5_000,
    ike_ke: 500,
    ike_id: 500,
    ike_cert: 500,
    ike_certreq: 500,
    ike_auth: 1_000,
    ike_nonce: 500,
    ike_notify: 1_000,
    ike_delete: 1_000,
    ike_vendor_id: 200,
    ike_ts: 2_000,
    ike_sk: 500,
    ike_skf: 500,
    ike_opaque: 200,
    ike_sk_open: 1_000,
    ike_verify_peer: 500,
    ike_endpoint_initiator: 300,
    ike_endpoint_responder: 300,
    ike_endpoint_inner: 600,
    ike_endpoint_fragments: 400,
    ike_endpoint_key_exchange: 100,
    esp_raw: 3_000,
    esp_open: 2_000,
    esp_frame: 3_000,
    esp_split: 2_000,
    esp_join: 2_000,
    handover_state: 1_000,
    manifest_text: 1_000,
    pki_request: 1_000,
    cni_config: 2_000,
    cni_result: 1_000,
    cni_env: 2_000,
    ipam_store: 300,
    capture_classify: 5_000,
    xfrm_kernel: 5_000,
    xfrm_peers: 2_000,
}
