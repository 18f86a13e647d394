use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use espalier_dataplane_core::{Event, Frozen, FrozenTun};
use espalier_esp::offload::Offload;
use espalier_ike_io::relay::DataplaneEnd;
use parking_lot::Mutex;
use tracing::info;

use crate::control::{Control, Ways};
use crate::drops::Drops;
use crate::error::Error;
use crate::io::{PacketIo, RawSockets, Stop, Stopper, Udp, stopper};
use crate::lanes::Lanes;
use crate::outgoing::Outgoing;
use crate::several::Several;
use crate::tables::Tables;
use crate::threads;

/// What an engine works with.
pub struct Config {
    /// Random per process; that of the state which is taken over, if one is.
    pub instance: u64,
    /// Version of the binary.
    pub version: String,
    /// Name of the TUN device.
    pub device: String,
    /// Pod packets: the queues of one device, each with a thread that sends.
    pub tun: Several<Arc<dyn PacketIo>>,
    /// ESP and IKE: the sockets of one port, each with a thread that receives.
    pub udp: Several<Udp>,
    /// Raw ESP, each socket with a thread that receives.
    pub raw: RawSockets,
    /// The data plane's end of the IKE relay; without it IKE messages are dropped and counted.
    pub relay: Option<DataplaneEnd>,
    /// Called by the threads; must not wait.
    pub report: Box<dyn Fn(Report) + Send + Sync>,
}

/// What an engine says by itself.
#[derive(Debug)]
pub enum Report {
    /// For the agent.
    Event(Event),
    /// A thread has ended: packets no longer flow in one direction.
    Failed(Error),
}

/// The running data plane: implements [`espalier_dataplane_core::Dataplane`]. Ends its threads when dropped.
pub struct Engine {
    pub(crate) identity: Identity,
    pub(crate) control: Mutex<Control>,
    pub(crate) shared: Arc<Shared>,
    running: Mutex<Running>,
}

/// The threads, while they run.
#[derive(Default)]
struct Running {
    stopper: Option<Stopper>,
    threads: Vec<JoinHandle<()>>,
}

/// Who answers a hello.
pub(crate) struct Identity {
    pub(crate) instance: u64,
    pub(crate) version: String,
    pub(crate) device: String,
}

/// What the threads share with the operations.
pub(crate) struct Shared {
    pub(crate) tables: ArcSwap<Tables>,
    pub(crate) drops: Drops,
    pub(crate) tun: Several<Arc<dyn PacketIo>>,
    pub(crate) udp: Several<Udp>,
    pub(crate) raw: RawSockets,
    /// One for each queue.
    pub(crate) outgoing: Several<Mutex<Outgoing>>,
    /// Where there are several queues.
    pub(crate) lanes: Option<Lanes>,
    pub(crate) relay: Option<DataplaneEnd>,
    pub(crate) report: Box<dyn Fn(Report) + Send + Sync>,
}

/// Whether [`Engine::resume`] on this UDP port, with the raw sockets that its SAs need, would take the state: everything is made of it
/// but the threads.
///
/// # Errors
/// [`Error::State`].
pub fn check(port: u16, frozen: Frozen) -> Result<(), Error> {
    Control::resume(Ways::all(port), frozen, Instant::now())?;
    Ok(())
}

impl Config {
    fn ways(&self) -> Ways {
        Ways {
            port: self.udp.first().port(),
            no_raw: self.raw.missing(),
        }
    }
}

fn frozen_tun(offload: Offload) -> FrozenTun {
    match offload {
        Offload::None => FrozenTun::Plain,
        Offload::Tcp => FrozenTun::Tcp,
        Offload::TcpUdp => FrozenTun::TcpUdp,
    }
}

impl Engine {
    /// Starts the threads, with no peer and no SA: every packet is dropped and counted.
    ///
    /// # Errors
    /// [`Error::Thread`].
    pub fn start(config: Config) -> Result<Self, Error> {
        let control = Control::new(config.ways());
        Self::with(config, control, Drops::default())
    }

    /// Starts the threads where those of another engine stopped, which will never run again.
    ///
    /// # Errors
    /// [`Error::State`]: it is not what [`Self::freeze`] gives; [`Error::Thread`].
    pub fn resume(config: Config, frozen: Frozen) -> Result<Self, Error> {
        let drops = Drops::default();
        drops.resume(&frozen.drops);
        let config = Config {
            instance: frozen.instance,
            ..config
        };
        let control = Control::resume(config.ways(), frozen, Instant::now())?;
        Self::with(config, control, drops)
    }

