//! What does not fit is refused with the field's name before anything changes.

use espalier_dataplane_core::check::{self, require};
use espalier_dataplane_core::{
    Capabilities, Direction, Encapsulation, Error, Peer, Sa, SaMode, Spi,
};

/// Checks a peer.
pub(super) fn peer(peer: &Peer) -> Result<(), Error> {
    check::peer(peer)?;
    require(crate::reqid::of_stranger(&peer.id).is_none(), "id", || {
        format!(
            "{} is what states without a known peer are listed under; rename the Node",
            peer.id
        )
    })
}

/// Checks an SA by itself and against what the kernel can; `port` is the UDP port that this process holds.
pub(super) fn sa(sa: &Sa, can: &Capabilities, port: u16) -> Result<(), Error> {
    check::sa(sa)?;
    require(can.suites.contains(&sa.suite), "suite", || {
        format!(
            "this kernel has {:?}, got {:?}; configure one of these, or load what the notes of the data plane name",
            can.suites, sa.suite
        )
    })?;
    require(can.tunnel || sa.mode == SaMode::Transport, "mode", || {
        "this kernel has no tunnel mode for ESP; use transport mode".into()
    })?;
    require(can.esn || !sa.esn, "esn", || {
        "this kernel has no extended sequence numbers; negotiate without".into()
    })?;
    window(sa, can.max_replay_window)?;
    encapsulation(sa, can, port)?;
    match sa.cpu {
        Some(cpu) => require(cpu < can.cpus, "cpu", || {
            format!(
                "expected a CPU below {} (0: this kernel has no SAs of single CPUs), got {cpu}",
                can.cpus
            )
        }),
        None => Ok(()),
    }
}

fn window(sa: &Sa, max: u32) -> Result<(), Error> {
    let packets = sa.replay_window;
    let fits = sa.direction == Direction::Out || (1..=max).contains(&packets);
    require(fits, "replay_window", || {
        format!("expected 1 to {max} packets, got {packets}")
    })
}

fn encapsulation(sa: &Sa, can: &Capabilities, port: u16) -> Result<(), Error> {
    let Encapsulation::Udp {
        local_port,
        remote_port,
    } = sa.encapsulation
    else {
        return require(can.raw, "encapsulation", || {
            "this kernel has no raw ESP; use UDP encapsulation".into()
        });
    };
    require(!sa.suite.is_ah(), "encapsulation", || {
        "AH cannot be in UDP (RFC 3948 is about ESP); use raw encapsulation or an ESP suite".into()
    })?;
    require(can.udp, "encapsulation", || {
        "this kernel has no ESP in UDP; use raw encapsulation".into()
    })?;
    require(local_port == port, "encapsulation", || {
        format!("expected local port {port}, which this data plane holds, got {local_port}")
    })?;
    require(remote_port != 0, "encapsulation", || {
        "expected a UDP port of the peer, got 0".into()
    })
}

/// The SPI is in use by somebody else's state.
pub(super) fn spi_foreign(spi: Spi, reqid: u32) -> Error {
    Error::Invalid {
        field: "spi",
        why: format!(
            "{spi} belongs to a state of another program (reqid {reqid}), see `ip xfrm state`; choose another"
        ),
    }
}

/// It was installed and is not there any more.
pub(super) fn vanished(spi: Spi) -> Error {
    Error::Invalid {
        field: "spi",
        why: format!(
            "the inbound SA {spi} was removed from the kernel by somebody else; a second life would forget which packets came (S4), negotiate a new SA"
        ),
    }
}
