//! The frames on the wire themselves, and what they are by their outermost headers.

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use espalier_capture::{Interfaces, Reader, Received, interface_index};
use espalier_e2e::MARKER;
use espalier_testnet::Bridge;

/// Octets kept of a frame; those of the flows are shorter.
const SNAP: u32 = 512;
const TICK: Duration = Duration::from_millis(50);

/// A frame that entered the wire.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    at: SystemTime,
}

/// What the outermost IP header carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// IP protocol 50.
    RawEsp { spi: u32 },
    /// UDP 4500 (RFC 3948).
    UdpEsp { spi: u32 },
    /// IP protocol 51.
    Ah { spi: u32 },
    /// UDP 500, or 4500 with the non-ESP marker.
    Ike,
    /// Whatever it is, it is no SA's.
    Other,
}

/// How many frames were of each form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) raw_esp: u64,
    pub(crate) udp_esp: u64,
    pub(crate) ah: u64,
    /// Pods' packets outside of any SA.
    pub(crate) unprotected: u64,
    /// Pods' packets that can be read, protected or not.
    pub(crate) readable: u64,
}

/// Collects frames until it is dropped.
pub(crate) struct Tap {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    frames: Mutex<Vec<Frame>>,
    stop: AtomicBool,
}

impl Tap {
    pub(crate) fn start(bridge: &Bridge) -> Result<Self> {
        let mut reader = bridge.netns().run(|| {
            let bridge = interface_index(Bridge::DEVICE)?;
            Reader::open(Interfaces::AllBut(vec![bridge]), false, 16 << 20)
        })??;
        reader.set_timeout(TICK)?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || theirs.collect(&mut reader));
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Those until now, which are all that have been sent a tick ago.
    pub(crate) fn frames(&self) -> Vec<Frame> {
        std::thread::sleep(TICK * 2);
        let frames = self.shared.frames.lock();
        frames.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets them.
    pub(crate) fn clear(&self) {
        let frames = self.shared.frames.lock();
        frames.unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for frame in self.frames() {
            tally.add(&frame);
        }
        tally
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn collect(&self, reader: &mut Reader) {
        while !self.stop.load(Ordering::Relaxed) {
            // An error: the wire is gone.
            let Ok(received) = reader.receive() else {
                return;
            };
            if let Received::Frame { bytes, .. } = received {
                let frame = Frame {
                    bytes: bytes.to_vec(),
                    at: SystemTime::now(),
                };
                let frames = self.frames.lock();
                frames.unwrap_or_else(PoisonError::into_inner).push(frame);
            }
        }
    }
}

impl Tally {
    fn add(&mut self, frame: &Frame) {
        let form = frame.form();
        let count = match form {
            Form::RawEsp { .. } => Some(&mut self.raw_esp),
            Form::UdpEsp { .. } => Some(&mut self.udp_esp),
            Form::Ah { .. } => Some(&mut self.ah),
            Form::Ike | Form::Other => None,
        };
        let protected = count.is_some();
        if let Some(count) = count {
            *count += 1;
        }
        if frame.is_marked() {
            self.readable += 1;
            self.unprotected += u64::from(!protected);
        }
    }

    /// All packets of SAs are ESP in IP, and there are some.
    pub(crate) fn only_raw_esp(self) -> Result<()> {
        let only = self.raw_esp > 0 && self.udp_esp == 0 && self.ah == 0 && self.readable == 0;
        ensure!(only, "expected raw ESP only, found {self:?}");
        Ok(())
    }

    /// All packets of SAs are ESP in UDP, and there are some.
    pub(crate) fn only_udp_esp(self) -> Result<()> {
        let only = self.udp_esp > 0 && self.raw_esp == 0 && self.ah == 0 && self.readable == 0;
        ensure!(only, "expected ESP in UDP only, found {self:?}");
        Ok(())
    }
}

impl Frame {
    pub(crate) fn form(&self) -> Form {
        let Some((_, _, protocol, payload)) = self.ip() else {
            return Form::Other;
        };
        let spi = |at: usize| word(payload, at);
        match (protocol, udp_port(payload)) {
            (50, _) => spi(0).map_or(Form::Other, |spi| Form::RawEsp { spi }),
            (51, _) => spi(4).map_or(Form::Other, |spi| Form::Ah { spi }),
            (17, Some(4500)) => match spi(8) {
                Some(0) => Form::Ike,
                Some(spi) => Form::UdpEsp { spi },
                // A keepalive.
                None => Form::Other,
            },
            (17, Some(500)) => Form::Ike,
            _ => Form::Other,
        }
    }

    /// A pod's packet that can be read.
    pub(crate) fn is_marked(&self) -> bool {
        self.bytes.windows(MARKER.len()).any(|part| part == MARKER)
    }

    /// Its outermost source.
    pub(crate) fn is_from(&self, source: Ipv4Addr) -> bool {
        self.ip().is_some_and(|(from, ..)| from == source)
    }

    fn ip(&self) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
        let packet = self.bytes.get(14..)?;
        match self.bytes.get(12..14)? {
            [0x08, 0x00] => {
                let header = usize::from(packet.first()? & 0x0f) * 4;
                let address = |at| Some(IpAddr::V4(Ipv4Addr::from(word(packet, at)?)));
                Some((
                    address(12)?,
                    address(16)?,
                    *packet.get(9)?,
                    packet.get(header..)?,
                ))
            }
            [0x86, 0xdd] => {
                let address = |at: usize| -> Option<IpAddr> {
                    let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                    Some(IpAddr::V6(Ipv6Addr::from(octets)))
                };
                Some((
                    address(8)?,
                    address(24)?,
                    *packet.get(6)?,
                    packet.get(40..)?,
                ))
            }
            _ => None,
        }
    }
}

/// The lower port: the well-known one.
fn udp_port(payload: &[u8]) -> Option<u16> {
    let ports = word(payload, 0)?;
    let [a, b, c, d] = ports.to_be_bytes();
    Some(u16::from_be_bytes([a, b]).min(u16::from_be_bytes([c, d])))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let octets = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(octets.try_into().ok()?))
}

