//! A node's randomness: seeded, and for once as a test wants it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand_core::{TryCryptoRng, TryRng};

const NOTHING: u16 = 0x100;

/// The first byte of all that a node draws in one piece from now on: its nonces, for their order.
#[derive(Clone, Debug)]
pub struct FirstByte(Arc<AtomicU16>);

impl FirstByte {
    pub fn set(&self, byte: u8) {
        self.0.store(u16::from(byte), Ordering::Relaxed);
    }

    pub fn free(&self) {
        self.0.store(NOTHING, Ordering::Relaxed);
    }
}

/// See [`FirstByte`].
pub struct SimRng {
    inner: StdRng,
    first: FirstByte,
}

impl SimRng {
    pub fn new(seed: u64) -> (Self, FirstByte) {
        let first = FirstByte(Arc::new(AtomicU16::new(NOTHING)));
        let inner = StdRng::seed_from_u64(seed);
        let rng = Self {
            inner,
            first: first.clone(),
        };
        (rng, first)
    }
}

impl TryRng for SimRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.inner.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.inner.try_next_u64()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.inner.try_fill_bytes(bytes)?;
        let wanted = u8::try_from(self.first.0.load(Ordering::Relaxed));
        if let (Ok(wanted), Some(first)) = (wanted, bytes.first_mut()) {
            *first = wanted;
        }
        Ok(())
    }
}

impl TryCryptoRng for SimRng {}
