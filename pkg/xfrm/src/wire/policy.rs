//! `XFRM_MSG_NEWPOLICY` as the kernel answers: only which outbound state a policy of the agent pins.

use espalier_dataplane_core::PROBE_PORT;
use netlink_packet_xfrm::constants::{XFRM_MSG_GETPOLICY, XFRM_POLICY_OUT, XFRMA_TMPL};
use netlink_packet_xfrm::{
    UserPolicyInfo, UserTemplate, XFRM_USER_POLICY_ID_LEN, XFRM_USER_POLICY_INFO_LEN,
    XFRM_USER_TEMPLATE_LEN,
};
use zeroize::Zeroizing;

use super::attr::Attributes;
use super::{Message, ParseError, split};

/// An outbound policy's template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pinned {
    pub(crate) reqid: u32,
    /// `None`: any state with this reqid.
    pub(crate) spi: Option<u32>,
}

/// The message that asks for all policies.
pub(crate) fn dump() -> Message {
    Message {
        kind: XFRM_MSG_GETPOLICY,
        what: "reading all policies".to_owned(),
        body: Zeroizing::new(vec![0; XFRM_USER_POLICY_ID_LEN]),
    }
}

/// Templates of an outbound policy for anything but probes; none of other policies.
pub(crate) fn pinned(body: &[u8]) -> Result<Vec<Pinned>, ParseError> {
    let (fixed, attributes) = split(body, XFRM_USER_POLICY_INFO_LEN, "xfrm_userpolicy_info")?;
    let info = UserPolicyInfo::parse(fixed).map_err(|_| ParseError::Truncated {
        what: "xfrm_userpolicy_info",
        expected: XFRM_USER_POLICY_INFO_LEN,
        got: fixed.len(),
    })?;
    let mut all = Vec::new();
    // The policies of probes say nothing about what carries traffic.
    if info.direction != XFRM_POLICY_OUT || info.selector.dport == PROBE_PORT {
        return Ok(all);
    }
    for attribute in Attributes::new(attributes) {
        if let (XFRMA_TMPL, value) = attribute? {
            all.extend(templates(value).map(|template| Pinned {
                reqid: template.reqid,
                spi: (template.id.spi != 0).then_some(template.id.spi),
            }));
        }
    }
    Ok(all)
}

pub(super) fn template_reqids(value: &[u8]) -> impl Iterator<Item = u32> {
    templates(value).map(|template| template.reqid)
}

fn templates(value: &[u8]) -> impl Iterator<Item = UserTemplate> {
    value
        .chunks_exact(XFRM_USER_TEMPLATE_LEN)
        .filter_map(|chunk| UserTemplate::parse(chunk).ok())
}
