//! Descriptors across an exec: standard input of the new program is a socket in which one message waits, and the kernel keeps
//! what a message carries (`SCM_RIGHTS`). So nothing needs a number, everything else is closed on exec, and none of it is unsafe.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::dup2_stdin;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Most descriptors in one message (`SCM_MAX_FD` of Linux).
const MOST: usize = 253;
const SPACE: usize = rustix::cmsg_space!(ScmRights(MOST));
const GREETING: &[u8] = b"espalier";

/// A message of ours is on standard input; it was what it was again when this is dropped.
#[derive(Debug)]
pub struct Offer {
    before: OwnedFd,
}

impl Offer {
    /// Puts `memfd` and `descriptors` on standard input, for the program that this process executes next.
    ///
    /// # Errors
    /// Those of the kernel; standard input is as it was then.
    pub fn new(memfd: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let before = io::stdin().as_fd().try_clone_to_owned()?;
        let socket = message(before.as_fd(), memfd, descriptors)?;
        dup2_stdin(&socket)?;
        Ok(Self { before })
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        // It was open a moment ago.
        let _ = dup2_stdin(&self.before);
    }
}

/// The same for a child: a socket to be its standard input.
///
/// # Errors
/// Those of the kernel.
pub fn for_child(memfd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    message(io::stdin().as_fd(), memfd, &[])
}

/// What was found on standard input.
#[derive(Debug)]
pub struct Taken {
    /// With the state.
    pub memfd: OwnedFd,
    /// The others, in their order.
    pub descriptors: Vec<OwnedFd>,
}

/// Takes the message from standard input, which becomes what it was for the program before.
///
/// # Errors
/// There is none: this program was not executed by a data plane.
pub fn take() -> io::Result<Taken> {
    let mut found = receive(io::stdin().as_fd())?.into_iter();
    let (Some(before), Some(memfd)) = (found.next(), found.next()) else {
        return Err(none("expected two descriptors or more"));
    };
    dup2_stdin(&before)?;
    Ok(Taken {
        memfd,
        descriptors: found.collect(),
    })
}

fn none(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// The end of a socket pair in which a message waits.
fn message(
    stdin: BorrowedFd<'_>,
    memfd: BorrowedFd<'_>,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<OwnedFd> {
    let kind = SocketType::SEQPACKET;
    let (reads, writes) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    let all = [&[stdin, memfd], descriptors].concat();
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&all)) {
        return Err(none("too many descriptors for one message"));
    }
    let parts = [IoSlice::new(GREETING)];
    sendmsg(&writes, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(reads)
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut greeting = [0; GREETING.len()];
    let mut parts = [IoSliceMut::new(&mut greeting)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let length = recvmsg(socket, &mut parts, &mut control, flags)?.bytes;
    let mut found = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            found.extend(descriptors);
        }
    }
    if greeting.get(..length) != Some(GREETING) {
        return Err(none("another message than a data plane's"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn what_a_message_carries_is_there_when_the_sender_is_gone() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"contents").unwrap();
        file.rewind().unwrap();
        let null = File::open("/dev/null").unwrap();
        let socket = message(null.as_fd(), null.as_fd(), &[file.as_fd()]).unwrap();
        drop(file);
        let mut found = receive(socket.as_fd()).unwrap();
        assert_eq!(found.len(), 3);
        let mut text = String::new();
        let last = found.pop().unwrap();
        File::from(last).read_to_string(&mut text).unwrap();
        assert_eq!(text, "contents");
        assert!(receive(socket.as_fd()).is_err(), "once");
    }

    #[test]
    fn what_is_no_socket_or_has_another_message_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert!(receive(null.as_fd()).is_err());
        let kind = SocketType::SEQPACKET;
        let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
        let (reads, writes) = pair.unwrap();
        rustix::net::send(&writes, b"something", SendFlags::empty()).unwrap();
        assert!(receive(reads.as_fd()).is_err());
        let many = vec![null.as_fd(); MOST + 1];
        assert!(message(null.as_fd(), null.as_fd(), &many).is_err());
    }
}
