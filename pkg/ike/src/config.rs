//! What an endpoint is told: who it is, whom it may talk to and what to negotiate.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use espalier_secret::SecretBytes;

use crate::crypto::{Kem, KexGroup, Prf, SkCipher};
use crate::suite::{ChildSuite, EspSuite};

/// A node's IKE identity, sent as ID_FQDN (RFC 7296 §3.5): the name of its Node object. Cheap to clone: all clones share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub Arc<str>);

impl From<&str> for Identity {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One traffic selector (RFC 7296 §3.13.1). Ports are inclusive; `0..=65535` is any. Protocol 0 is any.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrafficSelector {
    /// IP protocol number, 0 for any.
    pub protocol: u8,
    /// First port.
    pub start_port: u16,
    /// Last port.
    pub end_port: u16,
    /// First address.
    pub start: IpAddr,
    /// Last address, of the same family.
    pub end: IpAddr,
}

/// This node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sent as IDi or IDr.
    pub identity: Identity,
    /// Certificate and key; `None` where every peer uses a PSK.
    pub credentials: Option<crate::identity::Credentials>,
    /// Who may vouch for peers; empty where every peer uses a PSK.
    pub trust: crate::identity::TrustAnchors,
    /// When SAs are rekeyed; applies to SAs made from now on.
    pub rekeying: Rekeying,
    /// How IKE SAs are protected, with peers that have no policy of their own. AES-CBC does not belong here.
    pub ike: IkePolicy,
    /// Half-open IKE SAs of unknown addresses from which on their IKE_SA_INITs need a cookie (RFC 7296 §2.6); the default is
    /// [`crate::limits::HALF_OPEN`]. A cookie costs a round trip; configured peers are spared it, unless this is 0.
    pub cookie_threshold: usize,
}

impl Config {
    /// A node without certificate and with the default lifetimes. Later settings have their defaults here.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            credentials: None,
            trust: crate::identity::TrustAnchors::default(),
            rekeying: Rekeying::default(),
            ike: IkePolicy::default(),
            cookie_threshold: crate::limits::HALF_OPEN,
        }
    }
}

/// What protects IKE SAs: offered in this order, and nothing else is taken.
///
/// A responder does not know its peer at IKE_SA_INIT: it chooses by the policies of the peers that have the source address
/// (else by [`Config::ike`]), and checks in IKE_AUTH that the choice is allowed for the peer that authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkePolicy {
    /// Protection of SK payloads. AES-CBC only for a peer that has nothing better ([`PeerConfig::ike`]).
    pub ciphers: Vec<SkCipher>,
    /// Pseudo-random functions.
    pub prfs: Vec<Prf>,
    /// Key exchange methods; the first one is tried first. In rekeys, too.
    pub groups: Vec<KexGroup>,
    /// Whether ML-KEM is added to them.
    pub post_quantum: PostQuantum,
    /// With which parameters; not looked at where it is [`PostQuantum::Off`].
    pub kems: Vec<Kem>,
}

/// Whether an IKE SA's keys also come from ML-KEM, which no quantum computer is known to break (RFC 9370).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PostQuantum {
    /// Neither offered nor taken.
    Off,
    /// With every peer that can.
    Preferred,
    /// Peers that cannot are refused.
    Required,
}

impl PostQuantum {
    /// With ML-KEM, without, or both, in order of preference.
    pub(crate) fn ways(self) -> &'static [bool] {
        match self {
            Self::Off => &[false],
            Self::Preferred => &[true, false],
            Self::Required => &[true],
        }
    }
}

impl Default for IkePolicy {
    fn default() -> Self {
        Self {
            ciphers: vec![
                SkCipher::Aes256Gcm16,
                SkCipher::Aes128Gcm16,
                SkCipher::ChaCha20Poly1305,
            ],
            prfs: vec![Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512],
            groups: vec![KexGroup::X25519, KexGroup::P256, KexGroup::P384],
            post_quantum: PostQuantum::Preferred,
            kems: vec![Kem::MlKem768, Kem::MlKem1024],
        }
    }
}

