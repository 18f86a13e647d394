use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use rand_core::{TryCryptoRng, TryRng, UnwrapErr};

/// The operating system's random number generator.
///
/// # Panics
/// When the system has no randomness to give: keys must not be made then. On Linux this cannot happen once it has booted.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsRng;

impl TryRng for OsRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        UnwrapErr(rand::rngs::SysRng).try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        UnwrapErr(rand::rngs::SysRng).try_next_u64()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        UnwrapErr(rand::rngs::SysRng).try_fill_bytes(bytes)
    }
}

impl TryCryptoRng for OsRng {}

/// Wall-clock time since 1970-01-01 UTC, for the validity of certificates. Zero when the clock is set before that.
#[must_use]
pub fn unix_now() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rand_core::{CryptoRng, Rng as _};

    use super::*;

    #[test]
    fn serves_as_the_endpoints_generator() {
        let mut rng: Box<dyn CryptoRng + Send> = Box::new(OsRng);
        let (mut one, mut other) = ([0; 32], [0; 32]);
        rng.fill_bytes(&mut one);
        rng.fill_bytes(&mut other);
        assert_ne!(one, other);
    }

    #[test]
    fn the_epoch_is_1970() {
        let year_2020 = Duration::from_secs(1_577_836_800);
        assert!(unix_now() > year_2020);
    }
}
