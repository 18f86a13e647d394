//! Who takes part, with its configuration.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};

/// Version of the specification that all of them speak: Debian 12's plugins are of before 1.1.0.
const CNI_VERSION: &str = "1.0.0";
/// As ours on a wire of 1500 bytes.
const MTU: u32 = 1408;

/// A plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Plugin {
    /// Ours, with the agent.
    Espalier,
    /// The reference's veth per pod, with host-local.
    Ptp,
    /// The reference's bridge, with host-local.
    Bridge,
}

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) ours: PathBuf,
    pub(crate) reference: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) disk: PathBuf,
    pub(crate) masquerade: bool,
}

impl Plugin {
    pub(crate) const ALL: [Self; 3] = [Self::Espalier, Self::Ptp, Self::Bridge];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Espalier => "espalier",
            Self::Ptp => "ptp",
            Self::Bridge => "bridge",
        }
    }

    pub(crate) fn program(self, place: &Place) -> PathBuf {
        match self {
            Self::Espalier => place.ours.clone(),
            other => place.reference.join(other.name()),
        }
    }

    /// What the runtime writes to its stdin.
    pub(crate) fn config(self, place: &Place) -> Value {
        let mut config = match self {
            Self::Espalier => json!({
                "type": "espalier-cni",
                "socket": place.socket,
                "stateDir": place.state,
            }),
            Self::Ptp => json!({
                "type": "ptp",
                "mtu": MTU,
                "ipMasq": place.masquerade,
                "ipam": self.ipam(place, "10.90.0.0/22"),
            }),
            Self::Bridge => json!({
                "type": "bridge",
                "bridge": "cnibr0",
                "isGateway": true,
                "mtu": MTU,
                "ipMasq": place.masquerade,
                "ipam": self.ipam(place, "10.91.0.0/22"),
            }),
        };
        config["cniVersion"] = json!(CNI_VERSION);
        config["name"] = json!(format!("bench-{}", self.name()));
        config
    }

    fn ipam(self, place: &Place, subnet: &str) -> Value {
        json!({
            "type": "host-local",
            "dataDir": place.disk.join("host-local"),
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        })
    }
}
