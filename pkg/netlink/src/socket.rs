use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::SocketAddr;
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::{TimeVal, TimeValLike},
    },
};

use crate::{Error, Family, bytes::Bytes, in_netns, reply::Reply};

/// Flags of a request: neither create nor replace.
pub const PLAIN: u16 = 0;
/// Create the object, or change it where it exists and the family allows that.
pub const CREATE: u16 = NLM_F_CREATE;
/// Create the object; EEXIST if it is there.
pub const EXCLUSIVE: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Create the object or put it atomically in the place of the existing one.
pub const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// Large, so that the answers to a batch fit; the kernel doubles it and caps it at `net.core.rmem_max` unless we may force it.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Netlink is answered while the request is sent: a wait of this length means a lost answer.
const ANSWER_SECONDS: i64 = 10;
/// One datagram of an answer. The kernel packs dumps into at most 32 KiB; a single large link may exceed that.
const DATAGRAM: usize = 128 << 10;
/// Of a list that changes under the reading.
const DUMP_TRIES: u32 = 20;
/// A batch is cut into pieces of at most so many messages and so many bytes per send call (the default send buffer is 208 KiB).
const BATCH_MESSAGES: usize = 512;
const BATCH_BYTES: usize = 64 << 10;

/// A synchronous netlink socket of one family, in the network namespace it was opened in.
pub struct Socket<F: Family> {
    inner: netlink_sys::Socket,
    sequence: u32,
    writes: usize,
    family: PhantomData<fn() -> F>,
}

impl<F: Family> std::fmt::Debug for Socket<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("protocol", &F::PROTOCOL)
            .field("writes", &self.writes)
            .finish()
    }
}

