//! Reading JSON objects so that a wrong field is named by its whole path. Unknown fields are not looked at; `null` counts
//! as absent, which is how Go programs write an empty list.

use serde_json::{Map, Value};

use crate::ConfigError;

/// An object and where it stands in the document.
pub(crate) struct Object<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    pub(crate) fn new(path: &str, value: &'a Value) -> Result<Self, ConfigError> {
        let map = value
            .as_object()
            .ok_or_else(|| wrong(path, "an object", value))?;
        Ok(Self {
            path: path.to_owned(),
            map,
        })
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        let expected = "a string";
        self.get(key)
            .map(|v| {
                v.as_str()
                    .ok_or_else(|| wrong(&self.path(key), expected, v))
            })
            .transpose()
    }

    pub(crate) fn required_string(&self, key: &str) -> Result<&'a str, ConfigError> {
        self.string(key)?
            .filter(|text| !text.is_empty())
            .ok_or_else(|| ConfigError::Missing {
                field: self.path(key),
                expected: "a string that is not empty",
            })
    }

    /// A string that `T` parses; an empty one counts as absent.
    pub(crate) fn parsed<T: std::str::FromStr>(
        &self,
        key: &str,
        expected: &'static str,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.string(key)?.filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|_| wrong(&self.path(key), expected, &Value::from(text)))
    }

    pub(crate) fn required<T: std::str::FromStr>(
        &self,
        key: &str,
        expected: &'static str,
    ) -> Result<T, ConfigError> {
        let missing = || ConfigError::Missing {
            field: self.path(key),
            expected,
        };
        self.parsed(key, expected)?.ok_or_else(missing)
    }

    pub(crate) fn unsigned(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        let number = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let expected = "a number from 0 to 4294967295";
        self.get(key)
            .map(|v| number(v).ok_or_else(|| wrong(&self.path(key), expected, v)))
            .transpose()
    }

    pub(crate) fn list(&self, key: &str) -> Result<Vec<(String, &'a Value)>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let items = value
            .as_array()
            .ok_or_else(|| wrong(&self.path(key), "a list", value))?;
        Ok(items
            .iter()
            .enumerate()
            .map(|(i, v)| (format!("{}[{i}]", self.path(key)), v))
            .collect())
    }

    pub(crate) fn objects(&self, key: &str) -> Result<Vec<Object<'a>>, ConfigError> {
        self.list(key)?
            .into_iter()
            .map(|(path, value)| Object::new(&path, value))
            .collect()
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        let text = |(path, v): (String, &Value)| {
            v.as_str()
                .map(str::to_owned)
                .ok_or_else(|| wrong(&path, "a string", v))
        };
        self.list(key)?.into_iter().map(text).collect()
    }
}

pub(crate) fn wrong(field: &str, expected: &'static str, found: &Value) -> ConfigError {
    let field = if field.is_empty() {
        "the document"
    } else {
        field
    }
    .to_owned();
    ConfigError::Wrong {
        field,
        expected,
        found: shortened(&found.to_string()),
    }
}

/// Enough of a wrong value to recognise it by.
pub(crate) fn shortened(text: &str) -> String {
    const LIMIT: usize = 80;
    if text.chars().count() <= LIMIT {
        return text.to_owned();
    }
    text.chars().take(LIMIT).chain("…".chars()).collect()
}
