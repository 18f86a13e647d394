//! N, the Notify payload (RFC 7296 §3.10).
//!
//! ```text
//! +--------------+--------------+------------------------------+
//! | Protocol ID  |   SPI Size   |     Notify Message Type      |
//! +--------------+--------------+------------------------------+
//! |             SPI, then Notification Data                    |
//! +------------------------------------------------------------+
//! ```

use super::codec::{Reader, Writer};
use super::{Error, ProtocolId, Spi};

wire_enum! {
    /// Notify message types: errors below 16384, status from there on, private use 8192 to 16383 and 40960 to 65535.
    pub enum NotifyType: u16 {
        /// UNSUPPORTED_CRITICAL_PAYLOAD; data: the payload type.
        UnsupportedCriticalPayload = 1,
        /// INVALID_IKE_SPI.
        InvalidIkeSpi = 4,
        /// INVALID_MAJOR_VERSION.
        InvalidMajorVersion = 5,
        /// INVALID_SYNTAX.
        InvalidSyntax = 7,
        /// INVALID_MESSAGE_ID.
        InvalidMessageId = 9,
        /// INVALID_SPI.
        InvalidSpi = 11,
        /// NO_PROPOSAL_CHOSEN.
        NoProposalChosen = 14,
        /// INVALID_KE_PAYLOAD; data: the method wanted, 2 bytes.
        InvalidKePayload = 17,
        /// AUTHENTICATION_FAILED.
        AuthenticationFailed = 24,
        /// SINGLE_PAIR_REQUIRED.
        SinglePairRequired = 34,
        /// NO_ADDITIONAL_SAS.
        NoAdditionalSas = 35,
        /// INTERNAL_ADDRESS_FAILURE.
        InternalAddressFailure = 36,
        /// FAILED_CP_REQUIRED.
        FailedCpRequired = 37,
        /// TS_UNACCEPTABLE.
        TsUnacceptable = 38,
        /// INVALID_SELECTORS.
        InvalidSelectors = 39,
        /// UNACCEPTABLE_ADDRESSES (RFC 4555).
        UnacceptableAddresses = 40,
        /// UNEXPECTED_NAT_DETECTED (RFC 4555).
        UnexpectedNatDetected = 41,
        /// TEMPORARY_FAILURE.
        TemporaryFailure = 43,
        /// CHILD_SA_NOT_FOUND.
        ChildSaNotFound = 44,
        /// STATE_NOT_FOUND (RFC 9370).
        StateNotFound = 47,
        /// TS_MAX_QUEUE (RFC 9611).
        TsMaxQueue = 48,
        /// INITIAL_CONTACT.
        InitialContact = 16384,
        /// SET_WINDOW_SIZE.
        SetWindowSize = 16385,
        /// ADDITIONAL_TS_POSSIBLE.
        AdditionalTsPossible = 16386,
        /// IPCOMP_SUPPORTED.
        IpcompSupported = 16387,
        /// NAT_DETECTION_SOURCE_IP; data: a SHA-1.
        NatDetectionSourceIp = 16388,
        /// NAT_DETECTION_DESTINATION_IP; data: a SHA-1.
        NatDetectionDestinationIp = 16389,
        /// COOKIE.
        Cookie = 16390,
        /// USE_TRANSPORT_MODE.
        UseTransportMode = 16391,
        /// HTTP_CERT_LOOKUP_SUPPORTED.
        HttpCertLookupSupported = 16392,
        /// REKEY_SA; with the SPI.
        RekeySa = 16393,
        /// ESP_TFC_PADDING_NOT_SUPPORTED.
        EspTfcPaddingNotSupported = 16394,
        /// NON_FIRST_FRAGMENTS_ALSO.
        NonFirstFragmentsAlso = 16395,
        /// MOBIKE_SUPPORTED (RFC 4555).
        MobikeSupported = 16396,
        /// ADDITIONAL_IP4_ADDRESS (RFC 4555).
        AdditionalIp4Address = 16397,
        /// ADDITIONAL_IP6_ADDRESS (RFC 4555).
        AdditionalIp6Address = 16398,
        /// NO_ADDITIONAL_ADDRESSES (RFC 4555).
        NoAdditionalAddresses = 16399,
        /// UPDATE_SA_ADDRESSES (RFC 4555).
        UpdateSaAddresses = 16400,
        /// COOKIE2 (RFC 4555).
        Cookie2 = 16401,
        /// NO_NATS_ALLOWED (RFC 4555).
        NoNatsAllowed = 16402,
        /// AUTH_LIFETIME (RFC 4478); data: seconds, 4 bytes.
        AuthLifetime = 16403,
        /// CHILDLESS_IKEV2_SUPPORTED (RFC 6023).
        ChildlessIkev2Supported = 16418,
        /// IKEV2_MESSAGE_ID_SYNC_SUPPORTED (RFC 6311).
        MessageIdSyncSupported = 16420,
        /// IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED (RFC 6311).
        ReplayCounterSyncSupported = 16421,
        /// IKEV2_MESSAGE_ID_SYNC (RFC 6311).
        MessageIdSync = 16422,
        /// IPSEC_REPLAY_COUNTER_SYNC (RFC 6311).
        ReplayCounterSync = 16423,
        /// IKEV2_FRAGMENTATION_SUPPORTED (RFC 7383).
        FragmentationSupported = 16430,
        /// SIGNATURE_HASH_ALGORITHMS (RFC 7427); data: 2 bytes per hash.
        SignatureHashAlgorithms = 16431,
        /// USE_PPK (RFC 8784).
        UsePpk = 16435,
        /// PPK_IDENTITY (RFC 8784).
        PpkIdentity = 16436,
        /// NO_PPK_AUTH (RFC 8784).
        NoPpkAuth = 16437,
        /// INTERMEDIATE_EXCHANGE_SUPPORTED (RFC 9242).
        IntermediateExchangeSupported = 16438,
        /// ADDITIONAL_KEY_EXCHANGE (RFC 9370).
        AdditionalKeyExchange = 16441,
        /// SA_RESOURCE_INFO (RFC 9611).
        SaResourceInfo = 16444,
        /// ESPALIER_ANNOUNCEMENT, private use: opaque data, only to peers that sent the vendor ID.
        EspalierAnnouncement = 40961,
        /// ESPALIER_ENCAPSULATION, private use: what is around ESP, a set of bits in one byte (1: nothing, 2: UDP); only to peers that
        /// sent the vendor ID.
        EspalierEncapsulation = 40962,
    }
}

