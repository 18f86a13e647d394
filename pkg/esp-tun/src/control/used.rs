//! No second life (S3, S4): outbound SPIs and keys that were once installed are remembered for the life of the process, and of those that take over from it. A key
//! installed again would start its counter at zero and repeat nonces; an inbound one would forget its replay window.

use std::collections::HashSet;

use espalier_dataplane_core::{Direction, Error, FrozenUsed, Sa, Spi};
use sha2::{Digest, Sha256};

/// What was installed before. Grows with negotiated SAs only: some 50 bytes each.
#[derive(Default)]
pub(super) struct UsedKeys {
    outbound: HashSet<Spi>,
    keys: HashSet<[u8; 16]>,
}

impl UsedKeys {
    /// Notes the SA's outbound SPI and its key.
    pub(super) fn claim(&mut self, sa: &Sa) -> Result<(), Error> {
        let outbound = sa.direction == Direction::Out;
        if outbound && self.outbound.contains(&sa.spi) {
            return Err(Error::SpiReused(sa.spi));
        }
        if !self.keys.insert(fingerprint(sa)) {
            let why = "this key was installed before in this process; its nonces would repeat (S3, S4), negotiate a new SA";
            return Err(Error::Invalid {
                field: "key",
                why: why.into(),
            });
        }
        if outbound {
            self.outbound.insert(sa.spi);
        }
        Ok(())
    }
}

impl UsedKeys {
    pub(super) fn freeze(&self) -> FrozenUsed {
        let (mut outbound, mut keys): (Vec<_>, Vec<_>) = (
            self.outbound.iter().copied().collect(),
            self.keys.iter().copied().collect(),
        );
        outbound.sort_unstable();
        keys.sort_unstable();
        FrozenUsed { outbound, keys }
    }

    /// Those of an earlier process are used, too.
    pub(super) fn resume(&mut self, used: &FrozenUsed) {
        self.outbound.extend(&used.outbound);
        self.keys.extend(&used.keys);
    }
}

/// Of key and salt: 128 bits of a hash tell keys apart and tell nothing about them.
fn fingerprint(sa: &Sa) -> [u8; 16] {
    let digest = Sha256::digest(sa.key.expose());
    digest.first_chunk().copied().unwrap_or_default()
}