/// When and how SAs are replaced (RFC 7296 §2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rekeying {
    /// Age of a CHILD_SA at which the lower identity begins to rekey it; the default is [`crate::limits::CHILD_SOFT`].
    pub child_soft: Duration,
    /// Age at which a CHILD_SA ends in any case; the default is [`crate::limits::CHILD_HARD`].
    pub child_hard: Duration,
    /// Age of an IKE SA at which the lower identity begins to rekey it; the default is [`crate::limits::IKE_SOFT`].
    pub ike_soft: Duration,
    /// Age at which an IKE SA ends in any case, with its CHILD_SAs; the default is [`crate::limits::IKE_HARD`]. A new one is tried
    /// beside it before.
    pub ike_hard: Duration,
    /// Age of an authentication at which a whole new IKE SA is made beside the old one, which goes when that is in use.
    /// `None`: never. Where it does not succeed, the old one ends at twice this age.
    pub reauth: Option<Duration>,
    /// What a CHILD_SA may carry before it is rekeyed, as the driver reports it ([`crate::Endpoint::note_usage`]); the default
    /// is no limit but that of 32-bit sequence numbers.
    pub child_volume: Volume,
    /// Insist on a new key exchange for each rekeyed CHILD_SA (perfect forward secrecy). It is always offered.
    pub require_pfs: bool,
}

impl Default for Rekeying {
    fn default() -> Self {
        use crate::limits::{CHILD_HARD, CHILD_SOFT, IKE_HARD, IKE_SOFT};
        Self {
            child_soft: CHILD_SOFT,
            child_hard: CHILD_HARD,
            ike_soft: IKE_SOFT,
            ike_hard: IKE_HARD,
            reauth: None,
            child_volume: Volume::UNLIMITED,
            require_pfs: true,
        }
    }
}

/// Bytes and packets in one direction of a CHILD_SA; `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Volume {
    /// Bytes after which it is rekeyed.
    pub soft_bytes: u64,
    /// Bytes after which it ends.
    pub hard_bytes: u64,
    /// Packets after which it is rekeyed.
    pub soft_packets: u64,
    /// Packets after which it ends.
    pub hard_packets: u64,
}

impl Volume {
    /// No limits.
    pub const UNLIMITED: Self = Self {
        soft_bytes: u64::MAX,
        hard_bytes: u64::MAX,
        soft_packets: u64::MAX,
        hard_packets: u64::MAX,
    };
}

/// How a peer proves who it is. The same way is used in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAuth {
    /// Certificate under [`Config::trust`], with this node's own [`Config::credentials`].
    Certificate,
    /// Shared secret of at least 32 bytes.
    Psk(SecretBytes),
}

/// Which of the CHILD_SAs with a peer. A rekey keeps it. It is this node's own: the peer may count otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildId {
    /// 0: [`PeerConfig::child`], made with the IKE SA. Others are those of [`crate::Endpoint::add_child`].
    pub number: u32,
    /// The CPU (or other resource) that it is for, counted from 0; `None`: the fallback for all others (RFC 9611).
    pub cpu: Option<u32>,
}

impl ChildId {
    /// The one that is made with the IKE SA.
    pub const FIRST: Self = Self::fallback(0);

    /// After all others, for ranges.
    pub(crate) const LAST: Self = Self {
        number: u32::MAX,
        cpu: Some(u32::MAX),
    };

    pub(crate) const fn fallback(number: u32) -> Self {
        Self { number, cpu: None }
    }
}

/// A post-quantum preshared key (RFC 8784): CHILD_SAs and rekeyed IKE SAs are safe as long as it is secret, whatever becomes of
/// the key exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ppk {
    /// Its name, the same on both ends (PPK_ID_FIXED); sent inside the IKE SA's protection.
    pub id: String,
    /// At least 32 bytes that cannot be guessed.
    pub key: SecretBytes,
    /// Refuse the peer if it does not use it. Otherwise it is used where both ends have it.
    pub required: bool,
}

/// What may be around ESP or AH (docs/encapsulation.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Encapsulations {
    /// Nothing: ESP or AH directly in IP. Never through a NAT.
    pub raw: bool,
    /// UDP (RFC 3948). Never for AH.
    pub udp: bool,
}

impl Encapsulations {
    const RAW: u8 = 1;
    const UDP: u8 = 2;

    pub(crate) fn to_byte(self) -> u8 {
        (u8::from(self.raw) * Self::RAW) | (u8::from(self.udp) * Self::UDP)
    }

    /// Bits that are not known are somebody else's later ones.
    pub(crate) fn from_byte(byte: u8) -> Self {
        Self {
            raw: byte & Self::RAW != 0,
            udp: byte & Self::UDP != 0,
        }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            raw: self.raw && other.raw,
            udp: self.udp && other.udp,
        }
    }
}

impl fmt::Display for Encapsulations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.raw, self.udp) {
            (true, true) => "raw or in UDP",
            (true, false) => "raw only",
            (false, true) => "in UDP only",
            (false, false) => "in no way",
        })
    }
}

