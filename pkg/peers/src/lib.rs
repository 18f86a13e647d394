//! Pure: from nodes to a peer set to its difference, and the state machine that moves a pair of nodes between clear and
//! encrypted without losing a packet. No clock, no sockets.

mod mode;
mod pair;
mod set;
mod vtep;
mod way;

pub use mode::Mode;
pub use pair::{Announcement, AnnouncementError, Limits, Observed, Pair, Sends, View};
pub use set::{Change, NodeSpec, PeerSet};
pub use vtep::{gateway, vtep_link_local, vtep_mac};
pub use way::{Said, Way, WayLimits};
