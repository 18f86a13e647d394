//! One of our two processes: the hub or the spokes, driven as the agent drives its endpoint.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest;
use clap::Args;
use espalier_ike::crypto::Kem;
use espalier_ike::{
    ChildConfig, ChildSa, Config, Connect, Endpoint, Event, Identity, Path, PeerAuth, PeerConfig,
    PostQuantum, TrafficSelector,
};
use espalier_ike_io::udp::UdpIke;
use espalier_ike_io::{OsRng, unix_now};
use espalier_secret::SecretBytes;

use crate::pki::Ca;
use crate::plan::{self, Case, Side};

/// A round takes seconds; a process that lives this long has failed.
const LIMIT: Duration = Duration::from_secs(120);

/// What the process is told.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The hub, or the spokes.
    #[arg(long)]
    pub hub: bool,
    /// Its role in all handshakes.
    #[arg(long, value_enum)]
    pub side: Side,
    /// What is negotiated.
    #[arg(long, value_enum)]
    pub case: Case,
    /// Number of pairs.
    #[arg(long)]
    pub sas: usize,
    /// Where the CA is.
    #[arg(long)]
    pub folder: PathBuf,
}

/// Runs one process: `ready` on standard output when it serves; the initiator begins at the first line on standard input;
/// `up SECONDS FINGERPRINT` when all pairs have their CHILD_SA; ends when standard input does.
///
/// # Errors
/// Those of its socket, or not all pairs are up in time.
pub fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut node = Node::new(arguments)?;
        say("ready")?;
        node.serve().await
    })
}

pub(crate) fn say(line: &str) -> Result<()> {
    println!("{line}");
    Ok(std::io::stdout().flush()?)
}

struct Node {
    hub: bool,
    side: Side,
    udp: UdpIke,
    /// One of the hub, one of each spoke.
    endpoints: Vec<Endpoint>,
    due: Due,
    /// SAs to come, and those that are there.
    wanted: usize,
    up: usize,
    fingerprint: [u8; 32],
    began: Option<Instant>,
}

/// When which endpoint's timeout is due.
#[derive(Default)]
pub(crate) struct Due {
    order: BTreeSet<(Instant, usize)>,
    at: HashMap<usize, Instant>,
}

impl Due {
    pub(crate) fn set(&mut self, endpoint: usize, at: Option<Instant>) {
        if self.at.get(&endpoint).copied() == at {
            return;
        }
        if let Some(old) = self.at.remove(&endpoint) {
            self.order.remove(&(old, endpoint));
        }
        if let Some(at) = at {
            self.at.insert(endpoint, at);
            self.order.insert((at, endpoint));
        }
    }

    pub(crate) fn next(&self) -> Option<(Instant, usize)> {
        self.order.first().copied()
    }
}

impl Node {
    fn new(arguments: &Arguments) -> Result<Self> {
        let ca = match arguments.case {
            Case::Psk => None,
            _ => Some(Ca::read(&arguments.folder)?),
        };
        let mut node = Self {
            hub: arguments.hub,
            side: arguments.side,
            udp: UdpIke::bind(plan::PORT)?,
            endpoints: Vec::new(),
            due: Due::default(),
            wanted: arguments.sas,
            up: 0,
            fingerprint: [0; 32],
            began: None,
        };
        let now = Instant::now();
        if node.hub {
            let mut endpoint = endpoint(plan::HUB_NAME, arguments, ca.as_ref())?;
            for n in 0..arguments.sas {
                let (name, auth) = (plan::spoke_name(n), auth(n, arguments.case));
                endpoint.put_peer(peer(&name, plan::hub(), plan::spoke(n), auth), now)?;
            }
            node.endpoints.push(endpoint);
        } else {
            for n in 0..arguments.sas {
                let mut endpoint = endpoint(&plan::spoke_name(n), arguments, ca.as_ref())?;
                let auth = auth(n, arguments.case);
                let hub = peer(plan::HUB_NAME, plan::spoke(n), plan::hub(), auth);
                endpoint.put_peer(hub, now)?;
                node.endpoints.push(endpoint);
            }
        }
        Ok(node)
    }

