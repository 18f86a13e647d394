//! What an admin writes: the `EncryptionPolicy` resource and Node objects, and the sources they come from.

mod claims;
mod crd;
mod external;
mod folder;
mod manifest;
mod protection;
mod snapshot;

pub use crd::{
    DataplaneKind, EncryptionPolicy, EncryptionPolicySpec, Establish, OverlayKind, PerCpu,
    PolicyMode, Protocol, RekeySpec, SuiteName, UdpEncapsulation,
};
pub use espalier_peers::NodeSpec;
pub use external::{ExternalAuth, ExternalGateway, ExternalPeer, ExternalPeerSpec};
pub use folder::{FolderSource, SourceError};
pub use manifest::{Object, parse};
pub use protection::Protection;
pub use snapshot::{MeshSnapshot, Policy, Problem, Store};
