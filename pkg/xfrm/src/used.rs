//! No second life (S3, S4): outbound SPIs and keys that were installed are remembered over the life of the process, those
//! of SAs that it found when it started among them.

use std::net::IpAddr;

use espalier_dataplane_core::{Direction, Error, Recent, Spi};
use sha2::{Digest as _, Sha256};

/// Tells keys apart and tells nothing about them: a hash with a secret of this process in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyPrint([u8; 16]);

/// What was installed before.
pub(crate) struct Used {
    secret: [u8; 32],
    outbound: Recent<(Spi, IpAddr)>,
    keys: Recent<KeyPrint>,
}

impl Default for Used {
    fn default() -> Self {
        Self {
            secret: rand::random(),
            outbound: Recent::default(),
            keys: Recent::default(),
        }
    }
}

impl Used {
    pub(crate) fn print(&self, key: &[u8]) -> KeyPrint {
        let digest = Sha256::new()
            .chain_update(self.secret)
            .chain_update(key)
            .finalize();
        KeyPrint(digest.first_chunk().copied().unwrap_or_default())
    }

    /// Whether an SA may be installed.
    pub(crate) fn check(
        &self,
        direction: Direction,
        spi: Spi,
        remote: IpAddr,
        key: KeyPrint,
    ) -> Result<(), Error> {
        if direction == Direction::Out && self.outbound.contains(&(spi, remote)) {
            return Err(Error::SpiReused(spi));
        }
        if self.keys.contains(&key) {
            return Err(Error::Invalid {
                field: "key",
                why: "this key was installed before in this process; its nonces would repeat (S3, S4), negotiate a new SA".into(),
            });
        }
        Ok(())
    }

    pub(crate) fn claim(&mut self, direction: Direction, spi: Spi, remote: IpAddr, key: KeyPrint) {
        if direction == Direction::Out {
            self.outbound.insert((spi, remote));
        }
        self.keys.insert(key);
    }
}
