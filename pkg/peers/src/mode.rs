use std::fmt;

use serde::{Deserialize, Serialize};

/// How strict a node is about encryption, from least to most: of two nodes' modes the greater one holds between them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Mode {
    /// Clear overlay.
    #[default]
    Disabled,
    /// Encrypted where the peer is ready, clear otherwise.
    Permissive,
    /// Encrypted or nothing.
    Required,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Disabled, Self::Permissive, Self::Required];

    /// The word in manifests and status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "Disabled",
            Self::Permissive => "Permissive",
            Self::Required => "Required",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
