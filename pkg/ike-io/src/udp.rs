//! IKE on a UDP port of the agent's own: one socket per family for all addresses, each datagram with the address it was
//! sent to, and sent from the address that its path says.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use espalier_ike::Path;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
    recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::Error;

/// Bytes waiting at most: all peers of a large mesh may start at once (charon's default overflows then).
const RECEIVE_BUFFER: usize = 4 << 20;
/// Longest UDP payload.
const MAX_DATAGRAM: usize = 65_535;

/// Both families of one port. IPv6 is left out where the kernel has none.
#[derive(Debug)]
pub struct UdpIke {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
    port: u16,
    buffers: [Vec<u8>; 2],
}

impl UdpIke {
    /// Takes `port` on all addresses. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::PortBusy`], [`Error::PortDenied`], [`Error::Port`].
    pub fn bind(port: u16) -> Result<Self, Error> {
        let v4 = open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into());
        let v4 = v4.map_err(|cause| Error::from_bind(port, cause))?;
        let v6 = match open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()) {
            Ok(socket) => Some(socket),
            Err(error) if no_ipv6(&error) => None,
            Err(cause) => return Err(Error::from_bind(port, cause)),
        };
        Ok(Self {
            v4,
            v6,
            port,
            buffers: [vec![0; MAX_DATAGRAM], vec![0; MAX_DATAGRAM]],
        })
    }

    /// Goes on with the [`Self::sockets`] of an earlier process, in their order, and with what waits in them. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Port`] when they are not such sockets.
    pub fn resume(sockets: Vec<OwnedFd>) -> Result<Self, Error> {
        let (mut v4, mut v6, mut port) = (None, None, 0);
        let failed = |cause| Error::Port { port: 0, cause };
        for socket in sockets.into_iter().map(Socket::from) {
            socket.set_nonblocking(true).map_err(failed)?;
            let local = socket.local_addr().map_err(failed)?.as_socket();
            let family = match local {
                Some(SocketAddr::V4(_)) => &mut v4,
                _ => &mut v6,
            };
            port = local.map_or(port, |local| local.port());
            *family = Some(UdpSocket::from_std(socket.into()).map_err(failed)?);
        }
        let none = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                "no IPv4 socket among those handed over",
            )
        };
        Ok(Self {
            v4: v4.ok_or_else(|| failed(none()))?,
            v6,
            port,
            buffers: [vec![0; MAX_DATAGRAM], vec![0; MAX_DATAGRAM]],
        })
    }

    /// The sockets themselves, to set options on them and to hand them over.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sockets = [Some(&self.v4), self.v6.as_ref()];
        sockets.into_iter().flatten().map(|socket| socket.as_fd())
    }

    /// The next datagram. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// Those of the sockets.
    pub async fn recv(&mut self) -> io::Result<(Path, Vec<u8>)> {
        let [for_v4, for_v6] = &mut self.buffers;
        tokio::select! {
            message = recv(&self.v4, self.port, for_v4) => message,
            message = recv_if_any(self.v6.as_ref(), self.port, for_v6) => message,
        }
    }

    /// Sends `message` from `path`'s local address, which must be one of this host.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn send(&self, path: &Path, message: &[u8]) -> io::Result<()> {
        let socket = match path.local.ip() {
            IpAddr::V4(_) => Some(&self.v4),
            IpAddr::V6(_) => self.v6.as_ref(),
        };
        let socket = socket
            .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "this kernel has no IPv6"))?;
        socket
            .async_io(Interest::WRITABLE, || {
                send_from(socket.as_raw_fd(), path, message)
            })
            .await
    }
}

fn open(domain: Domain, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    // Beyond the system's limit only with CAP_NET_ADMIN; else as much as the limit gives.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn no_ipv6(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}

async fn recv_if_any(
    socket: Option<&UdpSocket>,
    port: u16,
    buffer: &mut [u8],
) -> io::Result<(Path, Vec<u8>)> {
    match socket {
        Some(socket) => recv(socket, port, buffer).await,
        None => std::future::pending().await,
    }
}

async fn recv(socket: &UdpSocket, port: u16, buffer: &mut [u8]) -> io::Result<(Path, Vec<u8>)> {
    loop {
        let received = socket
            .async_io(Interest::READABLE, || recv_at(socket.as_raw_fd(), buffer))
            .await?;
        if let Some((local, remote, length)) = received {
            let message = buffer.get(..length).unwrap_or_default().to_vec();
            return Ok((
                Path {
                    local: SocketAddr::new(local, port),
                    remote,
                },
                message,
            ));
        }
    }
}

/// Where a datagram was sent to, where it came from, its length. `None` when the kernel did not say, which it always does.
fn recv_at(socket: RawFd, buffer: &mut [u8]) -> io::Result<Option<(IpAddr, SocketAddr, usize)>> {
    let mut control = nix::cmsg_space!(in_pktinfo, in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket, &mut parts, Some(&mut control), MsgFlags::empty())?;
    let local = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::V4(Ipv4Addr::from(
            u32::from_be(info.ipi_addr.s_addr),
        ))),
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
        }
        _ => None,
    });
    let remote = message.address.and_then(|address| remote(&address));
    Ok(local
        .zip(remote)
        .map(|(local, remote)| (local, remote, message.bytes)))
}

