//! The mesh actor: one task owns all state, takes facts in (manifests, IKE datagrams, the data plane, time) and after each
//! of them settles the world: kernel first, then IKE, then what is said to peers.

mod adopt;
mod child;
mod cpus;
mod demand;
mod external;
mod kernel;
mod peer;
mod peers;
mod plane;
mod probe;
mod removals;
mod settle;
mod sources;
mod status;
mod summary;
mod terms;
mod uplink;
mod wanted;
mod way;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use espalier_api::{MeshSnapshot, RekeySpec};
use espalier_dataplane_core::Dataplane;
use espalier_ike::{Endpoint, Rekeying};
use espalier_ike_io::{IkeIo, unix_now};
use espalier_peers::{PeerSet, WayLimits};
use espalier_rpc::agent::StatusReply;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::counters::Counters;
use crate::credentials::{KeyFiles, Keyring};
use external::Gateway;
use kernel::Kernel;
use peers::Peers;
pub(crate) use plane::{PlaneFact, follow};
use probe::Probes;
use removals::Removals;
pub(crate) use status::NodeFacts;
pub(crate) use summary::Summary;
use terms::Terms;
use uplink::Uplink;
use wanted::Wanted;

/// The kernel is compared with what should be at least this often, so that what somebody deleted comes back.
const RESYNC: Duration = Duration::from_secs(10);
/// After the kernel refused something.
const RETRY: Duration = Duration::from_secs(1);
/// How often SAs are looked at for traffic, which counts as liveness.
const TRAFFIC_POLL: Duration = Duration::from_secs(5);
/// How long a starting agent waits for word of the data plane.
const PLANE_WAIT: Duration = Duration::from_secs(3);
/// A due timer waits at least this long, so that one that cannot be met does not spin.
const MIN_SLEEP: Duration = Duration::from_millis(5);

/// IKE datagrams taken in before the next settling, at most; answers wait for it.
const DATAGRAMS_AT_ONCE: usize = 64;

/// What [`IkeIo::recv`] gives.
type Received = std::io::Result<(espalier_ike::Path, Vec<u8>)>;

/// What others ask of the mesh.
pub(crate) enum Query {
    /// All that is known, for people.
    Status(oneshot::Sender<StatusReply>),
    /// What is cheap to know, again and again.
    Summary(oneshot::Sender<Summary>),
}

/// Everything the actor is built from.
pub(crate) struct Parts<D, K> {
    pub(crate) node: String,
    pub(crate) keys: KeyFiles,
    pub(crate) endpoint: Endpoint,
    pub(crate) rekeying: Rekeying,
    pub(crate) ways: WayLimits,
    pub(crate) io: IkeIo,
    pub(crate) overlay: K,
    pub(crate) plane: Arc<D>,
    pub(crate) plane_facts: mpsc::Receiver<PlaneFact>,
    pub(crate) snapshots: watch::Receiver<MeshSnapshot>,
    pub(crate) queries: mpsc::Receiver<Query>,
    /// Told to the pod side whenever it changes.
    pub(crate) facts: watch::Sender<NodeFacts>,
    pub(crate) counters: Arc<Counters>,
    /// What others have to say that an admin should mend.
    pub(crate) complaints: Vec<watch::Receiver<Vec<String>>>,
    pub(crate) run_dir: PathBuf,
}

