//! Every limit and timeout of the endpoint, each with its reason and RFC section. What is bounded here bounds memory:
//!
//! - before authentication: [`HALF_OPEN_UNKNOWN`] + [`HALF_OPEN_PER_ADDRESS`] × configured peer addresses IKE SAs of a few
//!   KiB each ([`INIT_BYTES`] is the largest part), and one IKE_AUTH request in fragments each ([`REASSEMBLY_BYTES`]), which only
//!   those can send who have shown that they receive at their address;
//! - per peer after authentication: [`IKE_SAS_PER_PEER`] IKE SAs with [`CHILDREN_PER_SA`] CHILD_SAs each, [`ORPHANS_PER_PEER`] SPI pairs, one
//!   attempt of its own, and [`LINGERING_PER_PEER`] IKE SAs in their last seconds;
//! - of those who were refused in IKE_AUTH: [`LINGERING_REFUSED`] responses.

use std::time::Duration;

// --- Retransmission (RFC 7296 §2.1, §2.4) ---

/// First retransmission of a request. The lower end: round trips in a mesh take milliseconds.
pub const RETRANSMIT_FIRST: Duration = Duration::from_millis(500);
/// Intervals double up to this (exponential backoff, RFC 7296 §2.1).
pub const RETRANSMIT_MAX: Duration = Duration::from_secs(8);
/// Each interval is stretched by up to this many percent, so that a mesh does not retransmit in step.
pub const JITTER_PERCENT: u64 = 25;
/// Sendings of a handshake request before the attempt ends: about 24 s. A new attempt follows (`RETRY_*`).
pub const HANDSHAKE_TRIES: u32 = 6;
/// Sendings of a request on an established IKE SA before the peer counts as gone: about 40 s (RFC 7296 §2.4).
pub const REQUEST_TRIES: u32 = 8;
/// Sendings of a DELETE of an IKE SA that is gone here already.
pub const DELETE_TRIES: u32 = 6;

// --- Who starts, and when (docs/ike-initiator.md) ---

/// `Connect::Policy`: the lower identity starts within this, drawn at random per pair.
pub const START_JITTER: Duration = Duration::from_millis(250);
/// `Connect::Policy`: the higher identity starts by itself when no IKE SA came within this (plus jitter).
pub const PASSIVE_WAIT: Duration = Duration::from_secs(5);
/// A lower identity that has had no answer for this long accepts the other side's crossing attempt.
pub const CROSSING_PATIENCE: Duration = Duration::from_secs(3);
/// After TEMPORARY_FAILURE (RFC 7296 §2.25): the refused side's own attempt is repeated after this (plus jitter) at the
/// earliest, if the other side's did not succeed meanwhile.
pub const CROSSING_WAIT: Duration = Duration::from_secs(2);
/// First wait after a failed attempt.
pub const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Waits double up to this, for ever.
pub const RETRY_MAX: Duration = Duration::from_secs(30);

// --- IKE SAs (RFC 7296 §2.4, §2.21, §1.4.1) ---

/// Silence before an empty INFORMATIONAL asks whether the peer is alive (RFC 7296 §2.4).
pub const DPD_IDLE: Duration = Duration::from_secs(20);
/// From the confirmation of a CHILD_SA to the removal of the ones it replaces: packets under way still arrive.
pub const DRAIN: Duration = Duration::from_secs(5);
/// How long the last response of a closed IKE SA is kept for the peer's retransmissions (RFC 7296 §2.1).
pub const CLOSED_LINGER: Duration = Duration::from_secs(30);
/// IKE SAs of one peer that are gone but for their last response or an unacknowledged DELETE. More than any peer that means
/// well has in [`REKEYED_LINGER`]; one that does not could make hundreds in a second. The oldest goes first.
pub const LINGERING_PER_PEER: usize = 16;
/// The same of everybody who was refused in IKE_AUTH: whoever cannot authenticate may repeat a request for a lost refusal,
/// while there are few of them.
pub const LINGERING_REFUSED: usize = 128;
/// An IKE SA that came up without CHILD_SA is dropped by the responder after this if the initiator did not delete it.
pub const CHILDLESS_LINGER: Duration = Duration::from_secs(10);
/// Established IKE SAs with one peer: the one in use and its successors until one is confirmed. The oldest goes first.
pub const IKE_SAS_PER_PEER: usize = 4;
/// CHILD_SAs per peer that outlived their IKE SA and wait to be replaced. The oldest goes first.
pub const ORPHANS_PER_PEER: usize = 4;

// --- Lifetimes and rekeying (RFC 7296 §2.8; docs/ike-rekey.md) ---

