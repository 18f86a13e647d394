use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use espalier_esp::wire::ecn;
use espalier_ike::Path;
use espalier_ike_io::Error;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike,
    SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{debug, info, warn};

use crate::several::Several;
use crate::tx::{Batch, To};

/// Bytes that may wait for the RX thread: some milliseconds at 10 Gbit/s.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Bytes on their way out.
const SEND_BUFFER: usize = 4 << 20;

/// The UDP port of ESP and IKE on all addresses, IPv4 and, where the kernel has it, IPv6; without waiting.
#[derive(Debug)]
pub struct Udp {
    socket: Socket,
    port: u16,
    dual_stack: bool,
}

/// One datagram, or several of one size and path that the kernel joined (`UDP_GRO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// Bytes of all.
    pub(crate) len: usize,
    /// Bytes of each but the last, which may be shorter.
    pub(crate) segment: usize,
    /// Of the outer header.
    pub(crate) ecn: u8,
    pub(crate) path: Option<Path>,
}

/// Receives from a [`Udp`]; holds the buffer for control messages.
pub(crate) struct Receiver<'u> {
    udp: &'u Udp,
    control: Vec<u8>,
}

impl Udp {
    /// Takes `port` (0: a free one) in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::PortBusy`], [`Error::PortDenied`], [`Error::Port`].
    pub fn bind(port: u16) -> Result<Self, Error> {
        let bound = match open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into(), false) {
            Err(error) if no_ipv6(&error) => {
                open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into(), false)
            }
            opened => opened,
        };
        let socket = bound.map_err(|cause| Error::from_bind(port, cause))?;
        Self::new(socket, port)
    }

    /// Takes `port` by `count` sockets (`SO_REUSEPORT`); by one where the kernel refuses more. Datagrams between two addresses and ports
    /// all come to the same one.
    ///
    /// # Errors
    /// Those of [`Udp::bind`]: nobody else may have the port.
    pub fn bind_several(port: u16, count: usize) -> Result<Several<Self>, Error> {
        let first = Self::bind(port)?;
        match (count > 1).then(|| first.beside(count - 1)) {
            None => Ok(Several::one(first)),
            Some(Ok(more)) => Ok(Several::first_of(first, more)),
            Some(Err(cause)) => {
                warn!(%cause, "one socket receives: the kernel does not share the port among several");
                first.socket.set_reuse_port(false).unwrap_or_default();
                Ok(Several::one(first))
            }
        }
    }

    /// So many sockets with the same port. It was bound alone, so that nobody else's is shared, and lets these in from now on.
    fn beside(&self, count: usize) -> io::Result<Vec<Self>> {
        self.socket.set_reuse_port(true)?;
        let local = self.socket.local_addr()?;
        let address = local.as_socket().ok_or(ErrorKind::InvalidData)?;
        let another = |_| {
            Ok(Self {
                socket: open(local.domain(), address, true)?,
                ..*self
            })
        };
        (0..count).map(another).collect()
    }

    /// The socket that another process bound, by its descriptor, with its options and the datagrams that wait in it.
    ///
    /// # Errors
    /// [`Error::Port`] when it is none.
    pub fn resume(descriptor: OwnedFd) -> Result<Self, Error> {
        Self::new(descriptor.into(), 0)
    }

    fn new(socket: Socket, port: u16) -> Result<Self, Error> {
        let local = socket
            .local_addr()
            .map_err(|cause| Error::Port { port, cause })?
            .as_socket();
        let udp = Self {
            socket,
            port: local.map_or(port, |local| local.port()),
            dual_stack: local.is_some_and(|local| local.is_ipv6()),
        };
        info!(
            port = udp.port,
            dual_stack = udp.dual_stack,
            "UDP port is open"
        );
        Ok(udp)
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn receiver(&self) -> Receiver<'_> {
        Receiver {
            udp: self,
            control: nix::cmsg_space!(in_pktinfo, in6_pktinfo, i32, u8, i32),
        }
    }

    /// Sends a datagram from an address of this host.
    ///
    /// # Errors
    /// Those of the socket, [`io::ErrorKind::WouldBlock`] among them.
    pub(crate) fn send(&self, from: IpAddr, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let batch = Batch {
            from,
            to: To::Udp(to),
            ecn: ecn::NOT_ECT,
            segment: datagram.len(),
            bytes: datagram,
        };
        self.send_all(to, &batch)
    }

    /// Sends the datagrams of a batch to this address and port by one system call (`UDP_SEGMENT`).
    ///
    /// # Errors
    /// Those of the socket, [`io::ErrorKind::WouldBlock`] among them. `EIO`, `EINVAL` and `EMSGSIZE` also where several datagrams cannot
    /// be sent at once on this path, but one can: the device has no checksums to offer, or a datagram needs fragments.
    pub(crate) fn send_all(&self, to: SocketAddr, batch: &Batch<'_>) -> io::Result<()> {
        let segment = u16::try_from(batch.segment).unwrap_or(u16::MAX);
        let segment = (batch.count() > 1).then_some(&segment);
        let marked = (batch.ecn != ecn::NOT_ECT).then_some(batch.ecn);
        match (batch.from, to) {
            (IpAddr::V4(from), SocketAddr::V4(to)) if !self.dual_stack => {
                let unset = in_addr { s_addr: 0 };
                let info = in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr {
                        s_addr: from.to_bits().to_be(),
                    },
                    ipi_addr: unset,
                };
                let info = ControlMessage::Ipv4PacketInfo(&info);
                self.send_with(
                    info,
                    segment,
                    marked,
                    true,
                    batch.bytes,
                    &SockaddrIn::from(to),
                )
            }
            (from, to) => {
                let v4 = to.ip().to_canonical().is_ipv4();
                let (from, to) = (
                    mapped(from),
                    SocketAddrV6::new(mapped(to.ip()), to.port(), 0, 0),
                );
                let info = in6_pktinfo {
                    ipi6_addr: in6_addr {
                        s6_addr: from.octets(),
                    },
                    ipi6_ifindex: 0,
                };
                let info = ControlMessage::Ipv6PacketInfo(&info);
                self.send_with(
                    info,
                    segment,
                    marked,
                    v4,
                    batch.bytes,
                    &SockaddrIn6::from(to),
                )
            }
        }
    }

    /// One call with the control messages that are needed. (Their buffer is the one allocation of a batch: nix makes it.)
    fn send_with(
        &self,
        info: ControlMessage<'_>,
        segment: Option<&u16>,
        ecn: Option<u8>,
        v4: bool,
        bytes: &[u8],
        to: &impl SockaddrLike,
    ) -> io::Result<()> {
        let (tos, class) = (ecn.unwrap_or_default(), i32::from(ecn.unwrap_or_default()));
        let mark = if v4 {
            ControlMessage::Ipv4Tos(&tos)
        } else {
            ControlMessage::Ipv6TClass(&class)
        };
        let parts = [IoSlice::new(bytes)];
        let call = |control: &[ControlMessage<'_>]| {
            let fd = self.socket.as_raw_fd();
            sendmsg(fd, &parts, control, MsgFlags::empty(), Some(to))
        };
        match (segment, ecn) {
            (None, None) => call(&[info]),
            (None, Some(_)) => call(&[info, mark]),
            (Some(segment), None) => call(&[info, ControlMessage::UdpGsoSegments(segment)]),
            (Some(segment), Some(_)) => {
                call(&[info, ControlMessage::UdpGsoSegments(segment), mark])
            }
        }?;
        Ok(())
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Receiver<'_> {
    /// What comes next.
    ///
    /// # Errors
    /// Those of the socket, [`io::ErrorKind::WouldBlock`] among them.
    pub(crate) fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut parts = [IoSliceMut::new(buffer)];
        let fd = self.udp.socket.as_raw_fd();
        let message =
            recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut self.control), MsgFlags::empty())?;
        let mut received = Received {
            len: message.bytes,
            segment: message.bytes,
            ecn: ecn::NOT_ECT,
            path: None,
        };
        let mut local = None;
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    local = Some(Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr)).into());
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical());
                }
                ControlMessageOwned::UdpGroSegments(segment) => {
                    received.segment = usize::try_from(segment).unwrap_or(message.bytes);
                }
                ControlMessageOwned::Ipv4Tos(tos) => received.ecn = tos & 3,
                ControlMessageOwned::Ipv6TClass(class) => received.ecn = class as u8 & 3,
                _ => {}
            }
        }
        let remote = message.address.as_ref().and_then(remote);
        received.path = local.zip(remote).map(|(local, remote)| Path {
            local: SocketAddr::new(local, self.udp.port),
            remote,
        });
        Ok(received)
    }
}

