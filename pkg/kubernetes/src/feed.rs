//! The kinds that are watched, and what is told of them.

use espalier_api::{EncryptionPolicy, ExternalPeer, Read, read_api_node, read_value};
use k8s_openapi::api::core::v1::Node;
use kube::api::{ApiResource, DynamicObject};
use kube::{Resource, ResourceExt as _};

/// Names the API server in problems.
pub(crate) const SOURCE: &str = "Kubernetes";

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Node,
    Policy,
    External,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Node, Self::Policy, Self::External];

    /// As in `kind:`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Policy => "EncryptionPolicy",
            Self::External => "ExternalPeer",
        }
    }

    /// As in paths and RBAC.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::Policy => "encryptionpolicies.espalier.dev",
            Self::External => "externalpeers.espalier.dev",
        }
    }

    /// Of our own kinds.
    pub(crate) fn resource(self) -> Option<ApiResource> {
        match self {
            Self::Node => None,
            Self::Policy => Some(ApiResource::erase::<EncryptionPolicy>(&())),
            Self::External => Some(ApiResource::erase::<ExternalPeer>(&())),
        }
    }
}

/// What became of one kind.
#[derive(Debug)]
pub(crate) enum Told {
    /// All there are of it, by name.
    All(Vec<(String, Read)>),
    /// One is there, or is another now.
    One(Read),
    /// One is no more.
    Gone(String),
    /// The API server does not answer, or not as it should; why.
    Failed(String),
    /// It answers again.
    Works,
}

/// An object of the API that can be read.
pub(crate) trait Watched: Resource + Sized {
    /// The object, or what is wrong with it.
    fn read(self, kind: Kind) -> Option<Read>;
}

impl Watched for Node {
    fn read(self, _: Kind) -> Option<Read> {
        Some(read_api_node(SOURCE, self))
    }
}

/// Our own kinds come as they are: one object that cannot be read must not hide the others, as it would in a typed list.
impl Watched for DynamicObject {
    fn read(mut self, kind: Kind) -> Option<Read> {
        // Items of lists may come without.
        self.types = kind.resource().map(|resource| kube::api::TypeMeta {
            api_version: resource.api_version,
            kind: resource.kind,
        });
        self.managed_fields_mut().clear();
        let value = serde_json::to_value(&self).ok()?;
        read_value(SOURCE, value)
    }
}
