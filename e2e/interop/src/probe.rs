//! Our side: one [`Endpoint`] with real sockets and the kernel's IPsec. It reads commands from stdin, one word each.

mod config;
mod encap;
mod half_open;
mod kernel;
mod say;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use espalier_ike::{ChildSa, Connect, Endpoint, Event, Identity, Path, Role};
use espalier_ike_io::udp::UdpIke;
use espalier_ike_io::{OsRng, nat_t, unix_now};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};

pub(crate) use config::{Files, ProbeConfig, Range};
use kernel::Kernel;
use say::Recorder;

/// Exchange type (RFC 7296 §3.1).
const IKE_AUTH: u8 = 35;
/// How often the kernel is asked whether the peer uses a new CHILD_SA.
const LOOK: Duration = Duration::from_millis(250);

/// The `espalier-ike-probe` command.
///
/// # Errors
/// A bad configuration, busy ports, a kernel that refuses an SA.
pub fn run() -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, local, remote, count] = arguments.as_slice() {
        anyhow::ensure!(mode == "--half-open", "unknown mode {mode}");
        return half_open::begin(local.parse()?, remote.parse()?, count.parse()?);
    }
    let file = arguments.first().map(PathBuf::from);
    let config = ProbeConfig::read(&file.context("usage: espalier-ike-probe CONFIG.json")?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { Probe::new(&config)?.serve().await })
}

struct Probe {
    endpoint: Endpoint,
    peer: Identity,
    path: Path,
    ike: UdpIke,
    nat_t: UdpIke,
    kernel: Kernel,
    recorder: Recorder,
    commands: Lines<BufReader<Stdin>>,
    /// While set, what comes in waits: so that two requests cross for sure.
    held: Option<VecDeque<(Path, Vec<u8>)>>,
    /// While set, nothing goes out or comes in: a dead peer.
    mute: bool,
    /// Sendings of IKE_AUTH that are still to get lost.
    lose: u32,
}

impl Probe {
    fn new(config: &ProbeConfig) -> Result<Self> {
        let mut endpoint = Endpoint::new(config.node()?, Box::new(OsRng))?;
        let peer = config.peer()?;
        let id = peer.identity.clone();
        endpoint.put_peer(peer, Instant::now())?;
        let nat_t = UdpIke::bind(4500)?;
        nat_t.sockets().try_for_each(encap::carry_esp)?;
        Kernel::let_ike_through()?;
        Ok(Self {
            endpoint,
            peer: id,
            path: Path {
                local: config.local,
                remote: config.remote,
            },
            ike: UdpIke::bind(500)?,
            nat_t,
            kernel: Kernel::default(),
            recorder: Recorder::create(&config.record)?,
            commands: BufReader::new(tokio::io::stdin()).lines(),
            held: None,
            mute: false,
            lose: config.lose,
        })
    }

    async fn serve(&mut self) -> Result<()> {
        say::event(&json!({"event": "ready"}));
        loop {
            let timeout = self.endpoint.poll_timeout();
            let waiting = self.kernel.waiting()?;
            let look = tokio::time::sleep(LOOK);
            tokio::select! {
                message = self.ike.recv() => self.receive(message?)?,
                message = self.nat_t.recv() => self.receive_marked(message?)?,
                command = self.commands.next_line() => match command? {
                    Some(command) if command != "quit" => self.obey(&command)?,
                    _ => return Ok(()),
                },
                () = until(timeout) => self.endpoint.handle_timeout(Instant::now(), unix_now()),
                () = look, if !waiting.is_empty() => self.follow(&waiting)?,
            }
            self.drain().await?;
        }
    }

    fn obey(&mut self, command: &str) -> Result<()> {
        let now = Instant::now();
        match command {
            "connect" => self.endpoint.connect(&self.peer, Connect::Fresh, now),
            "disconnect" => self.endpoint.disconnect(&self.peer, now),
            "rekey-child" => self.endpoint.rekey_child(&self.peer, now),
            "rekey-ike" => self.endpoint.rekey_ike(&self.peer, now),
            "hold" => self.held = Some(VecDeque::new()),
            "release" => {
                for (path, message) in self.held.take().unwrap_or_default() {
                    self.handle(path, &message)?;
                }
            }
            "mute" => self.mute = true,
            "status" => {}
            other => anyhow::bail!("unknown command {other:?}"),
        }
        let status = format!("{:?}", self.endpoint.status(&self.peer));
        say::event(&json!({"event": "done", "command": command, "status": status}));
        Ok(())
    }

    fn receive_marked(&mut self, (path, datagram): (Path, Vec<u8>)) -> Result<()> {
        match nat_t::classify(&datagram) {
            nat_t::Datagram::Ike(message) => self.receive((path, message.to_vec())),
            _ => Ok(()),
        }
    }

    fn receive(&mut self, (path, message): (Path, Vec<u8>)) -> Result<()> {
        if self.mute {
            return Ok(());
        }
        self.recorder.keep("in", &path, &message)?;
        match &mut self.held {
            Some(held) => {
                held.push_back((path, message));
                say::event(&json!({"event": "held"}));
                Ok(())
            }
            None => self.handle(path, &message),
        }
    }

    fn handle(&mut self, path: Path, message: &[u8]) -> Result<()> {
        self.endpoint
            .handle_datagram(Instant::now(), unix_now(), path, message);
        self.path = path;
        self.act()
    }

    /// Events, then datagrams: a response must not promise what is not installed.
    async fn drain(&mut self) -> Result<()> {
        loop {
            self.act()?;
            let Some(transmit) = self.endpoint.poll_transmit() else {
                return Ok(());
            };
            if self.mute {
                continue;
            }
            self.recorder
                .keep("out", &transmit.path, &transmit.payload)?;
            if self.lose > 0 && transmit.payload.get(18) == Some(&IKE_AUTH) {
                self.lose -= 1;
                continue;
            }
            let sent = if transmit.path.local.port() == 4500 {
                let marked = nat_t::mark(&transmit.payload);
                self.nat_t.send(&transmit.path, &marked).await
            } else {
                self.ike.send(&transmit.path, &transmit.payload).await
            };
            if let Err(error) = sent {
                tracing::warn!("not sent: {error}");
            }
        }
    }

    fn act(&mut self) -> Result<()> {
        while let Some(event) = self.endpoint.poll_event() {
            match &event {
                Event::ChildUp { child, .. } => self.child_up(child)?,
                Event::ChildDown { spi_in, .. } => {
                    if let Some(spi_out) = self.kernel.remove(*spi_in)? {
                        say_switched(spi_out);
                    }
                }
                _ => {}
            }
            say::event(&say::describe(&event));
        }
        Ok(())
    }

    /// A responder of a rekey seals with the old keys until the initiator is known to be ready (RFC 7296 §2.8).
    fn child_up(&mut self, child: &ChildSa) -> Result<()> {
        let switch = child.role == Role::Initiator || self.kernel.current().is_none();
        self.kernel.add(child, self.path, switch)?;
        if switch {
            say_switched(child.spi_out);
        }
        Ok(())
    }

    fn follow(&mut self, waiting: &[(u32, u32, bool)]) -> Result<()> {
        for (spi_in, spi_out, _) in waiting.iter().filter(|(.., used)| *used) {
            self.kernel.switch(*spi_out)?;
            say_switched(*spi_out);
            let now = Instant::now();
            self.endpoint.confirm_child(&self.peer, *spi_in, now);
        }
        Ok(())
    }
}

fn say_switched(spi_out: u32) {
    say::event(&json!({"event": "switched", "spi_out": format!("{spi_out:08x}")}));
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