/// What CHILD_SA to have with a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildConfig {
    /// USE_TRANSPORT_MODE (RFC 7296 §1.3.1); else tunnel mode.
    pub transport: bool,
    /// ESP or AH algorithms in order of preference. What can be combined freely is offered in one proposal.
    pub suites: Vec<ChildSuite>,
    /// Offer and accept extended sequence numbers; when false they are refused.
    pub esn: bool,
    /// What this node sends from.
    pub local_ts: Vec<TrafficSelector>,
    /// What this node sends to.
    pub remote_ts: Vec<TrafficSelector>,
    /// How many CHILD_SAs of the same kind to have besides it, one for each CPU (RFC 9611), and how many the peer may make at
    /// most. `None`: none, and nothing is said of it.
    pub per_cpu: Option<u32>,
    /// What may be around it, agreed on with a node of the mesh for each CHILD_SA: raw where both may, else UDP. `None`, and with
    /// peers of other implementations: nothing is said, UDP where there is a NAT.
    pub encapsulations: Option<Encapsulations>,
}

impl ChildConfig {
    /// As it is for one IKE SA: encapsulation is only spoken of in a mesh, and behind a NAT there is no choice.
    pub(crate) fn within(&self, mesh: bool, nat: bool) -> Self {
        let mut config = self.clone();
        config.encapsulations = self
            .encapsulations
            .filter(|_| mesh)
            .map(|can| Encapsulations {
                raw: can.raw && !nat,
                ..can
            });
        config
    }

    /// Transport mode with ESP by AES-GCM and ESN. Later settings have their defaults here.
    #[must_use]
    pub fn new(local_ts: Vec<TrafficSelector>, remote_ts: Vec<TrafficSelector>) -> Self {
        Self {
            transport: true,
            suites: vec![EspSuite::Aes256Gcm16.into(), EspSuite::Aes128Gcm16.into()],
            esn: true,
            local_ts,
            remote_ts,
            per_cpu: None,
            encapsulations: None,
        }
    }
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Expected identity.
    pub identity: Identity,
    /// UID of its Node; where both this and a UID in the certificate are there, they must be equal.
    pub uid: Option<String>,
    /// Where to send from. Port 500 or 4500.
    pub local: SocketAddr,
    /// Where to send to. Port 500 or 4500.
    pub remote: SocketAddr,
    /// Addresses that may claim this identity: those of its Node.
    pub addresses: Vec<IpAddr>,
    /// How it proves who it is.
    pub auth: PeerAuth,
    /// A key that is mixed into all others, besides how it proves who it is (RFC 8784).
    pub ppk: Option<Ppk>,
    /// How IKE SAs with it are protected; `None`: as [`Config::ike`] says.
    pub ike: Option<IkePolicy>,
    /// The CHILD_SA.
    pub child: ChildConfig,
    /// Pretend to be behind a NAT, so that both ends use UDP encapsulation (for paths that drop ESP): this end sends a
    /// NAT_DETECTION_SOURCE_IP that fits nothing. Towards a peer of another implementation; between two nodes of a mesh the
    /// data plane decides.
    pub force_udp_encapsulation: bool,
    /// Make the IKE SA without CHILD_SA, where the peer can (RFC 6023), and the first one by CREATE_CHILD_SA at once: it has a key
    /// exchange of its own, and its proposal and selectors are shown to nobody who could not authenticate.
    pub childless: bool,
    /// This node's announcement (opaque, at most 64 bytes), carried as a private notify in IKE_AUTH by both sides.
    pub announcement: Vec<u8>,
}

impl PeerConfig {
    /// A peer at `remote` that may claim this address only. Later settings have their defaults here.
    #[must_use]
    pub fn new(
        identity: Identity,
        local: SocketAddr,
        remote: SocketAddr,
        auth: PeerAuth,
        child: ChildConfig,
    ) -> Self {
        Self {
            identity,
            uid: None,
            local,
            remote,
            addresses: vec![remote.ip()],
            auth,
            ppk: None,
            ike: None,
            child,
            force_udp_encapsulation: false,
            childless: false,
            announcement: Vec::new(),
        }
    }

    /// Without a PPK there is to be no IKE SA.
    pub(crate) fn requires_ppk(&self) -> bool {
        self.ppk.as_ref().is_some_and(|ppk| ppk.required)
    }

    /// What protects IKE SAs with this peer.
    pub(crate) fn policy<'a>(&'a self, config: &'a Config) -> &'a IkePolicy {
        self.ike.as_ref().unwrap_or(&config.ike)
    }
}
