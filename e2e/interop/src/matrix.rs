//! What there is to run: foreign implementations × role × authentication × case.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A foreign implementation in one version. Its root file system has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Foreign {
    #[value(name = "bookworm-strongswan")]
    Strongswan5,
    #[value(name = "sid-strongswan")]
    Strongswan6,
    #[value(name = "bookworm-libreswan")]
    Libreswan4,
    #[value(name = "trixie-libreswan")]
    Libreswan5,
}

impl Foreign {
    pub(crate) const ALL: [Self; 4] = [
        Self::Strongswan5,
        Self::Strongswan6,
        Self::Libreswan4,
        Self::Libreswan5,
    ];

    /// Folder of its root file system.
    pub(crate) fn root_name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    pub(crate) fn peer(self) -> &'static str {
        match self {
            Self::Strongswan5 | Self::Strongswan6 => "strongSwan",
            Self::Libreswan4 | Self::Libreswan5 => "Libreswan",
        }
    }

    /// Debian package that tells the version.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Strongswan5 | Self::Strongswan6 => "libstrongswan",
            Self::Libreswan4 | Self::Libreswan5 => "libreswan",
        }
    }
}

/// Our part in the first exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Initiator,
    Responder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Auth {
    Psk,
    Ecdsa,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    // The slow one first: the others fill its waits.
    Dpd,
    Transport,
    Tunnel,
    Ah,
    UdpEncap,
    ChildRekeyPfs,
    IkeRekey,
    ChildRekeyCollision,
    IkeRekeyCollision,
    Delete,
    Fragmentation,
    Cookies,
    MlKem768,
    Ppk,
}

/// One row of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) foreign: Foreign,
    pub(crate) case: Case,
    pub(crate) role: Role,
    pub(crate) auth: Auth,
}

/// Name on the command line and in the report.
pub(crate) fn name(value: impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

/// All rows of one foreign implementation.
pub(crate) fn items(foreign: Foreign) -> Vec<Item> {
    let mut items = Vec::new();
    for &case in Case::value_variants() {
        for &role in Role::value_variants() {
            for &auth in Auth::value_variants() {
                items.push(Item {
                    foreign,
                    case,
                    role,
                    auth,
                });
            }
        }
    }
    items
}
