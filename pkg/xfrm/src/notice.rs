//! What the kernel says by itself: datagrams of the multicast groups ACQUIRE and EXPIRE.

use netlink_packet_xfrm::constants::{XFRM_MSG_ACQUIRE, XFRM_MSG_EXPIRE};

use crate::wire::acquire;
use crate::wire::expire::Expire;

/// Length u32, type u16, flags u16, sequence u32, port u32.
const HEADER: usize = 16;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A state reached a limit.
    Expire(Box<Expire>),
    /// A packet found no state for these reqids.
    Acquire(Vec<u32>),
    /// It cannot be read: look at everything.
    Unclear,
}

/// The messages of a datagram; other kinds are left out.
pub(crate) fn parse(datagram: &[u8]) -> Vec<Notice> {
    let (mut notices, mut rest) = (Vec::new(), datagram);
    while !rest.is_empty() {
        let Some((kind, body, after)) = message(rest) else {
            notices.push(Notice::Unclear);
            break;
        };
        rest = after;
        let notice = match kind {
            XFRM_MSG_EXPIRE => Expire::parse(body).map(|expire| Notice::Expire(Box::new(expire))),
            XFRM_MSG_ACQUIRE => acquire::reqids(body).map(Notice::Acquire),
            _ => continue,
        };
        notices.push(notice.unwrap_or(Notice::Unclear));
    }
    notices
}

/// Type and body of the first message, and the bytes after it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, _) = bytes.split_first_chunk::<HEADER>()?;
    let [l0, l1, l2, l3, k0, k1, ..] = *head;
    let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let body = bytes.get(HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([k0, k1]), body, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(HEADER + body.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn other_kinds_are_left_out_and_broken_ones_are_told() {
        let mut bytes = framed(0x99, &[1, 2, 3, 4]);
        bytes.extend(framed(XFRM_MSG_EXPIRE, &[0; 12]));
        assert_eq!(parse(&bytes), [Notice::Unclear]);
        assert_eq!(parse(&bytes[..21]), [Notice::Unclear], "cut");
        assert_eq!(parse(&[]), []);
    }
}
