//! From when until when.

use std::time::Duration;

use rcgen::{CertificateParams, date_time_ymd};

/// Clocks of nodes differ: a certificate is valid from this long before it was made.
pub const CLOCK_SKEW: Duration = Duration::from_secs(3600);
/// 24 hours.
pub const DAY: Duration = Duration::from_secs(86_400);

/// Times since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// notBefore.
    pub from: Duration,
    /// notAfter.
    pub until: Duration,
}

impl Validity {
    /// `days` from `now` (since the epoch) on, with [`CLOCK_SKEW`] before.
    #[must_use]
    pub fn starting(now: Duration, days: u32) -> Self {
        Self {
            from: now.saturating_sub(CLOCK_SKEW),
            until: now + DAY * days,
        }
    }

    /// Whether `time` is within.
    #[must_use]
    pub fn contains(&self, time: Duration) -> bool {
        self.from <= time && time <= self.until
    }

    pub(crate) fn apply(&self, params: &mut CertificateParams) {
        let epoch = date_time_ymd(1970, 1, 1);
        params.not_before = epoch + self.from;
        params.not_after = epoch + self.until;
    }
}
