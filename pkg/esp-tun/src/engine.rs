use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use espalier_dataplane_core::Event;
use espalier_ike_io::relay::DataplaneEnd;
use parking_lot::Mutex;
use tracing::info;

use crate::control::Control;
use crate::drops::Drops;
use crate::error::Error;
use crate::io::{PacketIo, Stop, Stopper, Udp, stopper};
use crate::tables::Tables;
use crate::threads;

/// What an engine works with.
pub struct Config {
    /// Random per process.
    pub instance: u64,
    /// Version of the binary.
    pub version: String,
    /// Name of the TUN device.
    pub device: String,
    /// Pod packets.
    pub tun: Arc<dyn PacketIo>,
    /// ESP and IKE.
    pub udp: Udp,
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
    pub(crate) tun: Arc<dyn PacketIo>,
    pub(crate) udp: Udp,
    pub(crate) relay: Option<DataplaneEnd>,
    pub(crate) report: Box<dyn Fn(Report) + Send + Sync>,
}

impl Engine {
    /// Starts the threads, with no peer and no SA: every packet is dropped and counted.
    ///
    /// # Errors
    /// [`Error::Thread`].
    pub fn start(config: Config) -> Result<Self, Error> {
        let Config {
            instance,
            version,
            device,
            tun,
            udp,
            relay,
            report,
        } = config;
        let control = Control::new(udp.port());
        let tables = ArcSwap::from_pointee(control.tables());
        let shared = Arc::new(Shared {
            tables,
            drops: Drops::default(),
            tun,
            udp,
            relay,
            report,
        });
        let (stopper, stop) = stopper().map_err(Error::Thread)?;
        let mut engine = Self {
            identity: Identity {
                instance,
                version,
                device,
            },
            control: Mutex::new(control),
            shared,
            stopper: Some(stopper),
            threads: Vec::new(),
        };
        engine.spawn("espalier-tx", &stop, threads::transmit)?;
        engine.spawn("espalier-rx", &stop, threads::receive)?;
        engine.spawn("espalier-ike", &stop, threads::relay_out)?;
        info!(instance, "data plane is running");
        Ok(engine)
    }

    /// The UDP port of ESP and IKE.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.shared.udp.port()
    }

    /// Changes the state, then what the threads see of it.
    pub(crate) fn change<T>(&self, operation: impl FnOnce(&mut Control, Instant) -> T) -> T {
        let mut control = self.control.lock();
        let result = operation(&mut control, Instant::now());
        self.shared.tables.store(Arc::new(control.tables()));
        result
    }

    fn spawn(&mut self, name: &str, stop: &Stop, run: fn(&Shared, &Stop)) -> Result<(), Error> {
        let (shared, stop) = (self.shared.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&shared, &stop));
        self.threads.push(thread.map_err(Error::Thread)?);
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.stopper.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        info!("data plane has stopped");
    }
}
