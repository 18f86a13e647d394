//! The responder's half-open IKE SAs: bounded, indexed, and guarded by cookies (RFC 7296 §2.6, RFC 8019).

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use aws_lc_rs::{constant_time, hmac};
use rand_core::CryptoRng;

use crate::config::Identity;
use crate::limits;

/// Which half-open IKE SAs there are.
#[derive(Debug, Default)]
pub(crate) struct HalfOpen {
    by_request: BTreeMap<(SocketAddr, u64), Entry>,
    by_address: BTreeMap<IpAddr, VecDeque<(SocketAddr, u64)>>,
    unknown: usize,
    /// Whose addresses they are: seldom more than one peer's.
    known: BTreeMap<IpAddr, Vec<Identity>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    spi: u64,
    /// Counted in [`HalfOpen::unknown`].
    unknown: bool,
}

/// May one more be made?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Yes.
    Free,
    /// Yes, for one who shows a cookie.
    WithCookie,
    /// No: drop.
    Full,
}

impl HalfOpen {
    /// `address` is one of `peer`'s.
    pub(crate) fn know(&mut self, address: IpAddr, peer: &Identity) {
        let peers = self.known.entry(address);
        // Nearly always one.
        let peers = peers.or_insert_with(|| Vec::with_capacity(1));
        peers.push(peer.clone());
    }

    /// `address` is not `peer`'s any more.
    pub(crate) fn forget(&mut self, address: IpAddr, peer: &Identity) {
        let Some(peers) = self.known.get_mut(&address) else {
            return;
        };
        if let Some(at) = peers.iter().position(|other| other == peer) {
            peers.remove(at);
        }
        if peers.is_empty() {
            self.known.remove(&address);
        }
    }

    /// The configured peers that have `address`.
    pub(crate) fn peers_at(&self, address: IpAddr) -> impl Iterator<Item = &Identity> {
        self.known.get(&address).into_iter().flatten()
    }

    /// True when a configured peer has `address`.
    pub(crate) fn knows(&self, address: IpAddr) -> bool {
        self.known.contains_key(&address)
    }

    /// Judges an IKE_SA_INIT from `address`. Strangers need a cookie from `threshold` half-open IKE SAs of strangers on;
    /// configured addresses have a place each besides, since all peers may start at the same instant. 0: everybody needs one.
    pub(crate) fn admission(&self, address: IpAddr, threshold: usize) -> Admission {
        let here = self.by_address.get(&address).map_or(0, VecDeque::len);
        let full = match self.knows(address) {
            false => self.unknown >= threshold,
            true if threshold == 0 => true,
            true => self.len() - self.unknown >= threshold.max(self.known.len()),
        };
        if !self.knows(address) && self.unknown >= limits::HALF_OPEN_UNKNOWN {
            Admission::Full
        } else if full || here >= limits::HALF_OPEN_FREE_PER_ADDRESS {
            Admission::WithCookie
        } else {
            Admission::Free
        }
    }

    /// The local SPI of the IKE SA that a request from `remote` with `spi_i` made.
    pub(crate) fn find(&self, remote: SocketAddr, spi_i: u64) -> Option<u64> {
        self.by_request.get(&(remote, spi_i)).map(|entry| entry.spi)
    }

    /// Adds an IKE SA. Returns the local SPI of the one that has to go for it, the oldest of the same address.
    pub(crate) fn insert(&mut self, remote: SocketAddr, spi_i: u64, spi: u64) -> Option<u64> {
        let address = remote.ip();
        let evicted = match self.by_address.get(&address) {
            Some(here) if here.len() >= limits::HALF_OPEN_PER_ADDRESS => here.front().copied(),
            _ => None,
        };
        let evicted = evicted.and_then(|(remote, spi_i)| self.remove(remote, spi_i));
        let unknown = !self.knows(address);
        self.unknown += usize::from(unknown);
        self.by_request
            .insert((remote, spi_i), Entry { spi, unknown });
        self.by_address
            .entry(address)
            .or_default()
            .push_back((remote, spi_i));
        evicted
    }

    /// Removes an IKE SA; returns its local SPI.
    pub(crate) fn remove(&mut self, remote: SocketAddr, spi_i: u64) -> Option<u64> {
        let entry = self.by_request.remove(&(remote, spi_i))?;
        self.unknown -= usize::from(entry.unknown);
        let address = remote.ip();
        if let Some(here) = self.by_address.get_mut(&address) {
            here.retain(|key| *key != (remote, spi_i));
            if here.is_empty() {
                self.by_address.remove(&address);
            }
        }
        Some(entry.spi)
    }

    /// Those of the same address that are older than this one.
    pub(crate) fn older_than(&self, remote: SocketAddr, spi_i: u64) -> Vec<u64> {
        let here = self.by_address.get(&remote.ip()).into_iter().flatten();
        here.take_while(|key| **key != (remote, spi_i))
            .filter_map(|key| self.by_request.get(key).map(|entry| entry.spi))
            .collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_request.len()
    }
}

/// Makes and checks cookies: a key of this process, changed every [`limits::COOKIE_ROTATE`]; the last one stays valid.
pub(crate) struct Cookies {
    current: hmac::Key,
    previous: Option<hmac::Key>,
    since: Option<Instant>,
}

impl Cookies {
    pub(crate) fn new(rng: &mut dyn CryptoRng) -> Self {
        Self {
            current: fresh_key(rng),
            previous: None,
            since: None,
        }
    }

