//! `XFRM_MSG_EXPIRE`: a state reached a limit.

use netlink_packet_xfrm::{UserExpire, XFRM_USER_EXPIRE_LEN};

use super::state::State;
use super::{ParseError, split};

/// What the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expire {
    /// The state, without what stands in attributes.
    pub(crate) state: State,
    /// It is gone; otherwise it only reached a soft limit.
    pub(crate) hard: bool,
}

impl Expire {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let (fixed, _) = split(body, XFRM_USER_EXPIRE_LEN, "xfrm_user_expire")?;
        let expire = UserExpire::parse(fixed).map_err(|_| ParseError::Truncated {
            what: "xfrm_user_expire",
            expected: XFRM_USER_EXPIRE_LEN,
            got: fixed.len(),
        })?;
        Ok(Self {
            state: State::from_info(&expire.state)?,
            hard: expire.hard != 0,
        })
    }
}
