//! What an admin writes: the `EncryptionPolicy` resource and Node objects, and the sources they come from.

mod claims;
pub mod conditions;
mod crd;
mod external;
mod folder;
mod manifest;
mod meshnode;
mod protection;
mod snapshot;

pub use crd::{
    DataplaneKind, EncryptionPolicy, EncryptionPolicySpec, EncryptionPolicyStatus, Establish,
    Masquerade, NodeCounts, OverlayKind, PerCpu, PolicyMode, Protocol, RekeySpec, SuiteName,
    UdpEncapsulation,
};
pub use espalier_peers::NodeSpec;
pub use external::{ExternalAuth, ExternalGateway, ExternalPeer, ExternalPeerSpec};
pub use folder::{FolderSource, SourceError};
pub use manifest::{Object, Read, parse, read_api_node, read_value};
pub use meshnode::{CertificateStatus, MeshNode, MeshNodeSpec, MeshNodeStatus, PairCounts};
pub use protection::Protection;
pub use snapshot::{MeshSnapshot, Policy, Problem, Store};
