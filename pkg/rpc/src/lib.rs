//! Protobuf services and their transport over unix sockets.
//!
//! [`dataplane`] and [`agent`] hold the generated code. [`DataplaneClient`] and [`DataplaneService`] are the two ends of
//! [`espalier_dataplane_core::Dataplane`] over gRPC; [`connect_unix`] and [`serve_unix`] carry any service;
//! [`Call`] is a client for processes that make one call and end.

mod client;
mod convert;
mod failure;
mod service;
mod unary;
mod unix;

pub use client::{DataplaneClient, EventStream, UpgradeError};
pub use failure::{error_from_status, status_from_error};
pub use service::{DataplaneService, Upgrader};
pub use unary::{Call, CallError};
pub use unix::{
    Error, SocketFile, bind_unix, check_length, connect_unix, resume_unix, serve_bound, serve_unix,
};

/// What the agent tells the data plane (`proto/dataplane.proto`).
#[allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::unwrap_used,
    clippy::expect_used
)]
pub mod dataplane {
    tonic::include_proto!("espalier.dataplane.v1");
}

/// What the CNI plugin and the command line ask the agent (`proto/agent.proto`).
#[allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::unwrap_used,
    clippy::expect_used
)]
pub mod agent {
    tonic::include_proto!("espalier.agent.v1");
}
