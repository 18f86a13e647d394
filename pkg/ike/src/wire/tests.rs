//! Tests on bytes.
