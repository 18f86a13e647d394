//! Two network namespaces with a cable between them:
//!
//! ```text
//!   <id>o  lo 10.77.1.1/32   v0 10.78.0.1/24 ──── v0 10.78.0.2/24   lo 10.77.2.1/32  <id>p
//!   ours                                                                     the peer's
//! ```

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

use crate::command::{capture, inside, run};

/// Ends of the cable.
pub(crate) const OURS: &str = "10.78.0.1";
pub(crate) const THEIRS: &str = "10.78.0.2";
/// Behind the ends, for tunnels.
pub(crate) const OUR_NET: &str = "10.77.1.1";
pub(crate) const THEIR_NET: &str = "10.77.2.1";

/// Tries of [`Lab::ping`].
const TRIES: u32 = 3;

/// Both namespaces; they go with it.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) ours: String,
    pub(crate) theirs: String,
}

/// Packets by SPI, of the states that a namespace has.
pub(crate) type Counters = BTreeMap<String, u64>;

impl Lab {
    pub(crate) fn new(id: &str) -> Result<Self> {
        let lab = Self {
            ours: format!("{id}o"),
            theirs: format!("{id}p"),
        };
        let (ours, theirs) = (&lab.ours, &lab.theirs);
        run(&format!("ip netns add {ours}"))?;
        run(&format!("ip netns add {theirs}"))?;
        run(&format!(
            "ip link add v0 netns {ours} type veth peer name v0 netns {theirs}"
        ))?;
        let ends = [
            (ours, OURS, OUR_NET, THEIRS, THEIR_NET),
            (theirs, THEIRS, THEIR_NET, OURS, OUR_NET),
        ];
        for (namespace, address, net, other, other_net) in ends {
            let lines = [
                "link set lo up".to_owned(),
                format!("addr add {net}/32 dev lo"),
                format!("addr add {address}/24 dev v0"),
                "link set v0 up".to_owned(),
                format!("route add {other_net}/32 via {other} src {net}"),
            ];
            for line in lines {
                run(&format!("ip -n {namespace} {line}"))?;
            }
        }
        Ok(lab)
    }

    /// Sends `count` echo requests from our end; all must be answered, at the third try at the latest: on a busy machine ping
    /// misses an answer that its kernel has counted.
    pub(crate) fn ping(&self, tunnel: bool, count: u32) -> Result<()> {
        let mut tried = self.ping_once(tunnel, count);
        for _ in 1..TRIES {
            if tried.is_ok() {
                break;
            }
            tried = self.ping_once(tunnel, count);
        }
        tried
    }

    fn ping_once(&self, tunnel: bool, count: u32) -> Result<()> {
        let (from, to) = if tunnel {
            (OUR_NET, THEIR_NET)
        } else {
            (OURS, THEIRS)
        };
        let mut command = inside(&self.ours, "ping");
        command.args([
            "-n",
            "-q",
            "-i",
            "0.05",
            "-W",
            "2",
            "-c",
            &count.to_string(),
        ]);
        let said = capture(command.args(["-I", from, to]))?;
        let wanted = format!("{count} packets transmitted, {count} received");
        if !said.text.contains(&wanted) {
            bail!("ping: {}", said.text.trim().replace('\n', "; "));
        }
        Ok(())
    }

    pub(crate) fn counters(namespace: &str) -> Result<Counters> {
        let text = run(&format!("ip -n {namespace} -s xfrm state"))?;
        Ok(parse(&text))
    }

    /// What the kernel dropped, apart from nothing.
    pub(crate) fn drops(namespace: &str) -> Result<String> {
        let said = capture(inside(namespace, "cat").arg("/proc/net/xfrm_stat"))?;
        let counts = said.text.lines().filter(|line| {
            let count = line.split_whitespace().nth(1);
            count.is_some_and(|count| count != "0")
        });
        let counts: Vec<String> = counts
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        Ok(counts.join(", "))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.ours, &self.theirs] {
            let _gone = run(&format!("ip netns del {namespace}"));
        }
    }
}

/// `ip -s xfrm state`: the SPI in a state's second line, packets under its "lifetime current".
fn parse(text: &str) -> Counters {
    let mut counters = Counters::new();
    let (mut spi, mut current) = (None, false);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(at) = words.iter().position(|word| *word == "spi") {
            let found = words.get(at + 1).and_then(|word| word.split('(').next());
            spi = found.map(|word| word.trim_start_matches("0x").to_owned());
        }
        let packets = words.iter().find_map(|word| word.strip_suffix("(packets)"));
        if let (true, Some(packets), Some(spi)) = (current, packets, &spi) {
            counters.insert(spi.clone(), packets.parse().unwrap_or(0));
            current = false;
        }
        current |= line.contains("lifetime current");
    }
    counters
}

/// How much more `after` has for an SPI.
pub(crate) fn growth(before: &Counters, after: &Counters, spi: &str) -> Result<u64> {
    let now = after.get(spi);
    let now = now.with_context(|| format!("no state with SPI {spi}; there are {after:?}"))?;
    Ok(now - before.get(spi).copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_by_spi() {
        let text = "\
src 10.78.0.1 dst 10.78.0.2
\tproto esp spi 0xc0ffee01(3237998081) reqid 7(0x00000007) mode transport
\treplay-window 0 seq 0x00000000 flag  (0x00000000)
\tlifetime config:
\t  limit: soft (INF)(bytes), hard (INF)(bytes)
\t  limit: soft (INF)(packets), hard (INF)(packets)
\tlifetime current:
\t  420(bytes), 5(packets)
\t  add 2026-01-01 00:00:00 use 2026-01-01 00:00:00
";
        let found = parse(text);
        assert_eq!(found.get("c0ffee01"), Some(&5), "{found:?}");
        assert_eq!(growth(&Counters::new(), &found, "c0ffee01").unwrap(), 5);
        assert!(growth(&Counters::new(), &found, "00000001").is_err());
    }
}
