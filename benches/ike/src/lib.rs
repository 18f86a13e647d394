//! Development only: a process that plays many nodes of a mesh, and what a process costs.
//!
//! [`plan`] says who takes part, [`pki`] has their certificates, [`wire`] is between them, [`node`] is the process, as it runs
//! for the benchmark of handshakes and, with [`mesh`], against a real agent; [`measure`] is what processes cost, [`wireguard`] runs what others measure Espalier beside.

pub mod measure;
pub mod mesh;
pub mod node;
pub mod pki;
pub mod plan;
pub mod wire;
pub mod wireguard;
