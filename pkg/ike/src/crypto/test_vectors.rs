//! Reads `tests/vectors/*.json`; the scripts beside them say how they were made.

use serde_json::Value;

pub(crate) fn load(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

pub(crate) fn rows<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    let rows = value[field]
        .as_array()
        .unwrap_or_else(|| panic!("no array {field}"));
    assert!(!rows.is_empty(), "{field} is empty");
    rows
}

pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("no text {field} in {value}"))
}

pub(crate) fn bytes(value: &Value, field: &str) -> Vec<u8> {
    hex::decode(text(value, field)).unwrap()
}

pub(crate) fn number(value: &Value, field: &str) -> u64 {
    u64::from_be_bytes(bytes(value, field).try_into().unwrap())
}

/// What a key type must never print: its bytes, in hex or as decimal lists.
pub(crate) fn assert_redacted(shown: &str, secret: &[u8]) {
    assert!(secret.len() >= 16, "too short to look for");
    let listed = secret
        .iter()
        .take(4)
        .map(u8::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let hexed = hex::encode(&secret[..4]);
    assert!(
        !shown.contains(&listed) && !shown.to_lowercase().contains(&hexed),
        "{shown}"
    );
}
