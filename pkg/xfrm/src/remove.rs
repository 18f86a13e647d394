//! The end: nothing of ours stays in the SAD.

use espalier_netlink::Errno;

use crate::error::Error;
use crate::reqid::REQIDS;
use crate::sad::Sad;

/// Removes the states that are ours, in the calling thread's network namespace, as when Espalier leaves this node. Gives a line
/// about each. A kernel without XFRM has none.
///
/// # Errors
/// When the SAD cannot be read or the kernel refuses a removal.
pub fn remove_states() -> Result<Vec<String>, Error> {
    let mut sad = match Sad::open() {
        Err(error) if error.errno() == Some(Errno::EPROTONOSUPPORT) => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut removed = Vec::new();
    for state in sad.list(|reqid| REQIDS.contains(&reqid))? {
        if sad.delete(&state.id)? {
            removed.push(format!(
                "{:08x} to {}, reqid {:08x}",
                state.id.spi, state.id.destination, state.reqid
            ));
        }
    }
    Ok(removed)
}
