//! The socket of the multicast groups.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_xfrm::constants::{XFRMNLGRP_ACQUIRE, XFRMNLGRP_EXPIRE};
use netlink_sys::SocketAddr;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::error::Error;
use crate::notice::{self, Notice};

/// Some 20,000 messages: all SAs of a large mesh may have their first packet at once.
const RECEIVE_BUFFER: usize = 8 << 20;
const DATAGRAM: usize = 64 << 10;

/// Hears what the kernel says from the moment it is opened.
pub(crate) struct Listener {
    socket: netlink_sys::Socket,
    buffer: Vec<u8>,
}

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// These.
    Notices(Vec<Notice>),
    /// The buffer was full: an unknown number is lost.
    Lost,
    /// Nothing for now.
    Nothing,
}

impl Listener {
    pub(crate) fn open() -> Result<Self, Error> {
        let failed = |e: io::Error| Error::io("listening to the kernel's XFRM events", e);
        let mut socket =
            netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_XFRM).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER))
            .map_err(|errno| failed(errno.into()))?;
        socket.set_non_blocking(true).map_err(failed)?;
        for group in [XFRMNLGRP_ACQUIRE, XFRMNLGRP_EXPIRE] {
            socket.add_membership(group).map_err(failed)?;
        }
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// The next datagram; does not wait.
    pub(crate) fn hear(&mut self) -> Result<Heard, Error> {
        self.buffer.clear();
        match self.socket.recv_from(&mut self.buffer, 0) {
            Ok((_, sender)) if sender == from_kernel(&sender) => {
                Ok(Heard::Notices(notice::parse(&self.buffer)))
            }
            Ok(_) => Ok(Heard::Notices(Vec::new())),
            Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
                Errno::EAGAIN => Ok(Heard::Nothing),
                Errno::EINTR => Ok(Heard::Notices(Vec::new())),
                Errno::ENOBUFS => Ok(Heard::Lost),
                _ => Err(Error::io("listening to the kernel's XFRM events", error)),
            },
        }
    }
}

/// The kernel's port number is 0; other processes may not pretend to be it.
fn from_kernel(sender: &SocketAddr) -> SocketAddr {
    SocketAddr::new(0, sender.multicast_groups())
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
