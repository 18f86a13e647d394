use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlasIterator,
};
use nix::errno::Errno;

/// Header of a netlink message, in bytes.
const HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's words (linux/netlink.h).
const ATTR_MSG: u16 = 1;

/// One message of an answer, by what it means to the sender of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply<'a> {
    /// End of a request: success, or an errno with the kernel's words.
    Ack(Result<(), (Errno, Option<String>)>),
    /// End of a dump, likewise.
    Done(Result<(), (Errno, Option<String>)>),
    /// A message of the family: the whole of it, with its header.
    Message(&'a [u8]),
    /// NLMSG_NOOP and the like.
    Nothing,
}

impl<'a> Reply<'a> {
    /// Reads the first message in `bytes`; gives its sequence number, its flags, what it means and the bytes after it.
    pub(crate) fn split(bytes: &'a [u8]) -> Result<(u32, u16, Self, &'a [u8]), String> {
        let head = NetlinkBuffer::new_checked(bytes).map_err(|e| e.to_string())?;
        let length = head.length() as usize;
        if length < HEADER {
            return Err(format!(
                "a message of {length} bytes, expected at least {HEADER}"
            ));
        }
        let message = bytes
            .get(..length)
            .ok_or_else(|| format!("{length} bytes announced, {} came", bytes.len()))?;
        let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let payload = message.get(HEADER..).unwrap_or_default();
        let flags = head.flags();
        let reply = match head.message_type() {
            NLMSG_ERROR => Self::Ack(outcome(payload, ack_attributes(payload, flags))?),
            NLMSG_DONE if payload.is_empty() => Self::Done(Ok(())),
            NLMSG_DONE => Self::Done(outcome(payload, payload.get(4..))?),
            message_type if message_type < 16 => Self::Nothing,
            _ => Self::Message(message),
        };
        Ok((head.sequence_number(), flags, reply, rest))
    }
}

/// `i32` negative errno or ≥ 0, and attributes.
fn outcome(
    payload: &[u8],
    attributes: Option<&[u8]>,
) -> Result<Result<(), (Errno, Option<String>)>, String> {
    let code = payload
        .first_chunk::<4>()
        .ok_or("an acknowledgement without a code")?;
    let code = i32::from_ne_bytes(*code);
    Ok(if code >= 0 {
        Ok(())
    } else {
        Err((
            Errno::from_raw(code.saturating_neg()),
            attributes.and_then(words),
        ))
    })
}

/// Behind the code stands the request's header, and the request itself unless the answer is capped.
fn ack_attributes(payload: &[u8], flags: u16) -> Option<&[u8]> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let length = u32::from_ne_bytes(*payload.get(4..)?.first_chunk::<4>()?) as usize;
    let request = if flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        length.next_multiple_of(4)
    };
    payload.get(4 + request..)
}

fn words(attributes: &[u8]) -> Option<String> {
    let nla = NlasIterator::new(attributes)
        .flatten()
        .find(|nla| nla.kind() == ATTR_MSG)?;
    let text = String::from_utf8_lossy(nla.value())
        .trim_end_matches('\0')
        .to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + payload.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn refusal(capped: bool) -> Vec<u8> {
        let mut payload = (-17_i32).to_ne_bytes().to_vec();
        payload.extend(message(24, 0, if capped { &[] } else { &[1, 2, 3, 4, 5] }));
        // The copied header announces the request's own length, capped or not.
        payload[4..8].copy_from_slice(&21_u32.to_ne_bytes());
        payload.extend(8_u16.to_ne_bytes());
        payload.extend(ATTR_MSG.to_ne_bytes());
        payload.extend(b"why\0");
        message(
            NLMSG_ERROR,
            NLM_F_ACK_TLVS | if capped { NLM_F_CAPPED } else { 0 },
            &payload,
        )
    }

    #[test]
    fn a_refusal_carries_errno_and_words_capped_or_not() {
        for capped in [true, false] {
            let bytes = refusal(capped);
            let (sequence, _, reply, rest) = Reply::split(&bytes).unwrap();
            assert_eq!((sequence, rest.len()), (7, 0));
            assert_eq!(
                reply,
                Reply::Ack(Err((Errno::EEXIST, Some("why".to_owned()))))
            );
        }
    }

    #[test]
    fn messages_follow_each_other_in_one_datagram() {
        let mut bytes = message(24, 2, &[9; 12]);
        bytes.extend(message(NLMSG_DONE, 2, &0_i32.to_ne_bytes()));
        let (_, flags, first, rest) = Reply::split(&bytes).unwrap();
        assert_eq!((flags, first), (2, Reply::Message(&bytes[..28])));
        assert_eq!(Reply::split(rest).unwrap().2, Reply::Done(Ok(())));
    }

    #[test]
    fn truncated_answers_are_errors_and_never_panics() {
        let whole = refusal(true);
        for cut in 0..whole.len() {
            assert!(Reply::split(&whole[..cut]).is_err(), "cut at {cut}");
        }
        let mut short = whole;
        short[..4].copy_from_slice(&3_u32.to_ne_bytes());
        assert!(Reply::split(&short).is_err());
    }
}
