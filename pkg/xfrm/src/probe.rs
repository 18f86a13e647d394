//! What this kernel can do, found out by doing it: for each ability a state is installed that nothing uses, and removed.
//!
//! `setsockopt(UDP_ENCAP)` succeeding or a module file lying around proves nothing; that the kernel takes a state does.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use espalier_dataplane_core::{Capabilities, Direction, SaMode, Spi, Suite};
use espalier_netlink::{Errno, Route, Socket};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::reqid::PROBE_REQID;
use crate::sad::{Sad, preferred, with_throw_away};
use crate::wire::new_state::NewState;

/// `XFRMA_REPLAY_ESN_MAX`, in packets.
pub(crate) const MAX_WINDOW: u32 = 4096;
/// A state that could not be removed goes by itself.
const LIFETIME_SECONDS: u32 = 30;
/// Another state with a random SPI between documentation addresses is hardly there once.
const SPI_TRIES: u32 = 8;
/// TEST-NET-2 and TEST-NET-3 (RFC 5737), documentation prefix (RFC 3849): no packet has them.
const V4: (Ipv4Addr, Ipv4Addr) = (
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(203, 0, 113, 1),
);
const V6: (Ipv6Addr, Ipv6Addr) = (
    Ipv6Addr::new(0x2001, 0xdb8, 0xe5, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0xe5, 0, 0, 0, 0, 2),
);

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// For the agent.
    pub can: Capabilities,
    /// The kernel knows `XFRMA_SA_DIR` (6.10).
    pub(crate) tell_direction: bool,
    /// Why this data plane cannot work here.
    pub problem: Option<String>,
}

/// A state to try.
#[derive(Clone, Copy)]
struct Shape {
    suite: Suite,
    direction: Direction,
    v6: bool,
    udp: bool,
    mode: SaMode,
    esn: bool,
    window: u32,
    cpu: Option<u32>,
    offload: Option<u32>,
    tell_direction: bool,
}

const PLAIN: Shape = Shape {
    suite: Suite::Aes256Gcm16,
    direction: Direction::In,
    v6: false,
    udp: false,
    mode: SaMode::Transport,
    esn: false,
    window: 32,
    cpu: None,
    offload: None,
    tell_direction: false,
};

/// Looks at the kernel, in the calling thread's network namespace. What it cannot do is a finding and not an error.
#[must_use]
pub fn probe() -> Findings {
    let mut findings = Findings::default();
    match Prober::open() {
        Ok(mut prober) => prober.run(&mut findings),
        Err(error) => findings.problem = Some(error.reason()),
    }
    findings
}

struct Prober {
    sad: Sad,
}

impl Prober {
    fn open() -> Result<Self, Error> {
        let mut sad = Sad::open()?;
        // Of a process that was killed while it probed.
        for state in sad.list(|reqid| reqid == PROBE_REQID)? {
            sad.delete(&state.id)?;
        }
        Ok(Self { sad })
    }

    fn run(&mut self, findings: &mut Findings) {
        self.suites(findings);
        let Some(suite) = findings.can.suites.iter().copied().find(|s| !s.is_ah()) else {
            return;
        };
        let base = Shape { suite, ..PLAIN };
        let mut notes = Vec::new();
        findings.tell_direction = self.direction(base);
        let base = Shape {
            tell_direction: findings.tell_direction,
            ..base
        };
        let can = &mut findings.can;
        can.raw = self.works(base, "ESP in IP", &mut notes);
        can.udp = self.works(Shape { udp: true, ..base }, "ESP in UDP", &mut notes);
        let tunnel = Shape {
            mode: SaMode::Tunnel,
            ..base
        };
        can.tunnel = self.works(tunnel, "tunnel mode", &mut notes);
        self.windows(base, can, &mut notes);
        for (udp, what) in [(false, "ESP in IPv6"), (true, "ESP in UDP over IPv6")] {
            let shape = Shape {
                v6: true,
                udp,
                ..base
            };
            self.works(shape, what, &mut notes);
        }
        self.cpus(base, can, &mut notes);
        self.offload(base, &mut notes);
        can.notes.extend(notes);
        let gcm = [Suite::Aes256Gcm16, Suite::Aes128Gcm16];
        if !gcm.iter().any(|suite| can.suites.contains(suite)) {
            findings.problem =
                Some("this kernel has no AES-GCM for ESP; load or build in gcm and aes".into());
        } else if !can.esn {
            findings.problem = Some("this kernel has no extended sequence numbers for ESP".into());
        }
    }

    /// The first refusal is the problem when none works.
    fn suites(&mut self, findings: &mut Findings) {
        let mut first = None;
        for suite in preferred() {
            match self.try_out(Shape { suite, ..PLAIN }) {
                Ok(()) => findings.can.suites.push(suite),
                Err(error) => {
                    let reason = error.reason();
                    let note = format!("{suite:?} does not work: {reason}");
                    first.get_or_insert(reason);
                    findings.can.notes.push(note);
                }
            }
        }
        if findings.can.suites.iter().all(|suite| suite.is_ah()) {
            findings.problem = first;
        }
    }

