//! The Container Network Interface, 0.3.1 to 1.1.0, as a plugin sees it: environment and configuration come in,
//! a result or an error goes out.
//!
//! [`Invocation`] is what the environment asks for, [`NetworkConfig`] what stdin says, [`AddResult`] and [`Error`] what
//! goes to stdout. Values are version-neutral inside; the version only matters where JSON is read or written.
//! <https://github.com/containernetworking/cni/blob/main/SPEC.md>

mod config;
mod env;
mod error;
mod json;
mod result;
mod version;

pub use config::{Attachment, ConfigError, NetworkConfig};
pub use env::{Args, EnvError, Invocation};
pub use error::{Error, ErrorCode};
pub use result::{AddResult, Dns, Interface, Ip, Route};
pub use version::{UnsupportedVersion, Version, version_report};
