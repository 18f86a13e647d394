//! Structures written by hand, so that seeds do not depend on the emitters under test.

/// A payload, proposal, transform or selector: two bytes, its 16-bit length, its body.
pub(crate) fn sized(first: [u8; 2], body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 4).unwrap();
    [&first[..], &length.to_be_bytes(), body].concat()
}

/// A chain of payloads: for each its type and body. Returns the first type and the bytes.
pub(crate) fn chain(payloads: &[(u8, Vec<u8>)]) -> (u8, Vec<u8>) {
    let next = |at: usize| payloads.get(at).map_or(0, |(kind, _)| *kind);
    let sized = |(at, (_, body)): (usize, &(u8, Vec<u8>))| sized([next(at + 1), 0], body);
    (
        next(0),
        payloads.iter().enumerate().flat_map(sized).collect(),
    )
}

/// An IKE message of version 2.0.
pub(crate) fn message(exchange: u8, flags: u8, id: u32, (first, chain): (u8, Vec<u8>)) -> Vec<u8> {
    let length = u32::try_from(28 + chain.len()).unwrap();
    let mut bytes = b"initiatrresponde".to_vec();
    bytes.extend([first, 0x20, exchange, flags]);
    bytes.extend(id.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    [bytes, chain].concat()
}

/// `bytes` with those at `at` replaced.
pub(crate) fn with(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// `bytes` without the last `count`.
pub(crate) fn cut(bytes: &[u8], count: usize) -> Vec<u8> {
    bytes[..bytes.len() - count].to_vec()
}