    /// An outbound state with ESN and no window is refused by kernels that do not know that it is outbound.
    fn direction(&mut self, base: Shape) -> bool {
        let outbound = Shape {
            direction: Direction::Out,
            esn: true,
            tell_direction: true,
            ..base
        };
        self.try_out(outbound).is_ok()
    }

    fn windows(&mut self, base: Shape, can: &mut Capabilities, notes: &mut Vec<String>) {
        let large = Shape {
            window: MAX_WINDOW,
            ..base
        };
        let with_esn = Shape { esn: true, ..large };
        can.esn = self.works(with_esn, "a window of 4096 packets with ESN", notes);
        if can.esn || self.works(large, "a window of 4096 packets", notes) {
            can.max_replay_window = MAX_WINDOW;
        } else {
            can.max_replay_window = PLAIN.window;
        }
    }

    /// Older kernels take the state and skip the attribute: it must be there when the state is read. Newer ones want to be
    /// told the direction too.
    fn cpus(&mut self, base: Shape, can: &mut Capabilities, notes: &mut Vec<String>) {
        let shape = Shape {
            cpu: Some(0),
            ..base
        };
        let kept = self.state(shape, |sad, id| {
            Ok(sad.get(id)?.is_some_and(|state| state.cpu == Some(0)))
        });
        match kept {
            Ok(true) => can.cpus = cpus(),
            Ok(false) => {
                notes.push(
                    "no SAs of single CPUs (RFC 9611): kernel 6.13 or later is needed".into(),
                );
            }
            Err(error) => notes.push(format!(
                "no SAs of single CPUs (RFC 9611): {}",
                error.reason()
            )),
        }
    }

    /// Only told: SAs are not offloaded.
    fn offload(&mut self, base: Shape, notes: &mut Vec<String>) {
        let Ok(links) = Socket::<Route>::open().and_then(|mut socket| socket.links()) else {
            return;
        };
        for link in links {
            let shape = Shape {
                offload: Some(link.index),
                ..base
            };
            let taken = self.state(shape, |sad, id| {
                Ok(sad.get(id)?.is_some_and(|state| state.offloaded))
            });
            if let Ok(true) = taken {
                notes.push(format!(
                    "{} offers crypto offload for ESP, which is not used",
                    link.name
                ));
            }
        }
    }

    fn works(&mut self, shape: Shape, what: &str, notes: &mut Vec<String>) -> bool {
        let result = self.try_out(shape);
        if let Err(error) = &result {
            notes.push(format!("{what} does not work: {}", error.reason()));
        }
        result.is_ok()
    }

    fn try_out(&mut self, shape: Shape) -> Result<(), Error> {
        self.state(shape, |_, _| Ok(()))
    }

    fn state<T>(
        &mut self,
        shape: Shape,
        look: impl Fn(&mut Sad, &crate::wire::state_id::StateId) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let key = Zeroizing::new(rand::random::<[u8; 36]>());
        let key = key
            .get(..shape.suite.key_material_len())
            .unwrap_or_default();
        let mut tries = 0;
        loop {
            tries += 1;
            let spi = Spi(rand::random_range(0x100..=u32::MAX));
            match with_throw_away(&mut self.sad, &shape.state(spi, key), &look) {
                Err(error) if error.errno() == Some(Errno::EEXIST) && tries < SPI_TRIES => {}
                result => return result,
            }
        }
    }
}

impl Shape {
    fn state<'k>(&self, spi: Spi, key: &'k [u8]) -> NewState<'k> {
        let (source, destination): (IpAddr, IpAddr) = if self.v6 {
            (V6.0.into(), V6.1.into())
        } else {
            (V4.0.into(), V4.1.into())
        };
        NewState {
            direction: self.direction,
            source,
            destination,
            spi,
            reqid: PROBE_REQID,
            suite: self.suite,
            key,
            mode: self.mode,
            esn: self.esn,
            window: self.window,
            ports: self.udp.then_some((4500, 4500)),
            hard_seconds: LIFETIME_SECONDS,
            cpu: self.cpu,
            offload: self.offload,
            tell_direction: self.tell_direction,
        }
    }
}

/// How many CPUs there are.
fn cpus() -> u32 {
    let present = fs::read_to_string("/sys/devices/system/cpu/present").ok();
    present.as_deref().and_then(count).unwrap_or_else(|| {
        let seen = std::thread::available_parallelism().map_or(1, usize::from);
        u32::try_from(seen).unwrap_or(1)
    })
}

/// CPUs in a list such as `0-3,8`.
fn count(list: &str) -> Option<u32> {
    let ranges = list.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    });
    ranges.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!(count("0\n"), Some(1));
        assert_eq!(count("0-3,8,10-11\n"), Some(7));
        assert_eq!(count(""), None);
        assert_eq!(count("3-1"), None);
    }
}