    fn with(config: Config, control: Control, drops: Drops) -> Result<Self, Error> {
        let Config {
            instance,
            version,
            device,
            tun,
            udp,
            raw,
            relay,
            report,
        } = config;
        raw.let_in(control.opens_raw());
        let engine = Self {
            identity: Identity {
                instance,
                version,
                device,
            },
            shared: Arc::new(Shared {
                tables: ArcSwap::from_pointee(control.tables()),
                drops,
                lanes: Lanes::new(tun.count()),
                outgoing: Outgoing::of(&tun),
                tun,
                udp,
                raw,
                relay,
                report,
            }),
            control: Mutex::new(control),
            running: Mutex::default(),
        };
        engine.thaw()?;
        let (queues, sockets) = (engine.shared.tun.count(), engine.shared.udp.count());
        info!(instance, queues, sockets, "data plane is running");
        Ok(engine)
    }

    /// A copy of the state while it goes on, by which another program can be tried. Nobody may seal by it.
    #[must_use]
    pub fn snapshot(&self) -> Frozen {
        Frozen {
            instance: self.identity.instance,
            drops: self.shared.drops.dump(),
            tun: frozen_tun(self.shared.offload()),
            ..self.control.lock().freeze(Instant::now())
        }
    }

    /// Stops the threads, and copies the state: exact, since nothing changes it but operations and [`Self::thaw`]. Packets wait in
    /// the TUN device's queue and in the socket.
    #[must_use]
    pub fn freeze(&self) -> Frozen {
        self.stop();
        self.snapshot()
    }

    /// Starts the threads again after [`Self::freeze`], when no other process took the state over.
    ///
    /// # Errors
    /// [`Error::Thread`].
    pub fn thaw(&self) -> Result<(), Error> {
        let mut running = self.running.lock();
        if running.stopper.is_some() {
            return Ok(());
        }
        let (stopper, stop) = stopper().map_err(Error::Thread)?;
        running.stopper = Some(stopper);
        let (queues, sockets) = (self.shared.tun.count(), self.shared.udp.count());
        let works = (0..queues)
            .map(|queue| Work::Transmit(queue, queues))
            .chain((0..sockets).map(|socket| Work::Receive(socket, sockets)))
            .chain(
                self.shared
                    .raw
                    .iter()
                    .enumerate()
                    .map(|(at, _)| Work::ReceiveRaw(at)),
            )
            .chain([Work::Relay]);
        for work in works {
            running.threads.push(self.spawn(work, &stop)?);
        }
        Ok(())
    }

    fn stop(&self) {
        let mut running = self.running.lock();
        drop(running.stopper.take());
        for thread in running.threads.drain(..) {
            let _ = thread.join();
        }
    }

    /// The UDP port of ESP and IKE.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.shared.udp.first().port()
    }

    /// Changes the state, then what the threads see of it.
    pub(crate) fn change<T>(&self, operation: impl FnOnce(&mut Control, Instant) -> T) -> T {
        let mut control = self.control.lock();
        let result = operation(&mut control, Instant::now());
        self.shared.raw.let_in(control.opens_raw());
        self.shared.tables.store(Arc::new(control.tables()));
        result
    }

    fn spawn(&self, work: Work, stop: &Stop) -> Result<JoinHandle<()>, Error> {
        let (shared, stop) = (self.shared.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name(work.name())
            .spawn(move || work.run(&shared, &stop));
        thread.map_err(Error::Thread)
    }
}

impl Shared {
    /// Of all queues of the device.
    pub(crate) fn offload(&self) -> Offload {
        self.tun.first().offload()
    }
}

/// What a thread does; which one of how many.
#[derive(Clone, Copy)]
enum Work {
    Transmit(usize, usize),
    Receive(usize, usize),
    /// Of a raw socket: one thread for each is enough, since the kernel does not spread its packets.
    ReceiveRaw(usize),
    Relay,
}

impl Work {
    /// As tools show the thread: 15 bytes at most.
    fn name(self) -> String {
        match self {
            Self::Transmit(_, 1) => "espalier-tx".to_owned(),
            Self::Transmit(queue, _) => format!("espalier-tx{queue}"),
            Self::Receive(_, 1) => "espalier-rx".to_owned(),
            Self::Receive(socket, _) => format!("espalier-rx{socket}"),
            Self::ReceiveRaw(socket) => format!("espalier-raw{socket}"),
            Self::Relay => "espalier-ike".to_owned(),
        }
    }

    fn run(self, shared: &Shared, stop: &Stop) {
        match self {
            Self::Transmit(queue, _) => threads::transmit(shared, queue, stop),
            Self::Receive(socket, _) => threads::receive(shared, socket, stop),
            Self::ReceiveRaw(socket) => threads::receive_raw(shared, socket, stop),
            Self::Relay => threads::relay_out(shared, stop),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        info!("data plane has stopped");
    }
}
