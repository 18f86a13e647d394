//! Packets that the data plane did not pass on, counted by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet was dropped. In the order of the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    // Towards a peer; an expired SA in both directions.
    Offload,
    NotIp,
    Multicast,
    NoPeer,
    NoSa,
    Expired,
    Exhausted,
    SealFailed,
    SendFailed,
    // From the underlay.
    Truncated,
    IkeRelay,
    UnknownSpi,
    Encapsulation,
    Replayed,
    TooOld,
    BadIcv,
    BadTrailer,
    Dummy,
    Probe,
    Framing,
    ForeignSource,
    ForeignDestination,
    Congested,
    TunFailed,
}

impl Reason {
    const ALL: [Self; 24] = [
        Self::Offload,
        Self::NotIp,
        Self::Multicast,
        Self::NoPeer,
        Self::NoSa,
        Self::Expired,
        Self::Exhausted,
        Self::SealFailed,
        Self::SendFailed,
        Self::Truncated,
        Self::IkeRelay,
        Self::UnknownSpi,
        Self::Encapsulation,
        Self::Replayed,
        Self::TooOld,
        Self::BadIcv,
        Self::BadTrailer,
        Self::Dummy,
        Self::Probe,
        Self::Framing,
        Self::ForeignSource,
        Self::ForeignDestination,
        Self::Congested,
        Self::TunFailed,
    ];

    /// Name in a dump and in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Offload => "bad_offload",
            Self::NotIp => "not_ip",
            Self::Multicast => "multicast",
            Self::NoPeer => "no_peer",
            Self::NoSa => "no_sa",
            Self::Expired => "expired",
            Self::Exhausted => "sequence_exhausted",
            Self::SealFailed => "seal_failed",
            Self::SendFailed => "send_failed",
            Self::Truncated => "truncated",
            Self::IkeRelay => "ike_relay",
            Self::UnknownSpi => "unknown_spi",
            Self::Encapsulation => "encapsulation",
            Self::Replayed => "replayed",
            Self::TooOld => "too_old",
            Self::BadIcv => "bad_icv",
            Self::BadTrailer => "bad_trailer",
            Self::Dummy => "dummy",
            Self::Probe => "probe",
            Self::Framing => "framing",
            Self::ForeignSource => "foreign_source",
            Self::ForeignDestination => "foreign_destination",
            Self::Congested => "congested",
            Self::TunFailed => "tun_failed",
        }
    }
}

/// One counter per reason.
#[derive(Debug, Default)]
pub(crate) struct Drops([AtomicU64; Reason::ALL.len()]);

impl Drops {
    pub(crate) fn count(&self, reason: Reason) {
        self.count_all(reason, 1);
    }

    pub(crate) fn count_all(&self, reason: Reason, packets: usize) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.fetch_add(packets as u64, Ordering::Relaxed);
        }
    }

    /// Adds what an earlier process counted. A reason that this one does not know is not counted any more.
    pub(crate) fn resume(&self, counts: &[(String, u64)]) {
        for (counter, reason) in self.0.iter().zip(Reason::ALL) {
            for (_, count) in counts.iter().filter(|(name, _)| name == reason.name()) {
                counter.fetch_add(*count, Ordering::Relaxed);
            }
        }
    }

    /// Every reason that has occurred, sorted by name.
    pub(crate) fn dump(&self) -> Vec<(String, u64)> {
        let counted = Reason::ALL.iter().zip(&self.0);
        let mut counts: Vec<_> = counted
            .map(|(reason, count)| (reason.name().to_owned(), count.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        counts.sort_unstable();
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        let drops = Drops::default();
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            (0..=times).for_each(|_| drops.count(reason));
        }
        let dump = drops.dump();
        assert_eq!(dump.len(), Reason::ALL.len(), "no name occurs twice");
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            assert!(
                dump.contains(&(reason.name().to_owned(), times as u64 + 1)),
                "{reason:?}"
            );
        }
    }

    #[test]
    fn counts_are_taken_over_and_go_on() {
        let drops = Drops::default();
        let earlier = [("bad_icv", 7), ("of_another_release", 9), ("no_sa", 1)];
        drops.resume(&earlier.map(|(name, count)| (name.to_owned(), count)));
        drops.count(Reason::BadIcv);
        let expected = [("bad_icv".to_owned(), 8), ("no_sa".to_owned(), 1)];
        assert_eq!(drops.dump(), expected);
    }

    #[test]
    fn what_did_not_occur_is_not_shown() {
        assert_eq!(Drops::default().dump(), []);
    }
}
