//! The foreign daemons behind one interface.

mod libreswan;
mod strongswan;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::matrix::{Auth, Foreign};

/// What a case asks of the foreign side.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) auth: Auth,
    pub(crate) transport: bool,
    pub(crate) ah: bool,
    /// Force ESP in UDP.
    pub(crate) encap: bool,
    /// Ask after this many seconds of silence.
    pub(crate) dpd: Option<u32>,
    /// Answer every IKE_SA_INIT with a cookie.
    pub(crate) cookies: bool,
    /// Cut messages into fragments of this many bytes at most.
    pub(crate) fragment: Option<u32>,
    /// A further key exchange by ML-KEM-768.
    pub(crate) ml_kem: bool,
    /// A post-quantum pre-shared key must be used.
    pub(crate) ppk: Option<Ppk>,
}

/// RFC 8784: both sides' secret and its name.
#[derive(Clone, Debug)]
pub(crate) struct Ppk {
    pub(crate) id: String,
    pub(crate) hex: String,
}

impl Wish {
    pub(crate) fn new(auth: Auth) -> Self {
        Self {
            auth,
            transport: true,
            ah: false,
            encap: false,
            dpd: None,
            cookies: false,
            fragment: None,
            ml_kem: false,
            ppk: None,
        }
    }
}

/// Where things are.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) foreign: Foreign,
    /// Its root file system.
    pub(crate) root: PathBuf,
    /// This case's own folder.
    pub(crate) folder: PathBuf,
    /// With certificates and keys of the run.
    pub(crate) pki: PathBuf,
    pub(crate) namespace: String,
    /// Hexadecimal digits.
    pub(crate) psk: String,
}

/// A running foreign daemon with one connection. It ends when dropped.
pub(crate) trait Daemon {
    /// Begins IKE_SA_INIT; returns at once or when the CHILD_SA is up.
    fn initiate(&mut self) -> Result<()>;
    /// Begins a rekey of the CHILD_SA.
    fn rekey_child(&mut self) -> Result<()>;
    /// Begins a rekey of the IKE SA.
    fn rekey_ike(&mut self) -> Result<()>;
    /// Deletes the CHILD_SA alone.
    fn delete_child(&mut self) -> Result<()>;
    /// Deletes the IKE SA.
    fn delete_ike(&mut self) -> Result<()>;
    /// All key exchange methods that it knows.
    fn key_exchanges(&mut self) -> Result<String>;
    /// Algorithms of the established IKE SA.
    fn ike_algorithms(&mut self) -> Result<String>;
    /// What it logged at its default level.
    fn log(&self) -> String;
    /// Ends it without a word to us.
    fn kill(&mut self);
    /// Established IKE SAs with us.
    fn ike_sas(&mut self) -> Result<usize>;
}

pub(crate) fn start(place: &Place, wish: &Wish) -> Result<Box<dyn Daemon>> {
    match place.foreign {
        Foreign::Strongswan5 | Foreign::Strongswan6 => strongswan::start(place, wish),
        Foreign::Libreswan4 | Foreign::Libreswan5 => libreswan::start(place, wish),
    }
}

/// `program` in the root file system and the namespace, with the case's folder on /mnt and a /run of its own.
fn chrooted(place: &Place, program: &str) -> Command {
    let mut command = Command::new("unshare");
    let script = format!(
        "mount -t tmpfs run {root}/run && mount --bind {folder} {root}/mnt && mount -t proc proc {root}/proc && \
         mount --bind /dev {root}/dev && exec nsenter --net=/run/netns/{namespace} chroot {root} {program}",
        root = place.root.display(),
        folder = place.folder.display(),
        namespace = place.namespace,
    );
    command.args(["-m", "bash", "-c", &script]);
    command
}

/// `line` in the mounts and the network of a daemon.
fn beside(place: &Place, pid: u32, line: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-m", "-n", "chroot"]);
    command.arg(&place.root).args(line.split_whitespace());
    command
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::copy(from, to)?;
    Ok(())
}
