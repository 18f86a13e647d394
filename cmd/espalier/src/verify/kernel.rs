//! The kernel's routes and XFRM policies.

use anyhow::Result;
use espalier_rpc::agent::StatusReply;

use super::Finding;

pub(super) fn check(_status: &StatusReply, _interface: &str) -> Result<Vec<Finding>> {
    Ok(Vec::new())
}
