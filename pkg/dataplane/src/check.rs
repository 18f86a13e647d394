//! What every data plane refuses, with the field's name, before anything changes.

use crate::{Error, Overlay, Peer, PeerId, Sa, Spi};

/// [`Error::Invalid`] unless `fits`.
///
/// # Errors
/// [`Error::Invalid`] of this field, with what was expected, what was found, and the remedy.
pub fn require(fits: bool, field: &'static str, why: impl FnOnce() -> String) -> Result<(), Error> {
    if fits {
        Ok(())
    } else {
        Err(Error::Invalid { field, why: why() })
    }
}

/// Checks a peer by itself.
///
/// # Errors
/// [`Error::Invalid`]: no name, addresses that cannot be those of two hosts, an overlay that cannot be.
pub fn peer(peer: &Peer) -> Result<(), Error> {
    let (local, remote) = (peer.local, peer.remote);
    require(!peer.id.0.is_empty(), "id", || {
        "expected the Node's name, got none".into()
    })?;
    require(local.is_ipv4() == remote.is_ipv4(), "local", || {
        format!("expected the family of the remote address {remote}, got {local}")
    })?;
    require(local != remote, "remote", || {
        format!("{remote} is this node's own address")
    })?;
    if let Overlay::Vxlan { vni, port } = peer.overlay {
        require(vni < 1 << 24, "overlay.vni", || {
            format!("expected 24 bits, got {vni:#x}")
        })?;
        require(port != 0, "overlay.port", || {
            "expected a UDP port, got 0".into()
        })?;
    }
    Ok(())
}

/// Checks an SA's SPI and the length of its key.
///
/// # Errors
/// [`Error::Invalid`].
pub fn sa(sa: &Sa) -> Result<(), Error> {
    require(sa.spi.0 >= 256, "spi", || {
        format!("0 to 255 are reserved (RFC 4303 §2.1), got {}", sa.spi.0)
    })?;
    let (expected, got) = (sa.suite.key_material_len(), sa.key.len());
    require(got == expected, "key", || {
        let suite = sa.suite;
        format!("{suite:?} needs {expected} bytes of key and salt, got {got}")
    })
}

/// The SPI is in use by another inbound SA.
#[must_use]
pub fn spi_taken(spi: Spi, by: &PeerId) -> Error {
    Error::Invalid {
        field: "spi",
        why: format!(
            "{spi} belongs to another inbound SA of peer {by}; remove that first or choose another"
        ),
    }
}
