//! What is sent, and what arrives.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::path::{End, Site};

/// A path passes packets after this, or never.
const START: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(100);
/// After the start of a stream, before anything counts.
const WARM_UP: Duration = Duration::from_millis(500);
/// Bytes of one write.
const CHUNK: usize = 128 << 10;
const PINGS: usize = 1000;
const FLOOD_PORT: u16 = 7001;
const STREAM_PORT: u16 = 7002;

/// What streams carried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes {
    /// From the first to the last one.
    pub(crate) total: f64,
    /// While nothing began or ended.
    pub(crate) per_second: f64,
}

/// Round trip times, microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Waits until a datagram gets there.
pub(crate) fn arrive([a, b]: [&End; 2]) -> Result<()> {
    let sender = a.netns.run(|| UdpSocket::bind((a.pod, 0)))??;
    let receiver = b.netns.run(|| UdpSocket::bind((b.pod, FLOOD_PORT)))??;
    receiver.set_read_timeout(Some(TICK))?;
    let deadline = Instant::now() + START;
    loop {
        // There may be no route yet.
        let _ = sender.send_to(b"hello", (b.pod, FLOOD_PORT));
        if receiver.recv(&mut [0; 16]).is_ok() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no packet gets through");
    }
}

/// A stream from the first to the second of each pair, all at once.
pub(crate) fn tcp(pairs: &[[&End; 2]], seconds: f64) -> Result<Bytes> {
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    for pair in pairs {
        let (from, to) = connected(*pair)?;
        sent.push(from);
        received.push(to);
    }
    let (count, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let per_second = thread::scope(|scope| {
        for stream in &received {
            scope.spawn(|| read_all(stream, &count));
        }
        for stream in &sent {
            scope.spawn(|| write_until(stream, &stop));
        }
        rate(&count, &stop, seconds)
    });
    let total = count.load(Ordering::Relaxed) as f64;
    ensure!(per_second > 0.0, "the streams stand still");
    Ok(Bytes { total, per_second })
}

fn connected([a, b]: [&End; 2]) -> Result<(TcpStream, TcpStream)> {
    let to = SocketAddr::from((b.pod, STREAM_PORT));
    let listener = b.netns.run(|| TcpListener::bind(to))??;
    let sent = a.netns.run(|| TcpStream::connect_timeout(&to, START))??;
    let (received, _) = listener.accept()?;
    // A path that passes small packets only must not hang who measures it.
    sent.set_write_timeout(Some(START))?;
    received.set_read_timeout(Some(START))?;
    Ok((sent, received))
}

fn read_all(mut stream: &TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        count.fetch_add(length as u64, Ordering::Relaxed);
    }
}

fn write_until(mut stream: &TcpStream, stop: &AtomicBool) {
    let buffer = vec![0x5a; CHUNK];
    while !stop.load(Ordering::Relaxed) && stream.write_all(&buffer).is_ok() {}
    // The reader ends when everything is there.
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

/// Datagrams of 64 bytes, as many as go; how many arrive each second.
pub(crate) fn flood(site: &Site, seconds: f64) -> Result<f64> {
    let [a, b] = &site.ends;
    let sender = a.netns.run(|| UdpSocket::bind((a.pod, 0)))??;
    sender.connect((b.pod, FLOOD_PORT))?;
    let receiver = b.netns.run(|| UdpSocket::bind((b.pod, FLOOD_PORT)))??;
    receiver.set_read_timeout(Some(TICK))?;
    let (count, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let per_second = thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 128];
            while !stop.load(Ordering::Relaxed) {
                if receiver.recv(&mut buffer).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // What a full queue does not take is lost like any other.
                let _ = sender.send(&[0x5a; 64]);
            }
        });
        rate(&count, &stop, seconds)
    });
    ensure!(per_second > 0.0, "no datagram arrives");
    Ok(per_second)
}

/// By how much `count` grows in a second, once it has run for a while; then whoever looks at `stop` ends.
fn rate(count: &AtomicU64, stop: &AtomicBool, seconds: f64) -> f64 {
    let total = || count.load(Ordering::Relaxed) as f64;
    thread::sleep(WARM_UP);
    let (before, began) = (total(), Instant::now());
    thread::sleep(Duration::from_secs_f64(seconds));
    let rate = (total() - before) / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    rate
}

/// ICMP echo, one after the other; the other end's kernel answers.
pub(crate) fn ping(site: &Site) -> Result<Times> {
    let [a, b] = &site.ends;
    let open = || Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4));
    let mut socket = a.netns.run(open)?.context("a socket for ICMP")?;
    socket.bind(&SocketAddr::from((a.pod, 0)).into())?;
    socket.connect(&SocketAddr::from((b.pod, 0)).into())?;
    socket.set_read_timeout(Some(TICK * 10))?;
    let mut times = Vec::with_capacity(PINGS);
    for number in 0..PINGS {
        let [high, low] = (number as u16).to_be_bytes();
        let mut request = [0; 64];
        request[0] = 8;
        request[6..8].copy_from_slice(&[high, low]);
        let began = Instant::now();
        socket.send(&request)?;
        let mut answer = [0; 128];
        match socket.read(&mut answer) {
            Ok(_) if answer[6..8] == [high, low] => times.push(began.elapsed()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(times.len() > PINGS * 9 / 10, "{} echoes", times.len());
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e6;
    Ok(Times {
        p50: at(50),
        p99: at(99),
    })
}

/// One byte there and back over TCP; how often each second.
pub(crate) fn request_response(site: &Site, seconds: f64) -> Result<f64> {
    let (sent, received) = connected(site.pair())?;
    let (mut client, mut server) = (&sent, &received);
    for stream in [client, server] {
        stream.set_nodelay(true)?;
    }
    let mut count = 0;
    let took = thread::scope(|scope| {
        scope.spawn(move || {
            let mut byte = [0];
            while let Ok(1) = server.read(&mut byte) {
                if server.write_all(&byte).is_err() {
                    break;
                }
            }
        });
        let began = Instant::now();
        let mut byte = [7];
        while began.elapsed().as_secs_f64() < seconds {
            client.write_all(&byte)?;
            client.read_exact(&mut byte)?;
            count += 1;
        }
        let took = began.elapsed().as_secs_f64();
        client.shutdown(std::net::Shutdown::Both)?;
        anyhow::Ok(took)
    })?;
    Ok(f64::from(count) / took)
}
