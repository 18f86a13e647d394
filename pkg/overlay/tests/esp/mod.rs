//! States by iproute2, and flows that count.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    fs,
    io::Read,
    net::UdpSocket,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use espalier_overlay::{Framing, Protect};
use espalier_testnet::{Netns, Process};

use crate::common::{Node, underlay, underlay6};

/// What the states do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suite {
    Esp,
    EspInUdp,
    Ah,
}

/// Tag of the states of a pair, the same at both ends.
fn reqid(one: u8, other: u8) -> u32 {
    0x4553_0000 | u32::from(one.min(other)) << 8 | u32::from(one.max(other))
}

/// Of the state that goes from one node to another.
pub(crate) fn spi(from: u8, to: u8, epoch: u32) -> u32 {
    0xc000_0000 | u32::from(from) << 16 | u32::from(to) << 8 | epoch
}

/// What a node's policy says of its peer.
pub(crate) fn protect(own: u8, other: u8, suite: Suite, epoch: u32) -> Protect {
    Protect {
        reqid: reqid(own, other),
        spi: Some(spi(own, other, epoch)),
        ah: suite == Suite::Ah,
    }
}

/// A socket that takes ESP in UDP for the kernel: `espalier-dataplane` holds it.
pub(crate) fn open_udp(node: &Node) -> Process {
    // UDP_ENCAP_ESPINUDP; unsafe in Rust.
    let program = "import socket,time\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n\
         s.bind(('',4500))\ns.setsockopt(17,100,2)\nprint(flush=True)\ntime.sleep(1000)";
    let mut command = Command::new("python3");
    command.args(["-c", program]).stdout(Stdio::piped());
    let mut process = node.netns.spawn(&mut command).unwrap();
    let mut ready = [0];
    let stdout = process.child().stdout.as_mut().unwrap();
    stdout.read_exact(&mut ready).unwrap();
    process
}

/// What is around pod packets, and what seals it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) framing: Framing,
    /// The underlay is IPv6.
    pub(crate) six: bool,
    pub(crate) suite: Suite,
}

impl Kind {
    fn hosts(self, from: u8, to: u8) -> String {
        let ip = if self.six { underlay6 } else { underlay };
        format!("src {} dst {}", ip(from), ip(to))
    }

    fn mode(self) -> &'static str {
        match self.framing {
            Framing::Native => "tunnel",
            _ => "transport",
        }
    }

    /// The states of both directions at both nodes.
    pub(crate) fn pair_of(self, a: &Node, b: &Node, epoch: u32) {
        for node in [a, b] {
            for (from, to) in [(a.number, b.number), (b.number, a.number)] {
                self.add_state(node, (from, to), spi(from, to, epoch));
            }
        }
    }

    pub(crate) fn add_state(self, node: &Node, (from, to): (u8, u8), spi: u32) {
        let reqid = reqid((spi >> 16) as u8, (spi >> 8) as u8);
        let hosts = self.hosts(from, to);
        add_state_between(node, &hosts, reqid, spi, self.suite, self.mode());
    }
}

fn add_state_between(node: &Node, hosts: &str, reqid: u32, spi: u32, suite: Suite, mode: &str) {
    // A tunnel carries both families.
    let both = if mode == "tunnel" {
        "flag af-unspec"
    } else {
        ""
    };
    let key = format!("{spi:08x}").repeat(8);
    let algorithm = match suite {
        Suite::Ah => format!("proto ah spi {spi:#x} auth-trunc hmac(sha256) 0x{key} 128"),
        _ => format!("proto esp spi {spi:#x} aead rfc4106(gcm(aes)) 0x{key}0badcafe 128"),
    };
    let encap = match suite {
        Suite::EspInUdp => "encap espinudp 4500 4500 0.0.0.0",
        _ => "",
    };
    node.ip(&format!(
        "xfrm state add {hosts} {algorithm} reqid {reqid} mode {mode} replay-window 128 flag esn {both} {encap}"
    ));
}

/// The kernel's counters of what went wrong, those that are not zero.
pub(crate) fn errors(node: &Node) -> String {
    let nonzero = |line: &&str| !line.ends_with("\t0") && !line.ends_with(" 0");
    counters(node).lines().filter(nonzero).collect()
}

pub(crate) fn count(node: &Node, name: &str) -> usize {
    let all = counters(node);
    let line = all.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

/// Waits for packets under way.
pub(crate) fn count_at_least(node: &Node, name: &str, least: usize) -> usize {
    let end = Instant::now() + Duration::from_secs(5);
    while count(node, name) < least && Instant::now() < end {
        thread::yield_now();
    }
    count(node, name)
}

/// Whether fragments were put together here.
pub(crate) fn reassembled(netns: &Netns) -> bool {
    let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let (v4, v6) = netns.run(|| (read("snmp"), read("snmp6"))).unwrap();
    let mut lines = v4.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|n| n == "ReasmReqds").unwrap();
    let v6 = v6
        .lines()
        .find(|line| line.starts_with("Ip6ReasmReqds"))
        .unwrap();
    values.split(' ').nth(at) != Some("0") || v6.split_whitespace().last() != Some("0")
}

fn counters(node: &Node) -> String {
    let read = || fs::read_to_string("/proc/thread-self/net/xfrm_stat").unwrap();
    node.netns.run(read).unwrap()
}

/// Numbered datagrams both ways between two pods, as many as can be answered for: each waits for its echo.
pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Flow {
    pub(crate) fn start(a: &Node, b: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let echoed = Arc::new(AtomicUsize::new(0));
        let there = b.pod.udp("0.0.0.0:7100");
        let here = a.pod.udp("0.0.0.0:7100");
        let to = (format!("10.244.{}.2", b.number), 7100);
        here.connect((to.0.as_str(), to.1)).unwrap();
        let echo = thread::spawn(move || {
            let mut buffer = [0; 100];
            while let Ok((length, from)) = there.recv_from(&mut buffer) {
                if length == 1 {
                    return;
                }
                there.send_to(&buffer[..length], from).unwrap();
            }
        });
        let send = {
            let (stop, echoed) = (stop.clone(), echoed.clone());
            thread::spawn(move || ping_pong(&here, &stop, &echoed))
        };
        Self {
            stop,
            echoed,
            threads: vec![send, echo],
        }
    }

    /// Waits until so many more went there and back.
    pub(crate) fn go_on(&self, more: usize) {
        let goal = self.echoed.load(Ordering::Relaxed) + more;
        while self.echoed.load(Ordering::Relaxed) < goal {
            let running = self.threads.iter().all(|thread| !thread.is_finished());
            assert!(running, "the flow broke after {goal} - {more} round trips");
            thread::yield_now();
        }
    }

    /// Ends the flow: every packet that was sent has come back. Gives how many.
    pub(crate) fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no packet was lost");
        }
        self.echoed.load(Ordering::Relaxed)
    }
}

/// Eight in flight; a lost one shows as a timeout.
fn ping_pong(socket: &UdpSocket, stop: &AtomicBool, echoed: &AtomicUsize) {
    let (mut sent, mut back, mut buffer) = (0_u64, 0_u64, [0; 100]);
    while !stop.load(Ordering::Relaxed) || back < sent {
        if !stop.load(Ordering::Relaxed) && sent - back < 8 {
            socket.send(&sent.to_be_bytes()).unwrap();
            sent += 1;
            continue;
        }
        let length = socket.recv(&mut buffer).expect("a packet was lost");
        assert_eq!(length, 8);
        back += 1;
        echoed.store(usize::try_from(back).unwrap(), Ordering::Relaxed);
    }
    socket.send(b".").unwrap();
}
