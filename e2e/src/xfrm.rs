//! A namespace's IPsec as the kernel shows it, read by iproute2 so that nothing of ours is trusted to describe itself.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result};
use espalier_testnet::Netns;

/// One state (SA). Its `Debug` leaves the keys out.
#[derive(Clone, PartialEq, Eq)]
pub struct State {
    /// Outer source address.
    pub src: IpAddr,
    /// Outer destination address.
    pub dst: IpAddr,
    /// `esp` or `ah`.
    pub proto: String,
    /// With dst and proto: which state it is.
    pub spi: u32,
    /// Who owns it.
    pub reqid: u32,
    /// `transport` or `tunnel`.
    pub mode: String,
    /// Of each algorithm its name and its key in hex.
    pub keys: Vec<(String, String)>,
    /// Highest sequence number sent, 64 bits with ESN.
    pub sent: u64,
    /// Highest sequence number received.
    pub received: u64,
    /// `espinudp sport 4500 dport 4500 addr ...`; `None`: raw.
    pub encap: Option<String>,
    /// 64-bit sequence numbers.
    pub esn: bool,
    /// Packets; 0: none.
    pub replay_window: u32,
    /// It has this CPU's packets only (RFC 9611).
    pub cpu: Option<u32>,
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its first line: `src ... dst ... proto ... dport ...`.
    pub selector: String,
    /// `in`, `out` or `fwd`.
    pub dir: String,
    /// `allow` unless it says `block`.
    pub action: String,
    /// The lower, the earlier it is looked at.
    pub priority: u32,
    /// What it asks for; none: clear.
    pub templates: Vec<String>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let algorithms: Vec<&String> = self.keys.iter().map(|(name, _)| name).collect();
        write!(
            f,
            "{} → {} {} {:08x} reqid {} {} {algorithms:?} esn {} window {} sent {} received {} {:?}",
            self.src,
            self.dst,
            self.proto,
            self.spi,
            self.reqid,
            self.mode,
            self.esn,
            self.replay_window,
            self.sent,
            self.received,
            self.encap
        )
    }
}

/// All states of a namespace.
///
/// # Errors
/// `ip` fails, or says what is not understood.
pub fn states(netns: &Netns) -> Result<Vec<State>> {
    let text = netns.output(Command::new("ip").args(["xfrm", "state"]))?;
    entries(&text).iter().map(|entry| state(entry)).collect()
}

/// All policies of a namespace, those of sockets left out.
///
/// # Errors
/// `ip` fails, or says what is not understood.
pub fn policies(netns: &Netns) -> Result<Vec<Policy>> {
    let text = netns.output(Command::new("ip").args(["xfrm", "policy"]))?;
    let all = entries(&text);
    let ours = all.iter().filter(|entry| entry.contains("dir "));
    ours.map(|entry| policy(entry)).collect()
}

/// The counters of `/proc/net/xfrm_stat`: each counts packets that something was wrong with.
///
/// # Errors
/// The kernel has none: it was built without CONFIG_XFRM_STATISTICS.
pub fn stat(netns: &Netns) -> Result<BTreeMap<String, u64>> {
    let text = netns.run(|| fs::read_to_string("/proc/thread-self/net/xfrm_stat"))?;
    let text = text.context("reading /proc/thread-self/net/xfrm_stat")?;
    let line = |line: &str| {
        let (name, count) = line.split_once(char::is_whitespace)?;
        Some((name.to_owned(), count.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(line).collect())
}

/// What grew, and by how much, as `XfrmInNoStates +3`.
#[must_use]
pub fn errors_between(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let grown = after.iter().filter_map(|(name, now)| {
        let by = now - before.get(name).copied().unwrap_or_default().min(*now);
        (by > 0).then(|| (name.clone(), by))
    });
    grown.collect()
}

/// The lines of each entry: its first one begins at the margin.
pub(crate) fn entries(text: &str) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    for line in text.lines() {
        match entries.last_mut() {
            Some(entry) if line.starts_with(char::is_whitespace) => {
                entry.push('\n');
                entry.push_str(line.trim());
            }
            _ => entries.push(line.trim().to_owned()),
        }
    }
    entries
}

fn state(entry: &str) -> Result<State> {
    let word = |key: &str| after(entry, key).with_context(|| format!("no {key:?} in a state"));
    let number = |key: &str| -> Result<u64> { hex(after(entry, key).unwrap_or("0x0")) };
    let long = |low, high| Ok::<u64, anyhow::Error>(number(low)? | number(high)? << 32);
    let keys = entry.lines().filter_map(|line| {
        let (kind, rest) = line.split_once(' ')?;
        let kinds = ["aead", "enc", "auth", "auth-trunc"];
        let mut words = rest.split_whitespace();
        let (name, key) = (words.next()?, words.next()?);
        kinds
            .contains(&kind)
            .then(|| (name.to_owned(), key.trim_start_matches("0x").to_owned()))
    });
    let encap = entry.lines().find_map(|line| line.strip_prefix("encap "));
    Ok(State {
        src: word("src ")?.parse()?,
        dst: word("dst ")?.parse()?,
        proto: word("proto ")?.to_owned(),
        spi: u32::try_from(hex(word("spi ")?)?)?,
        reqid: word("reqid ")?
            .split('(')
            .next()
            .unwrap_or_default()
            .parse()?,
        mode: word("mode ")?.to_owned(),
        keys: keys.collect(),
        sent: long(" oseq ", "oseq-hi ")?,
        received: long(" seq ", "seq-hi ")?,
        encap: encap.map(|rest| rest.trim_start_matches("type ").to_owned()),
        esn: entry.contains("flag esn") || entry.contains(" esn "),
        replay_window: replay_window(entry),
        cpu: after(entry, "pcpu-num ").and_then(|word| word.parse().ok()),
    })
}

/// With ESN it is in the context, without on the first lines; the other place says 0.
fn replay_window(entry: &str) -> u32 {
    let places = ["replay_window ", "replay-window "].map(|key| after(entry, key));
    let windows = places.into_iter().flatten().filter_map(|w| w.parse().ok());
    windows.max().unwrap_or_default()
}

fn policy(entry: &str) -> Result<Policy> {
    let selector = entry.lines().next().unwrap_or_default().trim().to_owned();
    let templates = entry.lines().skip(1).scan(false, |inside, line| {
        let begins = line.starts_with("tmpl ");
        *inside |= begins;
        Some((*inside).then(|| line.to_owned()))
    });
    Ok(Policy {
        selector,
        dir: after(entry, "dir ").context("no direction")?.to_owned(),
        action: after(entry, "action ").unwrap_or("allow").to_owned(),
        priority: after(entry, "priority ").unwrap_or("0").parse()?,
        templates: templates.flatten().collect(),
    })
}

/// The word after the first `key`.
fn after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(key)?;
    rest.split([' ', '\t', '\n', ',']).find(|w| !w.is_empty())
}

