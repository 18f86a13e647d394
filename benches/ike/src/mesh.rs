//! The other nodes of a mesh, all in one process, as a real agent meets them: each an endpoint of its own that answers on UDP
//! 4500, takes whatever the agent proposes, and says that it seals and lets nothing in clear. There is no data plane behind
//! them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use espalier_ike::{Config, Endpoint, Event, Identity, Path, PeerAuth};
use espalier_ike_io::nat_t::{Datagram, classify, mark};
use espalier_ike_io::udp::UdpIke;
use espalier_ike_io::{OsRng, unix_now};
use espalier_peers::{Announcement, Mode, Said, Sends};

use crate::node::{Due, lines, peer, say};
use crate::pki::Ca;
use crate::plan;

/// What the process is told.
#[derive(Args, Debug)]
pub struct Arguments {
    /// How many nodes it plays.
    #[arg(long)]
    pub nodes: usize,
    /// Where the CA is.
    #[arg(long)]
    pub folder: PathBuf,
}

/// Runs the process: `ready` on standard output when it serves; `up SECONDS` when every node has its CHILD_SA with the agent,
/// and `secured SECONDS` when the agent has told every node that it seals and lets nothing in clear, both since the last line
/// on standard input; ends when standard input does.
///
/// # Errors
/// Those of its socket.
pub fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut mesh = Mesh::new(arguments)?;
        say("ready")?;
        mesh.serve().await
    })
}

/// One of the nodes.
struct Spoke {
    endpoint: Endpoint,
    up: bool,
    secured: bool,
}

struct Mesh {
    udp: UdpIke,
    spokes: Vec<Spoke>,
    due: Due,
    /// How many of them are.
    up: usize,
    secured: usize,
    began: Instant,
}

impl Mesh {
    fn new(arguments: &Arguments) -> Result<Self> {
        let ca = Ca::read(&arguments.folder)?;
        let spokes = (0..arguments.nodes).map(|n| Spoke::new(n, &ca));
        Ok(Self {
            udp: UdpIke::bind(plan::NAT_T_PORT)?,
            spokes: spokes.collect::<Result<_>>()?,
            due: Due::default(),
            up: 0,
            secured: 0,
            began: Instant::now(),
        })
    }

    async fn serve(&mut self) -> Result<()> {
        let mut lines = lines();
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
                    if let Datagram::Ike(message) = classify(&datagram) {
                        self.receive(path, message).await?;
                    }
                }
                () = sleep => self.timeout(due).await?,
                line = lines.recv() => match line {
                    Some(_) => self.began = Instant::now(),
                    None => return Ok(()),
                }
            }
        }
    }

    async fn receive(&mut self, path: Path, message: &[u8]) -> Result<()> {
        let found = plan::spoke_at(path.local.ip());
        let found = found.and_then(|n| Some((n, self.spokes.get_mut(n)?)));
        let Some((n, spoke)) = found else {
            return Ok(());
        };
        spoke
            .endpoint
            .handle_datagram(Instant::now(), unix_now(), path, message);
        self.settle(n).await
    }

    async fn timeout(&mut self, due: Option<(Instant, usize)>) -> Result<()> {
        let found = due.and_then(|(_, n)| Some((n, self.spokes.get_mut(n)?)));
        let Some((n, spoke)) = found else {
            return Ok(());
        };
        spoke.endpoint.handle_timeout(Instant::now(), unix_now());
        self.settle(n).await
    }

    /// Events first, then datagrams: as the endpoint asks for.
    async fn settle(&mut self, n: usize) -> Result<()> {
        let Some(spoke) = self.spokes.get_mut(n) else {
            return Ok(());
        };
        let before = (spoke.up, spoke.secured);
        loop {
            while let Some(event) = spoke.endpoint.poll_event() {
                spoke.take(event);
            }
            let Some(transmit) = spoke.endpoint.poll_transmit() else {
                break;
            };
            let datagram = mark(&transmit.payload);
            self.udp.send(&transmit.path, &datagram).await?;
        }
        self.due.set(n, spoke.endpoint.poll_timeout());
        let now = (spoke.up, spoke.secured);
        count(&mut self.up, before.0, now.0);
        count(&mut self.secured, before.1, now.1);
        let took = self.began.elapsed().as_secs_f64();
        if now.0 && !before.0 && self.up == self.spokes.len() {
            say(&format!("up {took}"))?;
        }
        if now.1 && !before.1 && self.secured == self.spokes.len() {
            say(&format!("secured {took}"))?;
        }
        Ok(())
    }
}

fn count(sum: &mut usize, before: bool, now: bool) {
    *sum = *sum - usize::from(before) + usize::from(now);
}

impl Spoke {
    fn new(n: usize, ca: &Ca) -> Result<Self> {
        let name = plan::spoke_name(n);
        let mut config = Config::new(Identity(name.as_str().into()));
        config.credentials = Some(ca.issue(&name)?);
        config.trust = ca.trust.clone();
        let mut endpoint = Endpoint::new(config, Box::new(OsRng))?;
        let at = |ip: IpAddr| SocketAddr::new(ip, plan::NAT_T_PORT);
        let (own, hub) = (at(plan::spoke(n).ip()), at(plan::HUB.into()));
        let mut agent = peer(plan::HUB_NAME, own, hub, PeerAuth::Certificate);
        agent.announcement = said(Sends::Nothing, 0);
        endpoint.put_peer(agent, Instant::now())?;
        Ok(Self {
            endpoint,
            up: false,
            secured: false,
        })
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::ChildUp {
                peer,
                child,
                announcement,
            } => {
                self.up = true;
                let news = said(Sends::Esp, child.spi_in);
                self.endpoint.announce(&peer, news, Instant::now());
                self.hear(announcement.as_deref().unwrap_or_default());
            }
            Event::Announcement { data, .. } => self.hear(&data),
            Event::IkeDown { .. } => (self.up, self.secured) = (false, false),
            Event::HandshakeFailed { error, .. } => eprintln!("{error}"),
            _ => {}
        }
    }

    fn hear(&mut self, data: &[u8]) {
        if let Ok(agent) = Announcement::parse(data) {
            let strict = agent.effective == Mode::Required && !agent.accepts_clear;
            self.secured = strict && agent.sends == Sends::Esp;
        }
    }
}

/// A node in `Required` that lets nothing in clear.
fn said(sends: Sends, opens: u32) -> Vec<u8> {
    let announcement = Announcement {
        mode: Mode::Required,
        effective: Mode::Required,
        accepts_clear: false,
        sends,
        retired: false,
        opens,
        way: Said::default(),
    };
    announcement.to_bytes()
}