/// The lower identity rekeys a CHILD_SA at this age, less up to [`REKEY_JITTER_PERCENT`].
pub const CHILD_SOFT: Duration = Duration::from_secs(3600);
/// A CHILD_SA that was not replaced by this age ends, and with it its IKE SA if it has no other.
pub const CHILD_HARD: Duration = Duration::from_secs(24 * 3600);
/// The lower identity rekeys an IKE SA at this age, less up to [`REKEY_JITTER_PERCENT`].
pub const IKE_SOFT: Duration = Duration::from_secs(4 * 3600);
/// An IKE SA that was not replaced by this age ends: as long as a CHILD_SA may last.
pub const IKE_HARD: Duration = Duration::from_secs(24 * 3600);
/// At this many percent of [`IKE_HARD`] a new IKE SA is tried, since rekeys have not succeeded.
pub const RENEW_PERCENT: u32 = 90;
/// At this many percent of a peer's AUTH_LIFETIME, less up to [`REKEY_JITTER_PERCENT`] of that, it is authenticated anew
/// (RFC 4478 §2: before the peer closes the IKE SA).
pub const AUTH_LIFETIME_PERCENT: u32 = 80;
/// However short a peer's AUTH_LIFETIME is, handshakes with it are at least this far apart.
pub const REAUTH_MIN: Duration = Duration::from_secs(10);
/// Packets after which a CHILD_SA without extended sequence numbers is rekeyed, at the latest: three quarters of what there
/// are, so that the margin of the higher identity fits in (RFC 4303 §3.3.3: they never wrap).
pub const SEQUENCE_SOFT: u64 = 3 << 30;
/// Packets after which such a CHILD_SA ends: a little before the sender stops by itself.
pub const SEQUENCE_HARD: u64 = (1 << 32) - (1 << 16);
/// A soft limit of volume is at most this many percent of the hard one.
pub const VOLUME_SOFT_PERCENT: u64 = 90;
/// Rekeys come earlier by up to this many percent of the lifetime, so that a mesh does not rekey in step.
pub const REKEY_JITTER_PERCENT: u32 = 10;
/// The higher identity rekeys this many percent of the lifetime later, if the lower one did not.
pub const REKEY_MARGIN_PERCENT: u32 = 20;
/// A rekey that could not start, or that the peer put off (TEMPORARY_FAILURE), is tried again after this (plus jitter).
pub const REKEY_RETRY: Duration = Duration::from_secs(2);
/// A rekey that the peer refused is tried again after this (plus jitter).
pub const REKEY_REFUSED_RETRY: Duration = Duration::from_secs(60);
/// Restarts of one rekey by INVALID_KE_PAYLOAD.
pub const REKEY_RESTARTS: u32 = 2;
/// CHILD_SAs of one kind ([`crate::ChildId`]) under one IKE SA, those that are being replaced included: further rekeys are put
/// off.
pub const CHILDREN_PER_SA: usize = 4;
/// CHILD_SAs that can be configured for a peer besides the first.
pub const CHILDREN_MAX: usize = 15;
/// CHILD_SAs per CPU of one kind (RFC 9611), whatever the peer would like.
pub const PER_CPU_MAX: u32 = 128;
/// A further CHILD_SA that the peer refused is asked for again after this (plus jitter).
pub const CHILD_REFUSED_RETRY: Duration = Duration::from_secs(60);
/// After TS_MAX_QUEUE (RFC 9611): the peer will not want more so soon.
pub const MAX_QUEUE_RETRY: Duration = Duration::from_secs(3600);
/// What replaces an IKE SA has this long to get all its further CHILD_SAs before the older ones go all the same.
pub const CHILDREN_PATIENCE: Duration = Duration::from_secs(60);
/// After two crossing rekeys the peer deletes its own CHILD_SA if that one lost, else the old one (RFC 7296 §2.8.1). A
/// foreign one that has not done so by then (Libreswan) never will: this end deletes one itself, before they add up to
/// [`CHILDREN_PER_SA`].
pub const REDUNDANT_PATIENCE: Duration = Duration::from_secs(15);
/// A CREATE_CHILD_SA of the peer waits this long for its additional key exchange (RFC 9370 §2.2.4): as long as its request and
/// the one that follows are repeated. At most one per IKE SA.
pub const FOLLOWUP_LINGER: Duration = Duration::from_secs(90);
/// A rekeyed IKE SA waits this long for its initiator's DELETE; longer than the request that asked for it is repeated.
pub const REKEYED_LINGER: Duration = Duration::from_secs(90);

// --- Half-open IKE SAs of the responder (RFC 7296 §2.6, RFC 8019) ---

/// Half-open IKE SAs of unknown addresses above which their IKE_SA_INITs need a cookie. Configured addresses need one above as
/// many of their own, or above one for each of them: a whole mesh may start at the same instant.
pub const HALF_OPEN: usize = 64;
/// Half-open IKE SAs of one address above which its IKE_SA_INITs need a cookie.
pub const HALF_OPEN_FREE_PER_ADDRESS: usize = 2;
/// Half-open IKE SAs of one address; a further one takes the place of the oldest of that address.
pub const HALF_OPEN_PER_ADDRESS: usize = 4;
/// Half-open IKE SAs of all addresses that no configured peer has; further ones are not answered.
pub const HALF_OPEN_UNKNOWN: usize = 128;
/// A half-open IKE SA that never saw a valid IKE_AUTH goes after this.
pub const HALF_OPEN_LIFETIME: Duration = Duration::from_secs(30);
/// A cookie secret is used for this long, and its cookies are accepted for as long again (RFC 7296 §2.6).
pub const COOKIE_ROTATE: Duration = Duration::from_secs(60);
/// Restarts of an IKE_SA_INIT by COOKIE or INVALID_KE_PAYLOAD within one attempt. They are not authenticated.
pub const INIT_RESTARTS: u32 = 4;
/// IKE_SA_INIT requests above this are not answered: it is kept for AUTH (RFC 7296 §2.15), before anything is proven.
pub const INIT_BYTES: usize = 4096;