impl<F: Family> AsFd for Socket<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl<F: Family> Socket<F> {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no such netlink family (XFRM may be compiled out) or the process is out of descriptors.
    pub fn open() -> Result<Self, Error> {
        let failed = |e: io::Error| {
            Error::io(
                format!("open a netlink socket of protocol {}", F::PROTOCOL),
                e,
            )
        };
        let mut inner = netlink_sys::Socket::new(F::PROTOCOL).map_err(failed)?;
        inner.bind_auto().map_err(failed)?;
        inner.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        inner.set_ext_ack(true).map_err(failed)?;
        inner.set_cap_ack(true).map_err(failed)?;
        if F::STRICT {
            inner.set_netlink_get_strict_chk(true).map_err(failed)?;
        }
        // Forcing needs CAP_NET_ADMIN in the initial user namespace; without it the plain option gives what is allowed.
        setsockopt(&inner, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&inner, sockopt::RcvBuf, &RECEIVE_BUFFER))
            .and_then(|()| {
                setsockopt(
                    &inner,
                    sockopt::ReceiveTimeout,
                    &TimeVal::seconds(ANSWER_SECONDS),
                )
            })
            .map_err(|e| failed(e.into()))?;
        Ok(Self {
            inner,
            sequence: 0,
            writes: 0,
            family: PhantomData,
        })
    }

    /// Opens a socket in the network namespace that `netns` refers to.
    ///
    /// # Errors
    /// As [`Socket::open`], and when the namespace cannot be entered.
    pub fn open_in(netns: impl AsFd) -> Result<Self, Error> {
        in_netns(netns, Self::open)?
    }

    /// How many messages that can change the kernel's state were sent.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.writes
    }

    /// Sends one request and waits for its acknowledgement. `flags` are [`PLAIN`], [`CREATE`], [`EXCLUSIVE`], [`REPLACE`] or
    /// any `NLM_F_*`; request and acknowledgement are added.
    ///
    /// # Errors
    /// The kernel's refusal, with errno and words; or a lost answer.
    pub fn request(&mut self, message: F::Message, flags: u16) -> Result<Vec<F::Message>, Error> {
        let what = F::describe(&message);
        let mut bytes = Bytes::new::<F>();
        let sequence = self.encode(message, flags | NLM_F_ACK, &mut bytes);
        self.send(bytes.as_slice(), &what)?;
        let mut replies = Vec::new();
        loop {
            let datagram = self.receive(&what)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let (number, _, reply, after) = split(rest, &what)?;
                rest = after;
                match reply {
                    // Of an earlier request whose answers were not all read.
                    _ if number != sequence => {}
                    Reply::Ack(outcome) => {
                        return outcome.map(|()| replies).map_err(|e| refused(what, e));
                    }
                    Reply::Message(bytes) => replies.push(decode::<F>(bytes, &what)?),
                    Reply::Done(_) | Reply::Nothing => {}
                }
            }
        }
    }

    /// Reads a complete list. A list that changed under the reading is read again.
    ///
    /// # Errors
    /// The kernel's refusal, a lost answer, an element that cannot be decoded: never a partial list.
    pub fn dump(&mut self, message: F::Message) -> Result<Vec<F::Message>, Error>
    where
        F::Message: Clone,
    {
        self.dump_where(message, |_| true)
    }

    /// The same of those elements, whole messages with their header, that `wanted` is true for: the others need not be decoded,
    /// which takes longer than all else.
    pub(crate) fn dump_where(
        &mut self,
        message: F::Message,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<F::Message>, Error>
    where
        F::Message: Clone,
    {
        for _ in 0..DUMP_TRIES {
            if let Some(list) = self.dump_once(message.clone(), &wanted)? {
                return Ok(list);
            }
        }
        Err(Error::Unsteady {
            what: F::describe(&message),
            tries: DUMP_TRIES,
        })
    }

    /// `None`: the list changed while it was read.
    fn dump_once(
        &mut self,
        message: F::Message,
        wanted: &impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Vec<F::Message>>, Error> {
        let what = F::describe(&message);
        let mut bytes = Bytes::new::<F>();
        let sequence = self.encode(message, NLM_F_DUMP, &mut bytes);
        self.send(bytes.as_slice(), &what)?;
        let (mut list, mut steady) = (Vec::new(), true);
        loop {
            let datagram = self.receive(&what)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let (number, flags, reply, after) = split(rest, &what)?;
                rest = after;
                if number != sequence {
                    continue;
                }
                steady &= flags & NLM_F_DUMP_INTR == 0;
                match reply {
                    Reply::Message(bytes) if !wanted(bytes) => {}
                    Reply::Message(bytes) => list.push(decode::<F>(bytes, &what)?),
                    Reply::Done(Ok(())) => return Ok(steady.then_some(list)),
                    Reply::Done(Err((Errno::EINTR, _))) => return Ok(None),
                    Reply::Done(Err(error)) | Reply::Ack(Err(error)) => {
                        return Err(refused(what, error));
                    }
                    Reply::Ack(Ok(())) | Reply::Nothing => {}
                }
            }
        }
    }

    /// Sends many requests with few system calls; the kernel works through them in order and does not stop at a refused one.
    /// The result has one entry per request, in order.
    ///
    /// # Errors
    /// Only when sending or receiving fails as such; then it is unknown which requests were carried out.
    pub fn batch(
        &mut self,
        requests: impl IntoIterator<Item = (F::Message, u16)>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let (mut results, mut bytes, mut sent) = (Vec::new(), Bytes::new::<F>(), Vec::new());
        for (message, flags) in requests {
            let what = F::describe(&message);
            sent.push((self.encode(message, flags | NLM_F_ACK, &mut bytes), what));
            if sent.len() == BATCH_MESSAGES || bytes.as_slice().len() >= BATCH_BYTES {
                self.exchange(bytes.as_slice(), &mut sent, &mut results)?;
                bytes.clear();
            }
        }
        if !sent.is_empty() {
            self.exchange(bytes.as_slice(), &mut sent, &mut results)?;
        }
        Ok(results)
    }

    /// Sends requests of which all are carried out or none, between the two messages that open and close such a batch.
    ///
    /// # Errors
    /// The kernel's first refusal: nothing has changed then. Or a lost answer: all was carried out, or nothing.
    pub(crate) fn atomic(
        &mut self,
        begin: F::Message,
        requests: Vec<(F::Message, u16)>,
        end: F::Message,
    ) -> Result<(), Error> {
        let whole = F::describe(&begin);
        let mut bytes = Bytes::new::<F>();
        // Neither end asks for an acknowledgement: kernels before 6.10 give none. One comes all the same where the batch is refused.
        let opened = self.encode(begin, PLAIN, &mut bytes);
        let mut waiting = Vec::with_capacity(requests.len());
        for (message, flags) in requests {
            let what = F::describe(&message);
            waiting.push((self.encode(message, flags | NLM_F_ACK, &mut bytes), what));
        }
        self.encode(end, PLAIN, &mut bytes);
        self.make_room(bytes.as_slice().len());
        self.send(bytes.as_slice(), &whole)?;
        let mut waiting = waiting.into_iter().peekable();
        while waiting.peek().is_some() {
            let datagram = self.receive(&whole)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let (number, _, reply, after) = split(rest, &whole)?;
                rest = after;
                let Reply::Ack(outcome) = reply else { continue };
                if number == opened {
                    outcome.map_err(|e| refused(whole.clone(), e))?;
                } else if let Some((_, what)) = waiting.next_if(|(of, _)| *of == number) {
                    outcome.map_err(|e| refused(what, e))?;
                }
            }
        }
        Ok(())
    }

    /// For what must be sent in one piece. The kernel's own limit stays where it may not be exceeded; then sending says so.
    fn make_room(&self, length: usize) {
        if length > BATCH_BYTES {
            let _ = setsockopt(&self.inner, sockopt::SndBufForce, &(2 * length));
        }
    }

    /// One piece of a batch: acknowledgements come in the order of the requests.
    fn exchange(
        &mut self,
        bytes: &[u8],
        sent: &mut Vec<(u32, String)>,
        results: &mut Vec<Result<(), Error>>,
    ) -> Result<(), Error> {
        self.send(bytes, "a batch")?;
        let mut waiting = sent.drain(..).peekable();
        while let Some((_, what)) = waiting.peek() {
            let datagram = self.receive(what)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let (number, _, reply, after) = split(rest, "a batch")?;
                rest = after;
                if let Reply::Ack(outcome) = reply
                    && let Some((_, what)) = waiting.next_if(|(sequence, _)| *sequence == number)
                {
                    results.push(outcome.map_err(|e| refused(what, e)));
                }
            }
        }
        Ok(())
    }

    /// Appends a message to `bytes`; gives its sequence number.
    fn encode(&mut self, message: F::Message, flags: u16, bytes: &mut Bytes) -> u32 {
        // Never 0: the kernel's own notifications have that number.
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        self.writes += usize::from(F::is_write(message.message_type()));
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        message.serialize(bytes.append(message.buffer_len().next_multiple_of(4)));
        self.sequence
    }

    fn send(&self, bytes: &[u8], what: &str) -> Result<(), Error> {
        match self.inner.send(bytes, 0) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(sent) => Err(Error::io(
                what,
                io::Error::other(format!("{sent} of {} bytes were sent", bytes.len())),
            )),
            Err(e) => Err(Error::io(what, e)),
        }
    }

    fn receive(&self, what: &str) -> Result<Bytes, Error> {
        let mut datagram = Bytes::with_capacity::<F>(DATAGRAM);
        loop {
            match self.inner.recv(&mut datagram.bytes, nix::libc::MSG_TRUNC) {
                Ok(length) if length > datagram.bytes.len() => {
                    let reason = format!(
                        "a datagram of {length} bytes, expected at most {}",
                        datagram.bytes.len()
                    );
                    return Err(Error::Decode {
                        what: what.to_owned(),
                        reason,
                    });
                }
                Ok(_) => return Ok(datagram),
                Err(e) => match Errno::from_raw(e.raw_os_error().unwrap_or_default()) {
                    Errno::EINTR => {}
                    Errno::ENOBUFS => return Err(self.overrun()),
                    Errno::EAGAIN => {
                        return Err(Error::Silent {
                            what: what.to_owned(),
                            seconds: ANSWER_SECONDS,
                        });
                    }
                    _ => return Err(Error::io(what, e)),
                },
            }
        }
    }

    /// Empties the receive buffer: while it is full the kernel drops the answers to later requests too.
    fn overrun(&self) -> Error {
        let mut datagram = Bytes::with_capacity::<F>(DATAGRAM);
        while self
            .inner
            .recv(&mut datagram.bytes, nix::libc::MSG_DONTWAIT)
            .is_ok()
        {
            datagram.clear();
        }
        Error::Overrun
    }
}

