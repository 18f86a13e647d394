//! The data plane: operations under one lock, and a thread that hears the kernel.

mod check;
mod inner;
mod seam;
mod states;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use espalier_dataplane_core::Event;
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use tracing::{debug, info};

use crate::book::Book;
use crate::error::Error;
use crate::instance::instance;
use crate::listener::Listener;
use crate::probe::Findings;
use crate::sad::Sad;
use crate::stat::Counters;
use inner::Inner;

/// What a kernel data plane works with.
pub struct Config {
    /// Where the list of peers is kept.
    pub run_dir: PathBuf,
    /// Version of the binary.
    pub version: String,
    /// UDP port that this process holds for ESP and IKE.
    pub port: u16,
    /// What the kernel can do: [`crate::probe()`].
    pub findings: Findings,
    /// Called by the thread and by operations; must not wait.
    pub report: Box<dyn Fn(Event) + Send + Sync>,
}

/// The kernel as data plane: implements [`espalier_dataplane_core::Dataplane`]. When it is dropped the states stay.
pub struct KernelPlane {
    instance: u64,
    version: String,
    counters: Counters,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inner: Mutex<Inner>,
    report: Box<dyn Fn(Event) + Send + Sync>,
    nudge: EventFd,
    stopped: AtomicBool,
}

impl KernelPlane {
    /// Takes over the states of this kernel, in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the SAD or the SPD cannot be read.
    pub fn open(config: Config) -> Result<Self, Error> {
        let Config {
            run_dir,
            version,
            port,
            findings,
            report,
        } = config;
        let instance = instance()?;
        // Before the list is read: what happens in between is heard.
        let listener = Listener::open()?;
        let book = Book::open(&run_dir, instance);
        let mut inner = Inner::new(Sad::open()?, book, findings, port);
        inner.adopt(Instant::now())?;
        let nudge = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| Error::io("making an eventfd", errno))?;
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            report,
            nudge,
            stopped: AtomicBool::new(false),
        });
        let seen = shared.clone();
        let thread = std::thread::Builder::new()
            .name("espalier-xfrm".to_owned())
            .spawn(move || watch::run(&seen, listener))
            .map_err(|e| Error::io("starting a thread", e))?;
        info!(instance, "kernel data plane is running");
        Ok(Self {
            instance,
            version,
            counters: Counters::open(),
            shared,
            thread: Some(thread),
        })
    }

    /// How many netlink messages were sent that can change something.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.shared.inner.lock().sad.writes()
    }
}

impl Shared {
    fn report(&self, events: Vec<Event>) {
        for event in events {
            debug!(?event, "kernel event");
            (self.report)(event);
        }
    }

    /// There is a new state to watch.
    fn nudge(&self) {
        // Full means that the thread is woken already.
        let _ = self.nudge.write(1);
    }
}

impl Drop for KernelPlane {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.shared.nudge();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