// --- Messages outside an IKE SA (RFC 7296 §1.5, §2.5, §2.21.4; docs/ike-transport.md) ---

/// Unprotected answers (INVALID_IKE_SPI, INVALID_MAJOR_VERSION) per second, to all configured peers together: enough for a
/// mesh whose nodes ask a restarted one, too few to be of use to anybody who forges sources.
pub const STRAY_ANSWERS: u32 = 50;
/// After anything authenticated from the peer, an INVALID_IKE_SPI is not worth a question for this long.
pub const STRAY_LIVENESS: Duration = Duration::from_secs(5);

// --- Fragmentation (RFC 7383; docs/ike-transport.md) ---

/// Largest IKE message in one datagram over IPv6: the least MTU of IPv6 (1280) less IP header (40), UDP header (8) and non-ESP
/// marker (4), RFC 7383 §2.5.1.
pub const MESSAGE_V6: usize = 1280 - 40 - 8 - 4;
/// The same over IPv4: what carries IPv6 carries 1280 bytes of IPv4, too, and so do all tunnels and clouds that nodes live in.
pub const MESSAGE_V4: usize = 1280 - 20 - 8 - 4;
/// Where larger ones get no answer, over IPv4: every host takes 576 bytes (RFC 791 §3.1, RFC 7383 §2.5.1). Over IPv6 as
/// well: what loses 1280 bytes there is broken, and this may still help.
pub const MESSAGE_SMALL: usize = 576 - 20 - 8 - 4;
/// Sendings of a request after which it is sealed again in fragments of [`MESSAGE_SMALL`] (RFC 7383 §2.5.2).
pub const FULL_SIZE_TRIES: u32 = 3;
/// Fragments of one message: enough for [`REASSEMBLY_BYTES`] at [`MESSAGE_SMALL`]. Others are dropped unread.
pub const FRAGMENTS_MAX: u16 = 64;
/// Payload bytes of one message that comes in fragments: IKE_AUTH with the longest chain of certificates. One message per
/// direction and IKE SA is kept, so a half-open IKE SA may take this much.
pub const REASSEMBLY_BYTES: usize = crate::identity::MAX_CHAIN_BYTES + 4 * 1024;
/// A message whose fragments did not come within this is dropped, as the request is then given up or sent anew.
pub const REASSEMBLY_TIME: Duration = Duration::from_secs(30);
/// The last response is kept for retransmissions of its request for this long (RFC 7296 §2.1: several minutes); an established
/// IKE SA with more than [`ANSWER_KEPT`] bytes of it looks when it is time.
pub const ANSWER_LINGER: Duration = Duration::from_secs(300);
/// Responses up to this size stay for as long as the IKE SA.
pub const ANSWER_KEPT: usize = 128;

// --- Sizes ---

/// Nonces sent (RFC 7296 §2.10: 16 to 256, at least half the PRF's key; 32 suits every PRF here).
pub const NONCE_BYTES: usize = 32;
/// Shortest nonce accepted (RFC 7296 §3.9).
pub const NONCE_MIN: usize = 16;
/// Longest nonce accepted (RFC 7296 §3.9).
pub const NONCE_MAX: usize = 256;
/// Longest cookie echoed (RFC 7296 §2.6).
pub const COOKIE_MAX: usize = 64;
/// COOKIE2 sent (RFC 4555 §4.2.5 allows 8 to 64).
pub const COOKIE2_BYTES: usize = 16;
/// Longest announcement sent or accepted.
pub const ANNOUNCEMENT_MAX: usize = 64;
/// Longest identity (a DNS name, RFC 1035 §2.3.4).
pub const IDENTITY_MAX: usize = 253;
/// Shortest pre-shared key in bytes (RFC 7296 §2.15 asks for as much unpredictability as the strongest key has).
pub const PSK_MIN: usize = 32;
/// Shortest post-quantum preshared key in bytes: 256 bits, half of which a quantum computer leaves (RFC 8784 §6).
pub const PPK_MIN: usize = 32;
/// Longest name of one.
pub const PPK_ID_MAX: usize = 128;
/// Traffic selectors per side in a configuration.
pub const SELECTORS_MAX: usize = 16;
/// Suites of a CHILD_SA in a configuration: each may need a proposal of its own, and all must fit into one message.
pub const SUITES_MAX: usize = 16;
