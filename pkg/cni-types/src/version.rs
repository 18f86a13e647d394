use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

/// A version of the specification that this crate speaks, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.3.1: ADD, DEL, VERSION; results with several interfaces and addresses.
    V0_3_1,
    /// 0.4.0: adds CHECK and `prevResult` for DEL.
    V0_4_0,
    /// 1.0.0: `ips[].version` is gone.
    V1_0_0,
    /// 1.1.0: adds GC and STATUS, MTU in interfaces, more route attributes.
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub const LATEST: Self = Self::V1_1_0;

    /// As it stands in `cniVersion`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A `cniVersion` that this crate does not speak.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cniVersion {version:?} is not supported: expected one of {}; change it in the network configuration",
    supported()
)]
pub struct UnsupportedVersion {
    /// What came.
    pub version: String,
}

impl FromStr for Version {
    type Err = UnsupportedVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|v| v.as_str() == text)
            .ok_or_else(|| UnsupportedVersion {
                version: text.to_owned(),
            })
    }
}

/// The answer to VERSION. `requested` is the `cniVersion` on stdin, which the answer repeats, whatever it is.
#[must_use]
pub fn version_report(requested: Option<&str>) -> Value {
    let requested = requested.filter(|text| !text.is_empty());
    json!({
        "cniVersion": requested.unwrap_or(Version::LATEST.as_str()),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}

fn supported() -> String {
    Version::ALL.map(Version::as_str).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_parses_back_and_order_is_age() {
        for version in Version::ALL {
            assert_eq!(version.as_str().parse(), Ok(version));
        }
        assert!(Version::ALL.is_sorted());
        assert_eq!(Version::ALL.last(), Some(&Version::LATEST));
    }

    #[test]
    fn an_unknown_version_is_named_with_the_supported_ones() {
        let text = "2.0.0".parse::<Version>().unwrap_err().to_string();
        assert!(
            text.contains("\"2.0.0\"") && text.contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"),
            "{text}"
        );
    }

    #[test]
    fn the_report_repeats_the_version_that_was_asked_with() {
        assert_eq!(version_report(Some("0.4.0"))["cniVersion"], "0.4.0");
        assert_eq!(version_report(Some("0.1.0"))["cniVersion"], "0.1.0");
        assert_eq!(version_report(Some(""))["cniVersion"], "1.1.0");
        let all = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(version_report(None)["supportedVersions"], all);
    }
}