/// The actor.
pub(crate) struct Mesh<D, K> {
    parts: Parts<D, K>,
    started: Instant,
    keyring: Keyring,
    key_files: Vec<(PathBuf, Option<std::time::SystemTime>)>,
    snapshot: MeshSnapshot,
    set: PeerSet,
    peers: Peers,
    /// By IKE identity.
    gateways: BTreeMap<String, Gateway>,
    uplink: Uplink,
    terms: Terms,
    removals: Removals,
    probes: Probes,
    /// Whom to send a probe.
    asked: Vec<IpAddr>,
    wanted: Wanted,
    /// When all of the kernel was read last; `None`: it may hold something else than it was brought to.
    read_at: Option<Instant>,
    pod_mtu: u32,
    kernel_problem: Option<String>,
    /// What the kernel cannot do, without harm to what is closed or sealed.
    kernel_note: Option<String>,
    retry_kernel_at: Option<Instant>,
    next_traffic_poll: Instant,
}

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    pub(crate) fn new(parts: Parts<D, K>) -> Self {
        let now = Instant::now();
        Self {
            parts,
            started: now,
            keyring: Keyring::default(),
            key_files: Vec::new(),
            snapshot: MeshSnapshot::default(),
            set: PeerSet::default(),
            peers: Peers::default(),
            gateways: BTreeMap::new(),
            uplink: Uplink::default(),
            terms: Terms::default(),
            removals: Removals::default(),
            probes: Probes::default(),
            asked: Vec::new(),
            wanted: Wanted::default(),
            read_at: None,
            pod_mtu: 0,
            kernel_problem: None,
            kernel_note: None,
            retry_kernel_at: None,
            next_traffic_poll: now + TRAFFIC_POLL,
        }
    }

    /// Runs until `shutdown`. What is in the kernel and the data plane stays as it is: traffic goes on.
    pub(crate) async fn run(mut self, mut shutdown: oneshot::Receiver<()>) -> Result<()> {
        self.reload_keys();
        self.wait_for_plane().await;
        self.take_snapshot().await;
        loop {
            self.settle().await;
            let sleep = self
                .next_wake()
                .saturating_duration_since(Instant::now())
                .max(MIN_SLEEP);
            tokio::select! {
                biased;
                _ = &mut shutdown => return Ok(()),
                Some(query) = self.parts.queries.recv() => self.answer(query).await,
                Some(fact) = self.parts.plane_facts.recv() => self.take_plane_fact(fact).await,
                Ok(()) = self.parts.snapshots.changed() => self.take_snapshot().await,
                received = self.parts.io.recv() => self.take_datagrams(received).await,
                () = tokio::time::sleep(sleep) => self.take_time().await,
            }
        }
    }

    /// What the data plane holds must be known before the first decision, or a restart would cut what it should adopt.
    async fn wait_for_plane(&mut self) {
        if let Ok(Some(fact)) =
            tokio::time::timeout(PLANE_WAIT, self.parts.plane_facts.recv()).await
        {
            self.take_plane_fact(fact).await;
        }
    }

    /// This datagram and what else waits: when a mesh starts all peers write, and they are settled together.
    async fn take_datagrams(&mut self, first: Received) {
        self.take_datagram(first);
        for _ in 1..DATAGRAMS_AT_ONCE {
            match tokio::time::timeout(Duration::ZERO, self.parts.io.recv()).await {
                Ok(received) => self.take_datagram(received),
                Err(_none_waits) => return,
            }
        }
    }

    fn take_datagram(&mut self, received: Received) {
        match received {
            Ok((path, datagram)) => {
                self.parts
                    .endpoint
                    .handle_datagram(Instant::now(), unix_now(), path, &datagram);
            }
            Err(e) => warn!(error = %e, "receiving an IKE datagram failed"),
        }
    }

    async fn take_time(&mut self) {
        let now = Instant::now();
        self.parts.endpoint.handle_timeout(now, unix_now());
        if now >= self.next_traffic_poll {
            self.next_traffic_poll = now + TRAFFIC_POLL;
            self.note_traffic().await;
            self.peers.touch_all();
            if self.parts.keys.fingerprint() != self.key_files {
                self.reload_keys();
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let others = [
            self.parts.endpoint.poll_timeout(),
            self.retry_kernel_at,
            self.read_at.map(|at| at + RESYNC),
            self.peers.next_timeout(),
        ];
        others
            .into_iter()
            .flatten()
            .chain(self.gateways.values().filter_map(Gateway::next_timeout))
            .fold(self.next_traffic_poll, Instant::min)
    }

    fn reload_keys(&mut self) {
        self.key_files = self.parts.keys.fingerprint();
        self.keyring = self.parts.keys.load();
        for problem in &self.keyring.problems {
            warn!(%problem, "credentials");
        }
        self.configure_endpoint();
        for name in self.peers.names() {
            self.configure_ike(&name);
        }
        self.configure_gateways();
    }

    fn configure_endpoint(&mut self) {
        let identity = espalier_ike::Identity::from(self.parts.node.as_str());
        let config = espalier_ike::Config {
            credentials: self.keyring.credentials.clone(),
            trust: self.keyring.trust.clone(),
            rekeying: self.rekeying(),
            ..espalier_ike::Config::new(identity)
        };
        match self.parts.endpoint.set_config(config) {
            Ok(()) => info!("credentials and lifetimes loaded"),
            Err(e) => self.keyring.problems.push(e.to_string()),
        }
    }

    /// When SAs are replaced: as the policy says, else as this agent was started.
    fn rekeying(&self) -> Rekeying {
        let RekeySpec {
            interval,
            bytes,
            packets,
        } = self.terms.protection.rekey;
        let mut rekeying = self.parts.rekeying;
        if let Some(seconds) = interval {
            rekeying.child_soft = Duration::from_secs(seconds.into());
            rekeying.ike_soft = rekeying.child_soft * 4;
        }
        let volume = &mut rekeying.child_volume;
        // The hard limit leaves room for a rekey that fails at first.
        for (limit, soft, hard) in [
            (bytes, &mut volume.soft_bytes, &mut volume.hard_bytes),
            (packets, &mut volume.soft_packets, &mut volume.hard_packets),
        ] {
            if let Some(limit) = limit {
                (*soft, *hard) = (limit, limit.saturating_mul(2));
            }
        }
        rekeying
    }
}

#[cfg(test)]
mod tests;
