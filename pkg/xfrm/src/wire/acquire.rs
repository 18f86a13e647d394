//! `XFRM_MSG_ACQUIRE`: a packet matched a policy whose templates found no state.

use netlink_packet_xfrm::XFRM_USER_ACQUIRE_LEN;
use netlink_packet_xfrm::constants::XFRMA_TMPL;

use super::attr::Attributes;
use super::policy::template_reqids;
use super::{ParseError, split};

/// The reqids of the policy's templates.
pub(crate) fn reqids(body: &[u8]) -> Result<Vec<u32>, ParseError> {
    let (_, attributes) = split(body, XFRM_USER_ACQUIRE_LEN, "xfrm_user_acquire")?;
    let mut all = Vec::new();
    for attribute in Attributes::new(attributes) {
        if let (XFRMA_TMPL, value) = attribute? {
            all.extend(template_reqids(value));
        }
    }
    Ok(all)
}