    /// The cookie for this request now: HMAC(secret, Ni | IPi | port | SPIi).
    pub(crate) fn make(
        &mut self,
        remote: SocketAddr,
        spi_i: u64,
        nonce: &[u8],
        now: Instant,
        rng: &mut dyn CryptoRng,
    ) -> Vec<u8> {
        self.rotate(now, rng);
        hmac::sign(&self.current, &cookie_input(remote, spi_i, nonce))
            .as_ref()
            .to_vec()
    }

    /// True when `cookie` was made for this request not long ago.
    pub(crate) fn check(
        &mut self,
        cookie: &[u8],
        remote: SocketAddr,
        spi_i: u64,
        nonce: &[u8],
        now: Instant,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        self.rotate(now, rng);
        let input = cookie_input(remote, spi_i, nonce);
        let matches = |key: &hmac::Key| {
            constant_time::verify_slices_are_equal(hmac::sign(key, &input).as_ref(), cookie)
        };
        std::iter::once(&self.current)
            .chain(&self.previous)
            .any(|key| matches(key).is_ok())
    }

    fn rotate(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        let age = self.since.map(|since| now.saturating_duration_since(since));
        match age {
            Some(age) if age < limits::COOKIE_ROTATE => return,
            Some(age) if age < limits::COOKIE_ROTATE * 2 => {
                self.previous = Some(std::mem::replace(&mut self.current, fresh_key(rng)));
            }
            _ => (self.current, self.previous) = (fresh_key(rng), None),
        }
        self.since = Some(now);
    }
}

impl std::fmt::Debug for Cookies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cookies")
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}

fn fresh_key(rng: &mut dyn CryptoRng) -> hmac::Key {
    let mut secret = [0; 32];
    rng.fill_bytes(&mut secret);
    hmac::Key::new(hmac::HMAC_SHA256, &secret)
}

fn cookie_input(remote: SocketAddr, spi_i: u64, nonce: &[u8]) -> Vec<u8> {
    let address = match remote.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    [
        nonce,
        &address.octets(),
        &remote.port().to_be_bytes(),
        &spi_i.to_be_bytes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn at(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    #[test]
    fn a_cookie_is_good_for_its_request_and_ages() {
        #![allow(clippy::disallowed_methods)] // a base to count from; nothing waits
        let (mut rng, start) = (StdRng::seed_from_u64(1), Instant::now());
        let mut cookies = Cookies::new(&mut rng);
        let cookie = cookies.make(at(1, 500), 7, b"nonce", start, &mut rng);
        let mut good = |remote, spi, nonce: &[u8], age| {
            cookies.check(
                &cookie,
                remote,
                spi,
                nonce,
                start + Duration::from_secs(age),
                &mut rng,
            )
        };
        assert!(good(at(1, 500), 7, b"nonce", 1));
        assert!(!good(at(2, 500), 7, b"nonce", 1));
        assert!(!good(at(1, 501), 7, b"nonce", 1));
        assert!(!good(at(1, 500), 8, b"nonce", 1));
        assert!(!good(at(1, 500), 7, b"other", 1));
        assert!(good(at(1, 500), 7, b"nonce", 61));
        assert!(!good(at(1, 500), 7, b"nonce", 122));
    }

    #[test]
    fn unknown_addresses_fill_their_own_share_only() {
        let mut table = HalfOpen::default();
        table.know(at(1, 0).ip(), &Identity("a".into()));
        for spi in 0..limits::HALF_OPEN_UNKNOWN as u64 {
            let remote = SocketAddr::from(([172, 16, (spi / 200) as u8, (spi % 200) as u8], 500));
            assert_ne!(
                table.admission(remote.ip(), limits::HALF_OPEN),
                Admission::Full
            );
            assert_eq!(table.insert(remote, spi, spi), None);
        }
        assert_eq!(
            table.admission(at(9, 500).ip(), limits::HALF_OPEN),
            Admission::Full
        );
        assert_eq!(
            table.admission(at(1, 500).ip(), limits::HALF_OPEN),
            Admission::Free
        );
        assert_eq!(table.admission(at(1, 500).ip(), 0), Admission::WithCookie);
    }

    #[test]
    fn configured_addresses_have_a_place_each_before_they_need_a_cookie() {
        let mut table = HalfOpen::default();
        for host in 1..=100 {
            table.know(at(host, 0).ip(), &Identity("a".into()));
        }
        for host in 1..=100 {
            assert_eq!(table.admission(at(host, 500).ip(), 10), Admission::Free);
            table.insert(at(host, 500), 1, u64::from(host));
        }
        let again = table.admission(at(1, 500).ip(), 10);
        assert_eq!(again, Admission::WithCookie);
    }

    #[test]
    fn the_oldest_of_an_address_makes_room_and_the_order_is_kept() {
        let mut table = HalfOpen::default();
        table.know(at(1, 0).ip(), &Identity("a".into()));
        for spi in 0..limits::HALF_OPEN_PER_ADDRESS as u64 {
            assert_eq!(table.insert(at(1, 500), spi, 100 + spi), None);
        }
        assert_eq!(table.insert(at(1, 500), 50, 150), Some(100));
        assert_eq!(table.len(), limits::HALF_OPEN_PER_ADDRESS);
        assert_eq!(table.older_than(at(1, 500), 2), [101]);
        assert_eq!(table.find(at(1, 500), 50), Some(150));
        assert_eq!(table.remove(at(1, 500), 50), Some(150));
        assert_eq!(table.remove(at(1, 500), 50), None);
    }
}