fn split<'a>(bytes: &'a [u8], what: &str) -> Result<(u32, u16, Reply<'a>, &'a [u8]), Error> {
    Reply::split(bytes).map_err(|reason| Error::Decode {
        what: what.to_owned(),
        reason,
    })
}

fn decode<F: Family>(bytes: &[u8], what: &str) -> Result<F::Message, Error> {
    let failed = |reason: String| Error::Decode {
        what: what.to_owned(),
        reason,
    };
    match NetlinkMessage::<F::Message>::deserialize(bytes)
        .map_err(|e| failed(e.to_string()))?
        .payload
    {
        NetlinkPayload::InnerMessage(message) => Ok(message),
        other => Err(failed(format!(
            "a control message of type {}",
            other.message_type()
        ))),
    }
}

fn refused(what: String, (errno, reason): (Errno, Option<String>)) -> Error {
    Error::Kernel {
        what,
        errno,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Route, RouteEntry};
    use netlink_packet_route::RouteNetlinkMessage;

    /// A full receive buffer is its own error, and what is left of the lost exchange is not taken for the next answer.
    #[test]
    fn lost_answers_are_an_error_and_the_socket_stays_in_step() {
        espalier_testnet::isolated(
            "socket::tests::lost_answers_are_an_error_and_the_socket_stays_in_step",
            || {
                let mut socket = Socket::<Route>::open().unwrap();
                setsockopt(&socket.inner, sockopt::RcvBuf, &2304).unwrap();
                let to = "10.9.0.0/16".parse().unwrap();
                let missing =
                    || RouteNetlinkMessage::DelRoute(RouteEntry::unicast(to, None, 1).message());
                let error = socket
                    .batch((0..200).map(|_| (missing(), PLAIN)))
                    .unwrap_err();
                assert!(matches!(error, Error::Overrun), "{error}");
                assert_eq!(socket.link_by_index(1).unwrap().unwrap().name, "lo");
            },
        );
    }
}
