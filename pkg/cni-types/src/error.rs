use std::fmt;

use serde_json::{Value, json};

use crate::{ConfigError, EnvError, Version};

/// What went wrong, as the specification numbers it (SPEC.md, "Error").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 1: the `cniVersion` is not one of ours, or does not have this verb.
    IncompatibleVersion,
    /// 2: a field of the configuration that this plugin cannot honour.
    UnsupportedField,
    /// 3: the container is not known. The runtime need not clean up.
    UnknownContainer,
    /// 4: an environment variable is missing or wrong.
    InvalidEnvironment,
    /// 5: reading or writing failed.
    Io,
    /// 6: stdin is not JSON.
    Decode,
    /// 7: the configuration is wrong.
    InvalidConfig,
    /// 11: may work in a moment.
    TryAgainLater,
    /// 50: STATUS: an ADD would fail now.
    NotAvailable,
    /// 51: STATUS: an ADD would fail now and existing containers may have limited connectivity.
    LimitedConnectivity,
    /// Any other: 100 and up are the plugin's own.
    Other(u32),
}

impl ErrorCode {
    /// As it stands in `code`.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Other(number) => number,
        }
    }
}

impl From<u32> for ErrorCode {
    fn from(number: u32) -> Self {
        match number {
            1 => Self::IncompatibleVersion,
            2 => Self::UnsupportedField,
            3 => Self::UnknownContainer,
            4 => Self::InvalidEnvironment,
            5 => Self::Io,
            6 => Self::Decode,
            7 => Self::InvalidConfig,
            11 => Self::TryAgainLater,
            50 => Self::NotAvailable,
            51 => Self::LimitedConnectivity,
            other => Self::Other(other),
        }
    }
}

/// What a plugin prints on stdout when it fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Its number.
    pub code: ErrorCode,
    /// Short: what failed.
    pub message: String,
    /// Long: why, and what to do. May be empty.
    pub details: String,
}

impl Error {
    /// An error without details.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// For stdout; `version` is the request's.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        let mut value = json!({
            "cniVersion": version.as_str(),
            "code": self.code.number(),
            "msg": self.message,
        });
        if !self.details.is_empty() {
            value["details"] = Value::from(self.details.as_str());
        }
        value
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        let code = match &error {
            ConfigError::NotJson { .. } => ErrorCode::Decode,
            ConfigError::Version(_) => ErrorCode::IncompatibleVersion,
            ConfigError::Unsupported { .. } => ErrorCode::UnsupportedField,
            ConfigError::Missing { .. } | ConfigError::Wrong { .. } => ErrorCode::InvalidConfig,
        };
        Self::new(code, error.to_string())
    }
}

impl From<EnvError> for Error {
    fn from(error: EnvError) -> Self {
        Self::new(ErrorCode::InvalidEnvironment, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn codes_round_trip(number: u32) {
            prop_assert_eq!(ErrorCode::from(number).number(), number);
        }
    }

    #[test]
    fn json_has_the_fields_of_the_specification() {
        let error = Error::new(ErrorCode::TryAgainLater, "the agent does not answer");
        let bare = json!({"cniVersion": "0.4.0", "code": 11, "msg": "the agent does not answer"});
        assert_eq!(error.to_json(Version::V0_4_0), bare);
        assert_eq!(
            error.with_details("start it").to_json(Version::LATEST)["details"],
            "start it"
        );
    }
}
