//! `xfrm_usersa_id`: names one state, for `XFRM_MSG_GETSA` and `XFRM_MSG_DELSA`.

use std::net::IpAddr;

use netlink_packet_core::Emitable as _;
use netlink_packet_xfrm::constants::{XFRM_MSG_DELSA, XFRM_MSG_GETSA};
use netlink_packet_xfrm::{Address, UserSaId, XFRM_USER_SA_ID_LEN};
use zeroize::Zeroizing;

use super::{Message, family_of};

/// What the kernel knows a state by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StateId {
    pub(crate) destination: IpAddr,
    pub(crate) spi: u32,
    pub(crate) protocol: u8,
}

impl StateId {
    pub(crate) fn get(&self) -> Message {
        self.message(XFRM_MSG_GETSA, "reading")
    }

    pub(crate) fn delete(&self) -> Message {
        self.message(XFRM_MSG_DELSA, "removing")
    }

    fn message(&self, kind: u16, verb: &str) -> Message {
        let mut body = Zeroizing::new(vec![0; XFRM_USER_SA_ID_LEN]);
        let id = UserSaId {
            daddr: Address::from_ip(&self.destination),
            spi: self.spi,
            family: family_of(self.destination),
            proto: self.protocol,
        };
        id.emit(&mut body);
        Message {
            kind,
            what: format!("{verb} the SA {:08x} to {}", self.spi, self.destination),
            body,
        }
    }
}

/// The message that asks for all states; `flags` must be a dump's.
pub(crate) fn dump() -> Message {
    Message {
        kind: XFRM_MSG_GETSA,
        what: "reading all SAs".to_owned(),
        body: Zeroizing::new(Vec::new()),
    }
}
