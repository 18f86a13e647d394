//! What a capture has seen, as numbers.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use crate::classify::{ClearPod, Frame, What};

/// How many clear pod packets are kept for a report.
const SAMPLES: usize = 8;

/// Counts since the capture's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames looked at.
    pub frames: u64,
    /// Frames that the kernel dropped because the capture was too slow. Not 0: the rest is no proof.
    pub dropped: u64,
    /// Frames that leak: a pod address in clear, or the marker anywhere.
    pub clear: u64,
    /// Frames with a pod address in clear as source or destination.
    pub clear_pod: u64,
    /// Those with pod addresses on both sides.
    pub clear_between_pods: u64,
    /// Frames that hold the marker.
    pub marked: u64,
    /// ESP packets.
    pub esp: u64,
    /// IKE messages.
    pub ike: u64,
    /// Frames that could not be decoded.
    pub undecoded: u64,
    /// The same per pair of hosts, keyed by outer source and destination.
    pub pairs: BTreeMap<(IpAddr, IpAddr), PairCounters>,
    /// The last few leaking frames.
    pub samples: VecDeque<ClearSample>,
}

/// Counts of one direction between two hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairCounters {
    /// ESP packets.
    pub esp: u64,
    /// IKE messages.
    pub ike: u64,
    /// Leaking frames.
    pub clear: u64,
}

/// A leaking frame, for a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClearSample {
    /// Which leaking frame of the capture it was, from 1.
    pub number: u64,
    /// Index of the interface it was seen on.
    pub interface: u32,
    /// Outer addresses.
    pub outer: Option<(IpAddr, IpAddr)>,
    /// The pod packet; `None`: only the marker was found.
    pub pod: Option<ClearPod>,
}

impl Counters {
    /// Counts one frame.
    pub fn add(&mut self, interface: u32, frame: &Frame, marked: bool) {
        self.frames += 1;
        self.marked += u64::from(marked);
        let pod = match frame.what {
            What::ClearPod(pod) => Some(pod),
            _ => None,
        };
        self.clear_pod += u64::from(pod.is_some());
        self.clear_between_pods += u64::from(pod.is_some_and(|pod| pod.between_pods));
        self.undecoded += u64::from(frame.what == What::Undecoded);
        let leak = marked || pod.is_some();
        let count = PairCounters {
            esp: u64::from(matches!(frame.what, What::Esp { .. })),
            ike: u64::from(frame.what == What::Ike),
            clear: u64::from(leak),
        };
        self.esp += count.esp;
        self.ike += count.ike;
        self.clear += count.clear;
        if let Some(outer) = frame.outer {
            self.pairs.entry(outer).or_default().add(count);
        }
        if leak {
            self.keep(ClearSample {
                number: self.clear,
                interface,
                outer: frame.outer,
                pod,
            });
        }
    }

    /// What came after `earlier`, an older snapshot of the same capture.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let pairs = self.pairs.iter().map(|(hosts, now)| {
            let before = earlier.pairs.get(hosts).copied().unwrap_or_default();
            (*hosts, now.since(before))
        });
        let samples = self
            .samples
            .iter()
            .filter(|sample| sample.number > earlier.clear);
        Self {
            frames: self.frames - earlier.frames,
            dropped: self.dropped - earlier.dropped,
            clear: self.clear - earlier.clear,
            clear_pod: self.clear_pod - earlier.clear_pod,
            clear_between_pods: self.clear_between_pods - earlier.clear_between_pods,
            marked: self.marked - earlier.marked,
            esp: self.esp - earlier.esp,
            ike: self.ike - earlier.ike,
            undecoded: self.undecoded - earlier.undecoded,
            pairs: pairs.collect(),
            samples: samples.copied().collect(),
        }
    }

    /// Counts of one direction between two hosts.
    #[must_use]
    pub fn pair(&self, src: IpAddr, dst: IpAddr) -> PairCounters {
        self.pairs.get(&(src, dst)).copied().unwrap_or_default()
    }

    fn keep(&mut self, sample: ClearSample) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }
}

impl PairCounters {
    fn add(&mut self, other: Self) {
        self.esp += other.esp;
        self.ike += other.ike;
        self.clear += other.clear;
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            esp: self.esp - earlier.esp,
            ike: self.ike - earlier.ike,
            clear: self.clear - earlier.clear,
        }
    }
}
