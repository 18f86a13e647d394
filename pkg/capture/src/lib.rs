//! Reads what crosses an interface and tells clear pod packets from ESP.
//!
//! ```text
//!  interface ─▶ Reader (AF_PACKET, counts what the kernel dropped) ─▶ classify ─▶ Counters ─▶ Capture::snapshot
//! ```
//!
//! A capture that has lost packets proves nothing, so [`Capture::snapshot`] sends a probe through the socket's own
//! queue and returns when the probe was read: everything before it is counted, drops included.

mod capture;
mod classify;
mod counters;
mod error;
mod filter;
mod headers;
mod reader;

pub use capture::{Capture, Config};
pub use classify::{Carrier, ClearPod, Encapsulation, Frame, What, classify};
pub use counters::{ClearSample, Counters, PairCounters};
pub use error::CaptureError;
pub use reader::{Interfaces, Reader, Received, interface_index};