impl NotifyType {
    /// Whether it is an error (RFC 7296 §3.10.1); unknown ones of these in a response mean that the request failed.
    #[must_use]
    pub fn is_error(self) -> bool {
        u16::from(self) < 16384
    }
}

/// A notify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify<'a> {
    /// Protocol of the SA that it is about; ignored without SPI.
    pub protocol: ProtocolId,
    /// SPI of that SA; [`Spi::None`] where it is about the IKE SA or none.
    pub spi: Spi,
    /// Type.
    pub kind: NotifyType,
    /// Data, as the type says.
    pub data: &'a [u8],
}

impl<'a> Notify<'a> {
    /// A notify about no SA or the one that carries it.
    #[must_use]
    pub fn new(kind: NotifyType, data: &'a [u8]) -> Self {
        Self {
            protocol: ProtocolId::None,
            spi: Spi::None,
            kind,
            data,
        }
    }

    /// A notify about an ESP CHILD_SA, as REKEY_SA is.
    #[must_use]
    pub fn about_esp(kind: NotifyType, spi: u32) -> Self {
        Self::about_child(kind, ProtocolId::Esp, spi)
    }

    /// A notify about a CHILD_SA of either protocol.
    #[must_use]
    pub fn about_child(kind: NotifyType, protocol: ProtocolId, spi: u32) -> Self {
        Self {
            protocol,
            spi: Spi::Child(spi),
            kind,
            data: &[],
        }
    }

    /// Parses a payload's body.
    ///
    /// # Errors
    /// [`Error::Truncated`].
    pub fn parse(body: &'a [u8]) -> Result<Self, Error> {
        let mut r = Reader::new("Notify payload", body);
        let protocol = r.u8()?.into();
        let spi_size = r.u8()?;
        let kind = r.u16()?.into();
        let spi = Spi::parse(r.bytes(spi_size.into())?);
        Ok(Self {
            protocol,
            spi,
            kind,
            data: r.rest(),
        })
    }

    pub(super) fn emit(&self, w: &mut Writer) {
        w.u8(self.protocol.into());
        w.u8(self.spi.size());
        w.u16(self.kind.into());
        self.spi.emit(w);
        w.bytes(self.data);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Payload;
    use super::*;

    #[test]
    fn reads_and_writes_data_without_spi() {
        let notify = Notify::new(NotifyType::InvalidKePayload, &[0, 31]);
        assert_eq!(Notify::parse(&[0, 0, 0, 17, 0, 31]).as_ref(), Ok(&notify));
        assert_eq!(Payload::Notify(notify).body(), [0, 0, 0, 17, 0, 31]);
    }

    #[test]
    fn reads_and_writes_rekey_sa() {
        let bytes = [3, 4, 0x40, 0x09, 0xca, 0xfe, 0xba, 0xbe];
        let notify = Notify::about_esp(NotifyType::RekeySa, 0xcafe_babe);
        assert_eq!(Notify::parse(&bytes).as_ref(), Ok(&notify));
        assert_eq!(Payload::Notify(notify).body(), bytes);
    }

    #[test]
    fn spis_of_any_size_are_read() {
        let spi = |bytes: &[u8]| Notify::parse(bytes).unwrap().spi;
        assert_eq!(spi(&[1, 8, 0, 4, 0, 0, 0, 0, 0, 0, 0, 9]), Spi::Ike(9));
        assert_eq!(spi(&[9, 2, 0, 4, 1, 2]), Spi::Other(vec![1, 2]));
        assert!(matches!(
            Notify::parse(&[3, 4, 0, 11, 1, 2, 3]),
            Err(Error::Truncated {
                need: 4,
                have: 3,
                ..
            })
        ));
    }

    #[test]
    fn numbers_and_kinds() {
        for (number, kind, error) in [
            (1, NotifyType::UnsupportedCriticalPayload, true),
            (14, NotifyType::NoProposalChosen, true),
            (8192, NotifyType::Unknown(8192), true),
            (16383, NotifyType::Unknown(16383), true),
            (16384, NotifyType::InitialContact, false),
            (16390, NotifyType::Cookie, false),
            (16391, NotifyType::UseTransportMode, false),
            (16430, NotifyType::FragmentationSupported, false),
            (16431, NotifyType::SignatureHashAlgorithms, false),
            (47, NotifyType::StateNotFound, true),
            (16435, NotifyType::UsePpk, false),
            (16436, NotifyType::PpkIdentity, false),
            (16437, NotifyType::NoPpkAuth, false),
            (16438, NotifyType::IntermediateExchangeSupported, false),
            (16441, NotifyType::AdditionalKeyExchange, false),
            (40961, NotifyType::EspalierAnnouncement, false),
            (40962, NotifyType::EspalierEncapsulation, false),
            (65535, NotifyType::Unknown(65535), false),
        ] {
            assert_eq!(NotifyType::from(number), kind);
            assert_eq!(u16::from(kind), number);
            assert_eq!(kind.is_error(), error, "{number}");
        }
    }
}