/// Writes frames as a pcap file (microseconds, Ethernet).
pub(crate) fn write_pcap(file: &Path, frames: &[Frame]) -> Result<()> {
    let mut out = Vec::new();
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, SNAP, 1] {
        out.extend(u32::to_le_bytes(word));
    }
    for frame in frames {
        let at = frame.at.duration_since(UNIX_EPOCH)?;
        let length = u32::try_from(frame.bytes.len())?;
        let seconds = u32::try_from(at.as_secs())?;
        for word in [seconds, at.subsec_micros(), length, length] {
            out.extend(word.to_le_bytes());
        }
        out.extend(&frame.bytes);
    }
    Ok(File::create(file)?.write_all(&out)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(protocol: u8, payload: &[u8]) -> Frame {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
        bytes.extend([10, 99, 0, 11, 10, 99, 0, 12]);
        bytes.extend(payload);
        Frame {
            bytes,
            at: SystemTime::now(),
        }
    }

    #[test]
    fn forms_are_told_apart() {
        let udp = |port: u16, rest: &[u8]| {
            let head = [port.to_be_bytes(), 4500_u16.to_be_bytes(), [0, 0], [0, 0]].concat();
            [&head[..], rest].concat()
        };
        let esp = [0xc0, 0xff, 0xee, 1, 0, 0, 0, 1];
        let spi = 0xc0ff_ee01;
        assert_eq!(frame(50, &esp).form(), Form::RawEsp { spi });
        assert_eq!(frame(17, &udp(40_000, &esp)).form(), Form::UdpEsp { spi });
        assert_eq!(frame(17, &udp(4500, &[0; 8])).form(), Form::Ike);
        assert_eq!(frame(17, &udp(4500, &[0xff])).form(), Form::Other);
        let ah = [&[4, 4, 0, 0][..], &esp].concat();
        assert_eq!(frame(51, &ah).form(), Form::Ah { spi });

        let mut tally = Tally::default();
        tally.add(&frame(51, &[&ah[..], MARKER].concat()));
        tally.add(&frame(
            17,
            &[&[0x30, 0, 0x12, 0xb5, 0, 0, 0, 0][..], MARKER].concat(),
        ));
        assert_eq!((tally.ah, tally.unprotected, tally.readable), (1, 1, 2));
    }
}
