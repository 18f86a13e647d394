use crate::replay::ReplayError;

/// Key material that does not fit its algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Wrong number of bytes.
    #[error("{algorithm} needs {expected} bytes of key and salt, got {got}; derive KEYMAT anew")]
    Length {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// Key and 4-byte salt, in bytes.
        expected: usize,
        /// What came, in bytes.
        got: usize,
    },
    /// The backend does not have the algorithm.
    #[error("{0} is not available in this AEAD backend; choose another algorithm or backend")]
    Unsupported(&'static str),
}

/// Why a packet was not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Every sequence number has been used (RFC 4303 §3.3.3). The SA seals nothing more.
    #[error("the SA has used its last sequence number; negotiate a new SA")]
    Exhausted,
    /// The buffer is too short for header, payload, trailer and ICV.
    #[error("the output needs {needed} bytes, the buffer has {got}")]
    BufferTooShort {
        /// Bytes of the whole ESP packet.
        needed: usize,
        /// Bytes of the buffer.
        got: usize,
    },
    /// The cipher refused.
    #[error("the AEAD refused to seal; is the packet longer than the algorithm allows?")]
    Cipher,
}

/// Why a packet was not opened. Only [`OpenError::BadTrailer`] is seen by packets that are authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Shorter than header, trailer and ICV.
    #[error("an ESP packet has at least {needed} bytes, got {got}")]
    Truncated {
        /// Least length in bytes.
        needed: usize,
        /// What came, in bytes.
        got: usize,
    },
    /// The SPI is another SA's.
    #[error("the packet has SPI {got:08x}, this SA is {expected:08x}")]
    WrongSpi {
        /// This SA's SPI.
        expected: u32,
        /// What came.
        got: u32,
    },
    /// The replay window refused the sequence number.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The ICV does not match: forged, damaged, or sealed with another key.
    #[error("the ICV does not match")]
    BadIcv,
    /// Authentic, but the pad length exceeds the packet.
    #[error("the pad length {pad_len} exceeds the {available} bytes in front of it")]
    BadTrailer {
        /// What the trailer says, in bytes.
        pad_len: usize,
        /// Bytes in front of the trailer.
        available: usize,
    },
}

/// Why framing was not built or not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the header needs or says.
    #[error("{header}: {needed} bytes expected, {got} there")]
    Truncated {
        /// Which header.
        header: &'static str,
        /// Bytes expected.
        needed: usize,
        /// Bytes there.
        got: usize,
    },
    /// A field has a value that does not belong here.
    #[error("{field}: {expected} expected, got {got}")]
    Unexpected {
        /// Which field.
        field: &'static str,
        /// What belongs there.
        expected: u32,
        /// What came.
        got: u32,
    },
    /// Neither IPv4 nor IPv6, or the wrong one of the two.
    #[error("an IP packet was expected, its first byte is {0:#04x}")]
    NotIp(u8),
    /// Longer than a length field can say.
    #[error("{len} bytes do not fit a 16-bit length field")]
    TooLong {
        /// Length in bytes.
        len: usize,
    },
}
