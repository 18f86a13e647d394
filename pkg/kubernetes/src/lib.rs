//! The Kubernetes API as a source of the mesh's objects, and what an agent writes to it.
//!
//! Traffic never waits for the API server: while it is away all that was known stays in force, and what should be written waits.

mod backoff;
mod client;
mod events;
mod feed;
mod follow;
mod keep;
mod node;
mod report;
mod source;

pub use backoff::Backoff;
pub use client::{ClientError, connect, explain};
pub use kube::Client;
pub use node::tell;
pub use report::Report;
pub use source::{KubeSource, Timing};