    async fn serve(&mut self) -> Result<()> {
        let mut lines = lines();
        let limit = tokio::time::sleep(LIMIT);
        tokio::pin!(limit);
        loop {
            let due = self.due.next();
            let sleep = async {
                match due {
                    Some((at, _)) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                received = self.udp.recv() => {
                    let (path, datagram) = received?;
                    self.receive(path, &datagram).await?;
                }
                () = sleep => self.timeout(due).await?,
                () = &mut limit => bail!("{} of {} SAs after {} s", self.up, self.wanted, LIMIT.as_secs()),
                line = lines.recv() => match line {
                    Some(_) => self.begin().await?,
                    None => return Ok(()),
                }
            }
        }
    }

    /// Everybody at once, nothing paced.
    async fn begin(&mut self) -> Result<()> {
        let now = Instant::now();
        self.began = Some(now);
        if self.side == Side::Responder {
            return Ok(());
        }
        if self.hub {
            for n in 0..self.wanted {
                let spoke = Identity(plan::spoke_name(n).into());
                if let Some(endpoint) = self.endpoints.first_mut() {
                    endpoint.connect(&spoke, Connect::Fresh, now);
                }
            }
            return self.settle(0).await;
        }
        let hub = Identity(plan::HUB_NAME.into());
        for n in 0..self.endpoints.len() {
            if let Some(endpoint) = self.endpoints.get_mut(n) {
                endpoint.connect(&hub, Connect::Fresh, now);
            }
            self.settle(n).await?;
        }
        Ok(())
    }

    async fn receive(&mut self, path: Path, datagram: &[u8]) -> Result<()> {
        let which = if self.hub {
            Some(0)
        } else {
            plan::spoke_at(path.local.ip())
        };
        let found = which.and_then(|n| Some((n, self.endpoints.get_mut(n)?)));
        let Some((n, endpoint)) = found else {
            return Ok(());
        };
        endpoint.handle_datagram(Instant::now(), unix_now(), path, datagram);
        self.settle(n).await
    }

    async fn timeout(&mut self, due: Option<(Instant, usize)>) -> Result<()> {
        let found = due.and_then(|(_, n)| Some((n, self.endpoints.get_mut(n)?)));
        let Some((n, endpoint)) = found else {
            return Ok(());
        };
        endpoint.handle_timeout(Instant::now(), unix_now());
        self.settle(n).await
    }

    /// Events first, then datagrams: as the endpoint asks for.
    async fn settle(&mut self, n: usize) -> Result<()> {
        let Some(endpoint) = self.endpoints.get_mut(n) else {
            return Ok(());
        };
        loop {
            while let Some(event) = endpoint.poll_event() {
                match event {
                    Event::ChildUp { child, .. } => {
                        self.up += 1;
                        mix(&mut self.fingerprint, &child);
                    }
                    Event::HandshakeFailed { peer, error, .. } => {
                        eprintln!(
                            "{}: {error}",
                            peer.map_or_else(String::new, |peer| peer.to_string())
                        );
                    }
                    _ => {}
                }
            }
            let Some(transmit) = endpoint.poll_transmit() else {
                break;
            };
            self.udp.send(&transmit.path, &transmit.payload).await?;
        }
        self.due.set(n, endpoint.poll_timeout());
        if self.up == self.wanted {
            self.up = 0;
            let took = self
                .began
                .map_or(0.0, |began| began.elapsed().as_secs_f64());
            let hex: String = self
                .fingerprint
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            say(&format!("up {took} {hex}"))?;
        }
        Ok(())
    }
}

/// Adds a CHILD_SA to the fingerprint: the same value on both ends if SPIs and keys are the same, in any order.
fn mix(fingerprint: &mut [u8; 32], child: &ChildSa) {
    for (spi, keys) in [
        (child.spi_in, &child.keys_in),
        (child.spi_out, &child.keys_out),
    ] {
        let input = [&spi.to_be_bytes(), keys.key.expose()].concat();
        let hash = digest::digest(&digest::SHA256, &input);
        for (mixed, byte) in fingerprint.iter_mut().zip(hash.as_ref()) {
            *mixed ^= byte;
        }
    }
}

fn endpoint(name: &str, arguments: &Arguments, ca: Option<&Ca>) -> Result<Endpoint> {
    let mut config = Config::new(Identity(name.into()));
    if let Some(ca) = ca {
        config.credentials = Some(ca.issue(name)?);
        config.trust = ca.trust.clone();
    }
    arguments.case.configure(&mut config);
    // All begin at once, and charon has its own protection against floods switched off, too.
    config.cookie_threshold = usize::MAX;
    Ok(Endpoint::new(config, Box::new(OsRng))?)
}

impl Case {
    fn configure(self, config: &mut Config) {
        config.ike.post_quantum = match self {
            Self::Psk | Self::Ecdsa => PostQuantum::Off,
            Self::EcdsaMlKem768 => PostQuantum::Required,
        };
        config.ike.kems = vec![Kem::MlKem768];
    }
}

fn auth(n: usize, case: Case) -> PeerAuth {
    match case {
        Case::Psk => PeerAuth::Psk(psk(n)),
        Case::Ecdsa | Case::EcdsaMlKem768 => PeerAuth::Certificate,
    }
}

/// UDP of any port between two hosts, as between two nodes of a mesh.
pub(crate) fn peer(
    name: &str,
    local: SocketAddr,
    remote: SocketAddr,
    auth: PeerAuth,
) -> PeerConfig {
    let any = |at: SocketAddr| TrafficSelector {
        protocol: 17,
        start_port: 0,
        end_port: u16::MAX,
        start: at.ip(),
        end: at.ip(),
    };
    let child = ChildConfig::new(vec![any(local)], vec![any(remote)]);
    let mut peer = PeerConfig::new(Identity(name.into()), local, remote, auth, child);
    // As long as the agent's.
    peer.announcement = vec![1; 8];
    peer
}

/// A key of its own for each pair; no secret of anybody.
fn psk(n: usize) -> SecretBytes {
    let hash = digest::digest(&digest::SHA256, &n.to_be_bytes());
    SecretBytes::copy_from(hash.as_ref())
}

/// Lines of standard input.
pub(crate) fn lines() -> tokio::sync::mpsc::Receiver<String> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line.context("reading standard input") else {
                return;
            };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
