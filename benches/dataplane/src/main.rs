//! Development only: the userspace data plane beside plain networking and other userspace tunnels, in one alternating run on the
//! same cores. No figure fails it; a tunnel that does not work does.
//!
//! ```text
//!  namespace a                                                   namespace b
//!  sender ── device ── daemon ── eth0 192.0.2.1 ═══════ 192.0.2.2 eth0 ── daemon ── device ── receiver
//!         10.244.1.1                        veth pair                            10.244.2.1
//! ```

mod cost;
mod espalier;
mod load;
mod path;
mod peers;
mod report;
mod wireguard;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

use path::{Name, Site};
use report::{Key, Samples};

/// What the run is told.
#[derive(Parser, Debug)]
#[command(name = "espalier-bench-dataplane")]
struct Arguments {
    /// Where the report goes.
    #[arg(long, default_value = "target/bench/dataplane.json")]
    out: PathBuf,
    /// Only these paths.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Name::ALL)]
    only: Vec<Name>,
    /// Only these loads.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Load::ALL)]
    loads: Vec<Load>,
    /// Each round runs all paths one after the other; the medians count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each load lasts.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// MTUs of the underlay.
    #[arg(long, value_delimiter = ',', default_values_t = [1500, 9000])]
    mtu: Vec<u16>,
    /// Streams at once.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4])]
    streams: Vec<usize>,
    /// Peers that one node sends to at once, a stream to each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16])]
    peers: Vec<u8>,
    /// Queues of the node that sends to several peers.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    queues: Vec<usize>,
    /// Folder of wireguard-go and wg, as scripts/kernel/wireguard.sh prints it.
    #[arg(long)]
    wireguard: Option<PathBuf>,
    /// Folder of boringtun-cli and gotatun, as `cargo install` makes it.
    #[arg(long)]
    tools: Option<PathBuf>,
    /// Print the process ids and wait this long with a stream running, for a profiler.
    #[arg(long)]
    profile: bool,
}

/// What a path carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Load {
    /// TCP streams from a to b.
    Tcp,
    /// Datagrams of 64 bytes from a to b, as many as go.
    Flood,
    /// ICMP echo.
    Ping,
    /// One byte there and back over TCP.
    Rr,
    /// TCP streams from one node to several, plain and by Espalier, whatever `--only` says.
    Peers,
}

impl Load {
    const ALL: [Self; 5] = [Self::Tcp, Self::Flood, Self::Ping, Self::Rr, Self::Peers];
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Flood => "flood",
            Self::Ping => "ping",
            Self::Rr => "rr",
            Self::Peers => "peers",
        })
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    espalier_testnet::enter()?;
    let (mut samples, mut failed) = (Samples::default(), Vec::new());
    let between_two = arguments.loads.iter().any(|load| *load != Load::Peers);
    for round in 1..=arguments.rounds {
        if arguments.loads.contains(&Load::Peers) {
            eprintln!("round {round}");
            if let Err(error) = peers::measure(&arguments, &mut samples) {
                eprintln!("peers: {error:#}");
                failed.push(Load::Peers.to_string());
            }
        }
        for &mtu in &arguments.mtu {
            for &name in arguments.only.iter().filter(|_| between_two) {
                eprintln!("round {round}, MTU {mtu}, {name}");
                if let Err(error) = one(&arguments, name, mtu, &mut samples) {
                    eprintln!("{name}: {error:#}");
                    failed.push(name.to_string());
                }
            }
        }
    }
    report::write(&arguments.out, &samples)?;
    if !failed.is_empty() {
        bail!("not all was measured: {}", failed.join(", "));
    }
    Ok(())
}

fn one(arguments: &Arguments, name: Name, mtu: u16, samples: &mut Samples) -> Result<()> {
    let site = Site::new(name, mtu, arguments)?;
    let key = |test: &str, streams| Key {
        name: name.to_string(),
        test: test.to_owned(),
        mtu,
        streams,
    };
    if site.has_daemons() {
        samples.add(key("rss-idle", 0), "KB", site.rss_kb()?, None);
    }
    if arguments.profile {
        return site.profile(arguments.seconds);
    }
    for load in &arguments.loads {
        match load {
            Load::Tcp => {
                for &streams in &arguments.streams {
                    let cost = site.cost()?;
                    let bytes = load::tcp(&vec![site.pair(); streams], arguments.seconds)?;
                    let cpu = site.cost()?.map(|after| after - cost.unwrap_or_default());
                    let (gigabytes, rate) = (bytes.total / 1e9, bytes.per_second * 8.0 / 1e9);
                    let cpu = cpu.map(|cpu| cpu / gigabytes);
                    samples.add(key("tcp", streams), "Gbit/s", rate, cpu);
                }
            }
            Load::Flood => {
                let rate = load::flood(&site, arguments.seconds)?;
                samples.add(key("udp-64", 1), "1/s", rate, None);
            }
            Load::Ping => {
                let times = load::ping(&site)?;
                samples.add(key("ping-p50", 1), "us", times.p50, None);
                samples.add(key("ping-p99", 1), "us", times.p99, None);
            }
            Load::Rr => {
                let rate = load::request_response(&site, arguments.seconds)?;
                samples.add(key("tcp-rr", 1), "1/s", rate, None);
            }
            Load::Peers => {}
        }
    }
    if site.has_daemons() {
        samples.add(key("rss-loaded", 0), "KB", site.rss_kb()?, None);
    }
    Ok(())
}
