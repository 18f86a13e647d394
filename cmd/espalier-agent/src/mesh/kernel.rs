//! The kernel's part of the world, as far as the mesh needs it; a test has its own.

use espalier_overlay::{Applied, Desired, Error, Observed, Overlay};
use ipnet::IpNet;

/// What brings the kernel in line.
pub(crate) trait Kernel {
    /// Reads what there is.
    fn observe(&mut self, cluster_cidrs: &[IpNet]) -> Result<Observed, Error>;

    /// Makes it so. When it returns, packets take the paths that `desired` says.
    fn apply(&mut self, desired: &Desired) -> Result<Applied, Error>;

    /// The same where nobody else has changed anything since: cheap when little differs.
    fn apply_changes(&mut self, desired: &Desired) -> Result<Applied, Error>;
}

impl Kernel for Overlay {
    fn observe(&mut self, cluster_cidrs: &[IpNet]) -> Result<Observed, Error> {
        Self::observe(self, cluster_cidrs)
    }

    fn apply(&mut self, desired: &Desired) -> Result<Applied, Error> {
        Self::apply(self, desired)
    }

    fn apply_changes(&mut self, desired: &Desired) -> Result<Applied, Error> {
        Self::apply_changes(self, desired)
    }
}
