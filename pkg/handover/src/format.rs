//! A state as bytes. Pure: no descriptors, no clock.
//!
//! ```text
//!   0          8         12          20            52
//!  | ESPALIER | version | length    | SHA-256     | protobuf (proto/state.proto) ...
//!  | magic    | u32, BE | of body,  | of the body |
//!  |          |         | u64, BE   |             |
//! ```

use std::ops::RangeInclusive;

use aws_lc_rs::digest::{SHA256, digest};
use prost::Message as _;
use zeroize::Zeroizing;

use crate::{Plane, Role, State, proto};

/// The newest version: raw ESP of the userspace data plane. What needs none of that is written as an older one, which programs before it
/// read, too.
pub const VERSION: u32 = 3;
/// Several TUN queues or several UDP sockets of the userspace data plane.
const QUEUES: u32 = 2;
/// One TUN queue and one UDP socket of the userspace data plane.
const OLDEST: u32 = 1;
/// What is read.
pub const VERSIONS: RangeInclusive<u32> = OLDEST..=VERSION;
/// Longest state in bytes, header included: one with some 10 million keys that were ever used.
pub const MAX_LEN: usize = 256 << 20;

const MAGIC: &[u8; 8] = b"ESPALIER";
/// Bytes before the body.
pub const HEADER_LEN: usize = 52;

/// Why a state cannot be read. Nothing of it is used then.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Shorter than its header.
    #[error("expected {HEADER_LEN} bytes of header, got {0}")]
    Truncated(usize),
    /// Longer than [`MAX_LEN`].
    #[error("expected at most {MAX_LEN} bytes, got {0}")]
    TooLong(usize),
    /// Something else.
    #[error("this is no state of a data plane")]
    Magic,
    /// Of a release that is too old or too new for this one.
    #[error(
        "expected a state of version {} to {}, got {}; upgrade by a release in between, or delete the pod", VERSIONS.start(), VERSIONS.end(), .0
    )]
    Version(u32),
    /// Cut, or with something behind it.
    #[error("expected {expected} bytes behind the header, got {got}")]
    Length {
        /// As the header says.
        expected: u64,
        /// As there are.
        got: usize,
    },
    /// Changed on the way.
    #[error("the checksum does not fit")]
    Checksum,
    /// No such messages.
    #[error("the state's fields cannot be read: {0}")]
    Body(#[from] prost::DecodeError),
    /// A field has what it cannot have.
    #[error("{field}: {why}")]
    Field {
        /// Which.
        field: &'static str,
        /// What was expected and what came.
        why: String,
    },
    /// A peer or an SA that no operation lets in.
    #[error(transparent)]
    Refused(#[from] espalier_dataplane_core::Error),
}

/// The bytes of `state`. They hold keys.
#[must_use]
pub fn write(state: State) -> Zeroizing<Vec<u8>> {
    let version = version_of(&state);
    let message = proto::State::from(state);
    let length = message.encoded_len();
    // In one piece from the start: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(HEADER_LEN + length));
    bytes.resize(HEADER_LEN, 0);
    message.encode_raw(&mut *bytes);
    let (header, body) = bytes.split_at_mut(HEADER_LEN);
    header.copy_from_slice(&header_of(version, body));
    bytes
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// [`FormatError`].
pub fn read(bytes: &[u8]) -> Result<State, FormatError> {
    if bytes.len() > MAX_LEN {
        return Err(FormatError::TooLong(bytes.len()));
    }
    let (header, body) = bytes
        .split_first_chunk::<HEADER_LEN>()
        .ok_or(FormatError::Truncated(bytes.len()))?;
    let (magic, version, length, checksum) = parts(header);
    if magic != *MAGIC {
        return Err(FormatError::Magic);
    }
    if !VERSIONS.contains(&version) {
        return Err(FormatError::Version(version));
    }
    if u64::try_from(body.len()) != Ok(length) {
        let got = body.len();
        return Err(FormatError::Length {
            expected: length,
            got,
        });
    }
    if digest(&SHA256, body).as_ref() != checksum {
        return Err(FormatError::Checksum);
    }
    proto::State::decode(body)?.try_into()
}

/// `body` behind a header that fits: for fuzzing, which would not find the checksum.
#[doc(hidden)]
#[must_use]
pub fn seal(body: &[u8]) -> Vec<u8> {
    [&header_of(VERSION, body)[..], body].concat()
}

/// The version that a state is written as: the oldest one whose programs can go on with it. They refuse a newer one before they are
/// executed.
#[must_use]
pub fn version_of(state: &State) -> u32 {
    let Plane::Userspace(frozen) = &state.plane else {
        return OLDEST;
    };
    let of = |role| state.descriptors.iter().filter(|of| **of == role).count();
    let (raw, several) = (of(Role::Raw) > 0, of(Role::Udp) > 1 || of(Role::Tun) > 1);
    match (raw || frozen.has_raw(), several) {
        (true, _) => VERSION,
        (false, true) => QUEUES,
        (false, false) => OLDEST,
    }
}

fn header_of(version: u32, body: &[u8]) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&version.to_be_bytes());
    header[12..20].copy_from_slice(&length.to_be_bytes());
    header[20..].copy_from_slice(digest(&SHA256, body).as_ref());
    header
}

/// Magic, version, length, checksum.
fn parts(header: &[u8; HEADER_LEN]) -> ([u8; 8], u32, u64, [u8; 32]) {
    fn take<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
        std::array::from_fn(|i| header.get(at + i).copied().unwrap_or_default())
    }
    (
        take(header, 0),
        u32::from_be_bytes(take(header, 8)),
        u64::from_be_bytes(take(header, 12)),
        take(header, 20),
    )
}

#[cfg(test)]
mod tests;