fn remote(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| {
        address
            .as_sockaddr_in6()
            .map(|address| SocketAddr::V6((*address).into()))
    })
}

fn send_from(socket: RawFd, path: &Path, message: &[u8]) -> io::Result<()> {
    let parts = [IoSlice::new(message)];
    match (path.local.ip(), path.remote) {
        (IpAddr::V4(local), SocketAddr::V4(remote)) => {
            let from = in_addr {
                s_addr: u32::from(local).to_be(),
            };
            let info = in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: from,
                ipi_addr: in_addr { s_addr: 0 },
            };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(
                socket,
                &parts,
                &control,
                MsgFlags::empty(),
                Some(&SockaddrIn::from(remote)),
            )?;
        }
        (IpAddr::V6(local), SocketAddr::V6(remote)) => {
            let info = in6_pktinfo {
                ipi6_addr: in6_addr {
                    s6_addr: local.octets(),
                },
                ipi6_ifindex: 0,
            };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(
                socket,
                &parts,
                &control,
                MsgFlags::empty(),
                Some(&SockaddrIn6::from(remote)),
            )?;
        }
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "local and remote address are of different families",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ends on one port of two loopback addresses cannot be had with wildcard sockets: the other end is a plain socket.
    fn plain(address: &str) -> (std::net::UdpSocket, SocketAddr) {
        let socket = std::net::UdpSocket::bind(address).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn bind_free() -> UdpIke {
        loop {
            let (probe, address) = plain("0.0.0.0:0");
            drop(probe);
            if let Ok(udp) = UdpIke::bind(address.port()) {
                return udp;
            }
        }
    }

    async fn echo(local: &str, peer: &str) {
        let mut udp = bind_free();
        let (peer, remote) = plain(peer);
        let local = SocketAddr::new(local.parse().unwrap(), udp.port);
        peer.send_to(b"request", local).unwrap();
        let (path, message) = udp.recv().await.unwrap();
        assert_eq!((path, &*message), (Path { local, remote }, &b"request"[..]));
        udp.send(&path, b"response").await.unwrap();
        let mut buffer = [0; 64];
        let (length, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"response"[..], local));
    }

    #[tokio::test]
    async fn answers_leave_from_the_address_that_was_asked() {
        echo("127.0.0.1", "127.0.0.1:0").await;
        echo("127.9.9.9", "127.0.0.1:0").await;
    }

    #[tokio::test]
    async fn a_successor_goes_on_with_the_sockets_and_what_waits_in_them() {
        let old = bind_free();
        let (peer, remote) = plain("127.0.0.1:0");
        peer.send_to(b"waits", ("127.0.0.1", old.port)).unwrap();
        let clone = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
        let same: Vec<_> = old.sockets().map(clone).collect();
        let port = old.port;
        drop(old);
        let mut new = UdpIke::resume(same).unwrap();
        let (path, message) = new.recv().await.unwrap();
        assert_eq!(
            (message, path.remote, path.local.port()),
            (b"waits".to_vec(), remote, port)
        );
        assert!(UdpIke::resume(Vec::new()).is_err());
    }

    #[tokio::test]
    async fn ipv6_is_served_where_there_is_some() {
        if std::net::UdpSocket::bind("[::1]:0").is_ok() {
            echo("::1", "[::1]:0").await;
        } else {
            assert!(
                bind_free().v6.is_none() || std::path::Path::new("/proc/net/if_inet6").exists()
            );
        }
    }

    #[tokio::test]
    async fn a_port_held_on_one_address_only_is_busy_too() {
        let (_daemon, address) = plain("127.0.0.1:0");
        let error = UdpIke::bind(address.port()).unwrap_err();
        assert!(
            matches!(error, Error::PortBusy(port) if port == address.port()),
            "{error}"
        );
    }
}
