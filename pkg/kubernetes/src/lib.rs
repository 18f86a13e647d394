//! The Kubernetes API as a source of the mesh's objects, and what an agent writes to it.
//!
//! Traffic never waits for the API server: while it is away all that was known stays in force, and what should be written waits.

mod backoff;
mod client;
mod enrol;
mod events;
mod feed;
mod files;
mod follow;
mod keep;
mod node;
mod recorder;
mod report;
mod source;
mod trust;

pub use backoff::Backoff;
pub use client::{ClientError, connect, explain};
pub use enrol::Enrolment;
pub use kube::Client;
pub use node::{node_uid, tell};
pub use recorder::{About, Event, Recorder};
pub use report::Report;
pub use source::{KubeSource, Timing};
