//! No second life (S3, S4): outbound SPIs and keys that were installed are remembered over the life of the process, and of those that take over from it. A key
//! installed again would start its counter at zero and repeat nonces; an inbound one would forget its replay window.

use espalier_dataplane_core::{Direction, Error, FrozenUsed, Recent, Sa, Spi};
use sha2::{Digest, Sha256};

/// What was installed before.
#[derive(Default)]
pub(super) struct UsedKeys {
    outbound: Recent<Spi>,
    keys: Recent<[u8; 16]>,
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

    /// The oldest first.
    pub(super) fn freeze(&self) -> FrozenUsed {
        FrozenUsed {
            outbound: self.outbound.iter().copied().collect(),
            keys: self.keys.iter().copied().collect(),
        }
    }

    /// Those of an earlier process are used, too.
    pub(super) fn resume(&mut self, used: &FrozenUsed) {
        for spi in &used.outbound {
            self.outbound.insert(*spi);
        }
        for key in &used.keys {
            self.keys.insert(*key);
        }
    }
}

/// Of key and salt: 128 bits of a hash tell keys apart and tell nothing about them.
fn fingerprint(sa: &Sa) -> [u8; 16] {
    let digest = Sha256::digest(sa.key.expose());
    digest.first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_knows_them_in_their_order() {
        let mut used = UsedKeys::default();
        for number in [9, 3, 6] {
            used.outbound.insert(Spi(0x1000 + u32::from(number)));
            used.keys.insert([number; 16]);
        }
        let frozen = used.freeze();
        assert_eq!(frozen.outbound, [0x1009, 0x1003, 0x1006].map(Spi));
        let mut next = UsedKeys::default();
        next.resume(&frozen);
        assert_eq!(next.freeze(), frozen);
    }
}
