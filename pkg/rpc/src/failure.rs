//! The seam's errors as gRPC statuses and back.

use espalier_dataplane_core::{Error, PeerId, Spi};
use prost::Message as _;
use tonic::{Code, Status};

use crate::dataplane::{Failure, InvalidField, PeerSpi, failure::Kind};

/// Fields that [`Error::Invalid`] may name across the wire; it holds a static string.
const FIELDS: &[&str] = &[
    "aead",
    "age_s",
    "cpu",
    "direction",
    "encapsulation",
    "esn",
    "hard_seconds",
    "id",
    "key",
    "kind",
    "local",
    "local_mac",
    "mode",
    "overlay",
    "own_cidrs",
    "peer",
    "pod_cidrs",
    "remote",
    "remote_mac",
    "replay_window",
    "spi",
    "suite",
    "udp",
];

/// The status that a data plane answers with; its details carry the error for [`error_from_status`].
#[must_use]
pub fn status_from_error(error: &Error) -> Status {
    let (code, kind) = match error {
        Error::Invalid { field, why } => {
            let invalid = InvalidField {
                field: (*field).into(),
                why: why.clone(),
            };
            (Code::InvalidArgument, Kind::Invalid(invalid))
        }
        Error::NoSuchPeer(peer) => (Code::NotFound, Kind::NoSuchPeer(peer.0.clone())),
        Error::NoSuchSa(peer, spi) => (
            Code::NotFound,
            Kind::NoSuchSa(PeerSpi {
                peer: peer.0.clone(),
                spi: spi.0,
            }),
        ),
        Error::SpiReused(spi) => (Code::AlreadyExists, Kind::SpiReused(spi.0)),
        Error::Unreachable(why) => return Status::unavailable(why.clone()),
    };
    let details = Failure { kind: Some(kind) }.encode_to_vec();
    Status::with_details(code, error.to_string(), details.into())
}

/// The error that a data plane meant. A status without details is [`Error::Unreachable`] with its message.
#[must_use]
pub fn error_from_status(status: &Status) -> Error {
    match Failure::decode(status.details())
        .ok()
        .and_then(|failure| failure.kind)
    {
        Some(Kind::Invalid(InvalidField { field, why })) => invalid(&field, why),
        Some(Kind::NoSuchPeer(peer)) => Error::NoSuchPeer(PeerId(peer)),
        Some(Kind::NoSuchSa(PeerSpi { peer, spi })) => Error::NoSuchSa(PeerId(peer), Spi(spi)),
        Some(Kind::SpiReused(spi)) => Error::SpiReused(Spi(spi)),
        None => Error::Unreachable(describe(status)),
    }
}

fn invalid(field: &str, why: String) -> Error {
    match FIELDS.iter().find(|known| **known == field) {
        Some(field) => Error::Invalid { field, why },
        None => Error::Invalid {
            field: "request",
            why: format!("{field}: {why}"),
        },
    }
}

fn describe(status: &Status) -> String {
    match status.code() {
        Code::Unavailable => status.message().into(),
        code => format!("{code:?}: {}", status.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire() {
        let peer = PeerId("node-b".into());
        let errors = [
            Error::Invalid {
                field: "local_mac",
                why: "expected 6 bytes, got 5".into(),
            },
            Error::NoSuchPeer(peer.clone()),
            Error::NoSuchSa(peer, Spi(0x1234_5678)),
            Error::SpiReused(Spi(7)),
            Error::Unreachable("gone".into()),
        ];
        for error in errors {
            let back = error_from_status(&status_from_error(&error));
            assert_eq!(format!("{back:?}"), format!("{error:?}"));
        }
    }

    #[test]
    fn an_unknown_field_is_still_named() {
        let error = Error::Invalid {
            field: "colour",
            why: "too blue".into(),
        };
        let back = error_from_status(&status_from_error(&error));
        assert_eq!(back.to_string(), "request: colour: too blue");
    }

    #[test]
    fn a_status_without_details_keeps_its_message() {
        let error = error_from_status(&Status::internal("panicked"));
        assert!(
            matches!(&error, Error::Unreachable(why) if why == "Internal: panicked"),
            "{error}"
        );
    }
}
