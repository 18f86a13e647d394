//! How long to wait before something is tried again.

use std::time::Duration;

use rand::RngExt as _;

/// Doubles from `first` to `most`, each with jitter: agents of a whole cluster lose the API server at the same moment, and should
/// not come back at the same moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// From `first` to `most`.
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            next: first,
        }
    }

    /// For requests to the API server: half a second to half a minute.
    #[must_use]
    pub fn api() -> Self {
        Self::new(Duration::from_millis(500), Duration::from_secs(30))
    }

    /// The wait after a failure: between half and all of what it has grown to.
    pub fn failed(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.most);
        now.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// It worked.
    pub fn worked(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_a_bound_and_starts_again() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(4));
        for most in [1, 2, 4, 4] {
            let wait = backoff.failed();
            let bound = Duration::from_secs(most);
            assert!(wait >= bound / 2 && wait <= bound, "{wait:?} of {bound:?}");
        }
        backoff.worked();
        assert!(backoff.failed() <= Duration::from_secs(1));
    }
}