fn remote(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    let v6 = address.as_sockaddr_in6()?;
    Some(SocketAddr::new(v6.ip().to_canonical(), v6.port()))
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn open(domain: Domain, address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    // Best effort, all of it: without, datagrams come one by one, and congestion marks of the underlay are not seen.
    let v4 = setsockopt(&socket, sockopt::IpRecvTos, &true);
    let v6 = (domain == Domain::IPV6).then(|| setsockopt(&socket, sockopt::Ipv6RecvTClass, &true));
    let joined = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    debug!(?v4, ?v6, ?joined, "UDP offloads");
    enlarge(&socket)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Beyond the system's limit only with CAP_NET_ADMIN; else as much as the limit gives.
pub(super) fn enlarge(socket: &Socket) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
        socket.set_send_buffer_size(SEND_BUFFER)?;
    }
    Ok(())
}

fn no_ipv6(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::io::{Interest, stopper};

    fn echo(udp: &Udp, local: &str, remote: &str) {
        let stranger = UdpSocket::bind((remote, 0)).unwrap();
        let local = SocketAddr::new(local.parse().unwrap(), udp.port());
        stranger.send_to(b"request", local).unwrap();
        let (_stopper, stop) = stopper().unwrap();
        stop.wait(udp.as_fd(), Interest::Readable).unwrap();
        let mut buffer = [0; 64];
        let received = udp.receiver().recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..received.len], b"request");
        assert_eq!(
            received.path,
            Some(Path {
                local,
                remote: stranger.local_addr().unwrap()
            })
        );
        udp.send(local.ip(), stranger.local_addr().unwrap(), b"answer")
            .unwrap();
        let (len, from) = stranger.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"answer"[..], local));
    }

    #[test]
    fn a_path_is_known_and_kept_on_every_address() {
        let udp = Udp::bind(0).unwrap();
        echo(&udp, "127.0.0.1", "127.0.0.1");
        echo(&udp, "127.3.2.1", "127.0.0.9");
        if udp.dual_stack && UdpSocket::bind("[::1]:0").is_ok() {
            echo(&udp, "::1", "::1");
        }
    }

    /// Sends three datagrams by one call; what came, joined or one by one.
    fn batch(udp: &Udp, other: &Udp, from: &str, to: &str) -> (Vec<Vec<u8>>, Vec<u8>) {
        let bytes = [vec![1; 100], vec![2; 100], vec![3; 50]].concat();
        let to = SocketAddr::new(to.parse().unwrap(), other.port());
        let batch = Batch {
            from: from.parse().unwrap(),
            to: To::Udp(to),
            ecn: ecn::ECT_0,
            segment: 100,
            bytes: &bytes,
        };
        udp.send_all(to, &batch).unwrap();
        let (_stopper, stop) = stopper().unwrap();
        let (mut datagrams, mut marks) = (Vec::new(), Vec::new());
        let mut receiver = other.receiver();
        while datagrams.len() < 3 {
            stop.wait(other.as_fd(), Interest::Readable).unwrap();
            let mut buffer = [0; 4096];
            let received = receiver.recv(&mut buffer).unwrap();
            let joined = buffer[..received.len].chunks(received.segment);
            datagrams.extend(joined.map(<[u8]>::to_vec));
            marks.push(received.ecn);
        }
        (datagrams, marks)
    }

    #[test]
    fn a_batch_is_its_datagrams_with_their_mark() {
        let (udp, other) = (Udp::bind(0).unwrap(), Udp::bind(0).unwrap());
        let mut paths = vec![("127.0.0.1", "127.0.0.2")];
        if udp.dual_stack && UdpSocket::bind("[::1]:0").is_ok() {
            paths.push(("::1", "::1"));
        }
        for (from, to) in paths {
            let (datagrams, marks) = batch(&udp, &other, from, to);
            assert_eq!(datagrams, [vec![1; 100], vec![2; 100], vec![3; 50]], "{to}");
            assert!(marks.iter().all(|mark| *mark == ecn::ECT_0), "{to}");
        }
    }

    #[test]
    fn ipv4_alone_works_where_there_is_no_ipv6() {
        let socket = open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, 0).into(), false).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        echo(
            &Udp {
                socket,
                port,
                dual_stack: false,
            },
            "127.3.2.1",
            "127.0.0.9",
        );
    }

    #[test]
    fn a_busy_port_is_named_with_a_remedy() {
        let holder = Udp::bind(0).unwrap();
        let error = Udp::bind(holder.port()).unwrap_err();
        assert!(matches!(error, Error::PortBusy(port) if port == holder.port()));
        assert!(error.to_string().contains("charon"), "{error}");
    }

    #[test]
    fn a_sender_keeps_to_one_of_several_sockets() {
        let several = Udp::bind_several(0, 4).unwrap();
        assert_eq!(several.count(), 4);
        let port = several.first().port();
        let mut used = [0; 4];
        for _ in 0..64 {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..3 {
                sender.send_to(b"datagram", ("127.0.0.2", port)).unwrap();
            }
            let mut buffer = [0; 64];
            let came = several.iter().map(|udp| {
                let mut receiver = udp.receiver();
                std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count()
            });
            let came: Vec<_> = came.collect();
            let at = came.iter().position(|count| *count > 0).unwrap();
            assert_eq!(came[at], 3, "{came:?}");
            used[at] += 1;
        }
        assert!(used.iter().all(|senders| *senders > 0), "{used:?}");
        // Nobody else is let in.
        assert!(matches!(Udp::bind(port), Err(Error::PortBusy(_))));
        assert!(matches!(
            Udp::bind_several(port, 2),
            Err(Error::PortBusy(_))
        ));
        assert_eq!(Udp::bind_several(0, 1).unwrap().count(), 1);
    }

    #[test]
    fn without_anything_to_read_it_does_not_wait() {
        let udp = Udp::bind(0).unwrap();
        let error = udp.receiver().recv(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