fn hex(word: &str) -> Result<u64> {
    let digits = word.strip_prefix("0x").unwrap_or(word);
    u64::from_str_radix(digits, 16)
        .with_context(|| format!("expected a hex number, found {word:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = "\
src 10.99.0.11 dst 10.99.0.12
\tproto esp spi 0xc0ffee01 reqid 1 mode transport
\treplay-window 0 flag esn
\taead rfc4106(gcm(aes)) 0x0102 128
\tencap type espinudp sport 4500 dport 4500 addr 0.0.0.0
\tanti-replay esn context:
\t seq-hi 0x0, seq 0x5, oseq-hi 0x1, oseq 0x2
\t replay_window 4096, bitmap-length 128
\t 00000000 00000000 00000000 00000000 00000000
src fd99::11 dst fd99::12
\tproto ah spi 0x00000100 reqid 0 mode tunnel
\treplay-window 0
\tauth-trunc hmac(sha256) 0x0a0b 128
\tanti-replay context: seq 0x0, oseq 0x7, bitmap 0x00000000
\tsel src ::/0 dst ::/0
";

    #[test]
    fn states_are_read_with_and_without_esn() {
        let all = entries(STATE);
        let [esp, ah] = [state(&all[0]).unwrap(), state(&all[1]).unwrap()];
        assert_eq!(
            (esp.spi, esp.reqid, &*esp.mode),
            (0xc0ff_ee01, 1, "transport")
        );
        assert_eq!((esp.sent, esp.received), (0x1_0000_0002, 5));
        assert_eq!(esp.keys, [("rfc4106(gcm(aes))".into(), "0102".into())]);
        assert_eq!((esp.esn, esp.replay_window), (true, 4096));
        assert_eq!((ah.esn, ah.replay_window), (false, 0));
        assert!(esp.encap.unwrap().starts_with("espinudp sport 4500"));
        assert_eq!((ah.sent, ah.encap.clone(), &*ah.proto), (7, None, "ah"));
        assert_eq!(ah.keys, [("hmac(sha256)".into(), "0a0b".into())]);
        assert!(!format!("{ah:?}").contains("0a0b"));
    }

    #[test]
    fn policies_are_read() {
        let text = "\
src 10.99.0.11/32 dst 10.99.0.12/32 proto udp dport 4789
\tdir out priority 1000
\ttmpl src 0.0.0.0 dst 0.0.0.0
\t\tproto esp spi 0xc0ffee01 reqid 1 mode transport
src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 4789
\tdir in action block priority 2000
src 0.0.0.0/0 dst 0.0.0.0/0
\tsocket in priority 0
";
        let all = entries(text);
        let first = policy(&all[0]).unwrap();
        assert_eq!(
            (&*first.dir, &*first.action, first.priority),
            ("out", "allow", 1000)
        );
        assert_eq!(first.templates.len(), 2);
        let second = policy(&all[1]).unwrap();
        assert_eq!((&*second.action, second.templates.len()), ("block", 0));
        assert!(!all[2].contains("dir "));
    }
}
