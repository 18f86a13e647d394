//! Development only: private namespaces for tests and for `espalier demo`.
//!
//! Everything happens in a sandbox that the process enters by running itself again under `unshare`:
//!
//! ```text
//!  host                  │ sandbox: own mount, network and PID namespace (own user namespace without root)
//!  test or espalier ─────┼─▶ the same program again, PID 1
//!                        │     ├─ tmpfs on /run: named network namespaces, bind-mounted
//!                        │     ├─ Netns "a" ◀── veth ──▶ Netns "b" ...
//!                        │     └─ processes started by Netns::spawn
//! ```
//!
//! When PID 1 ends, in whatever way, the kernel ends every process, namespace, device and mount of the sandbox. The
//! host is never changed, and an interrupted run leaves nothing behind.

mod isolated;
mod link;
mod netns;
mod process;
mod sandbox;

pub use isolated::isolated;
pub use link::{Bridge, VethEnd, address, route, set_up, sysctl, veth};
pub use netns::Netns;
pub use process::Process;
pub use sandbox::{Privilege, enter, entered_with, inside, privilege};
