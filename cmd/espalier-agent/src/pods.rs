//! Addresses for pods: the CNI plugin's side of the agent.

mod orphans;
mod removals;
mod strays;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use espalier_ipam::{Error as IpamError, Key, Lease, Owner, Store, StoreError};
use espalier_rpc::agent::cni_server::Cni;
use espalier_rpc::agent::{
    AllocateReply, AllocateRequest, CollectReply, CollectRequest, DetachReply, PodAddress,
    ReadyReply, ReadyRequest, ReleaseReply, ReleaseRequest,
};
use ipnet::IpNet;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::{debug, info, warn};

use crate::mesh::NodeFacts;
use orphans::Orphans;
use removals::Removals;

/// A freed address rests this long before it is given out again.
const REUSE_DELAY: Duration = Duration::from_secs(30);
/// How often releases are looked for that the plugin queued while nobody served it, and what is on disk is tidied.
const PENDING_POLL: Duration = Duration::from_secs(5);
/// How often leases are compared with interfaces: runtimes rarely call GC, and a plugin that was killed calls nobody.
const COMPARE: Duration = Duration::from_secs(30);

/// Leases of this node.
pub(crate) struct Pods {
    state_dir: PathBuf,
    facts: watch::Receiver<NodeFacts>,
    /// Open once this node's pod CIDRs are known, with the CIDRs that it was opened for.
    store: Mutex<Option<(Vec<IpNet>, Store)>>,
    removals: Removals,
}

impl Pods {
    /// Leases in `state_dir`, for the pod CIDRs that `facts` tell. Needs a tokio runtime.
    pub(crate) fn open(state_dir: PathBuf, facts: watch::Receiver<NodeFacts>) -> Arc<Self> {
        let pods = Arc::new(Self {
            state_dir,
            facts,
            store: Mutex::new(None),
            removals: Removals::default(),
        });
        tokio::spawn(keep_up(pods.clone()));
        pods
    }

    /// How many interfaces have addresses.
    pub(crate) fn leases(&self) -> u32 {
        let count = self
            .lock()
            .as_ref()
            .map_or(0, |(_, store)| store.leases().len());
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Vec<IpNet>, Store)>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the leases, opened for the pod CIDRs of now.
    fn with_store<T>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, StoreError>,
    ) -> Result<T, Status> {
        tokio::task::block_in_place(|| {
            let cidrs = self.facts.borrow().pod_cidrs.clone();
            let mut open = self.lock();
            if open.as_ref().is_none_or(|(known, _)| *known != cidrs) {
                *open = None; // gives its lock back
                *open = Some((
                    cidrs.clone(),
                    self.open_store(&cidrs).map_err(|e| status(&e))?,
                ));
            }
            let Some((_, store)) = open.as_mut() else {
                return Err(Status::internal("leases are not open"));
            };
            work(store).map_err(|e| status(&e))
        })
    }

    fn open_store(&self, cidrs: &[IpNet]) -> Result<Store, StoreError> {
        let mut store = Store::open(&self.state_dir.join("leases"), cidrs, REUSE_DELAY)?;
        info!(
            leases = store.leases().len(),
            new = store.is_new(),
            ?cidrs,
            "leases opened"
        );
        self.consume(&mut store);
        Ok(store)
    }

    /// Releases what the plugin queued.
    fn consume(&self, store: &mut Store) {
        let consumed = store.consume_pending(&self.state_dir, SystemTime::now());
        for key in &consumed.released {
            info!(%key, "queued release done");
        }
        for error in &consumed.errors {
            warn!(%error, "a queued release cannot be done");
        }
    }

    /// The node's facts when it can take pods now.
    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn ready(&self) -> Result<NodeFacts, Status> {
        let facts = self.facts.borrow().clone();
        match (facts.not_ready.as_slice(), facts.pod_cidrs.is_empty()) {
            ([], false) => Ok(facts),
            ([], true) => Err(Status::failed_precondition(
                "the agent is starting; try again in a moment",
            )),
            (reasons, _) => Err(Status::failed_precondition(reasons.join("; "))),
        }
    }
}

async fn keep_up(pods: Arc<Pods>) {
    let mut facts = pods.facts.clone();
    let (mut orphans, mut compared) = (Orphans::default(), None::<Instant>);
    loop {
        if !pods.facts.borrow().pod_cidrs.is_empty() {
            let kept = pods.with_store(|store| {
                pods.consume(store);
                store.tidy()
            });
            if let Err(e) = kept {
                warn!(error = e.message(), "leases");
            }
            if compared.is_none_or(|at| at.elapsed() >= COMPARE) {
                compared = Some(Instant::now());
                pods.compare(&mut orphans, Instant::now());
            }
        }
        // A change of facts may bring the first pod CIDRs; the agent's end closes the channel.
        if let Ok(Err(_)) = tokio::time::timeout(PENDING_POLL, facts.changed()).await {
            return;
        }
    }
}

impl Pods {
    /// Gives back what no interface has had for a while, and removes interfaces that nobody finished. Whatever cannot be told
    /// for certain stays.
    fn compare(&self, orphans: &mut Orphans, now: Instant) {
        // An ADD or DEL may be under way: one without the other is only watched at first.
        let there = match tokio::task::block_in_place(espalier_podnet::list) {
            Ok(there) => there,
            Err(error) => return warn!(%error, "leases are not compared with interfaces"),
        };
        for veth in orphans.half_made(&there, now) {
            match tokio::task::block_in_place(|| espalier_podnet::remove_listed(&veth)) {
                Ok(()) => warn!(interface = veth.name, "removed: it was never finished"),
                Err(error) => warn!(interface = veth.name, %error, "cannot be removed"),
            }
        }
        let given_back = self.with_store(|store| {
            let orphaned = orphans.look(&there, store.leases(), now);
            for key in &orphaned {
                store.release(key, SystemTime::now())?;
            }
            Ok(orphaned)
        });
        match given_back {
            Ok(keys) => keys
                .iter()
                .for_each(|key| warn!(%key, "address given back: its interface is gone")),
            Err(e) => warn!(error = e.message(), "leases"),
        }
    }

    /// Fails before anything is done while the leases cannot be opened.
    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn cidrs_known(&self) -> Result<(), Status> {
        match self.facts.borrow().pod_cidrs.is_empty() {
            true => Err(Status::unavailable(
                "the agent does not know its pod CIDRs yet; the release is to be queued",
            )),
            false => Ok(()),
        }
    }
}

fn status(error: &StoreError) -> Status {
    match error {
        StoreError::Allocator(IpamError::Exhausted { .. }) => {
            Status::resource_exhausted(error.to_string())
        }
        StoreError::Allocator(_) => Status::failed_precondition(error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

fn key(container_id: &str, ifname: &str) -> Result<Key, Status> {
    for (field, value) in [("container_id", container_id), ("ifname", ifname)] {
        if value.is_empty() {
            return Err(Status::invalid_argument(format!(
                "{field} is empty; the runtime gives it in the environment"
            )));
        }
    }
    Ok(Key::new(container_id, ifname))
}

fn reply(lease: &Lease, mtu: u32) -> AllocateReply {
    let address = |leased: &espalier_ipam::LeasedAddress| PodAddress {
        address: leased.host_net().to_string(),
        gateway: leased.gateway.to_string(),
    };
    AllocateReply {
        addresses: lease.addresses.iter().map(address).collect(),
        mtu,
    }
}

#[tonic::async_trait]
impl Cni for Pods {
    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateReply>, Status> {
        let facts = self.ready()?;
        let request = request.into_inner();
        let key = key(&request.container_id, &request.ifname)?;
        let owner = Owner {
            netns: request.netns,
            pod_namespace: request.pod_namespace,
            pod_name: request.pod_name,
            network: request.network,
        };
        let lease = self.with_store(|store| store.allocate(&key, owner, SystemTime::now()))?;
        debug!(%key, addresses = ?lease.addresses, "leased");
        Ok(Response::new(reply(&lease, facts.mtu)))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseReply>, Status> {
        let request = request.into_inner();
        let key = key(&request.container_id, &request.ifname)?;
        self.cidrs_known()?;
        let released = self
            .with_store(|store| store.release(&key, SystemTime::now()))?
            .is_some();
        debug!(%key, released, "release");
        Ok(Response::new(ReleaseReply { released }))
    }

    async fn detach(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<DetachReply>, Status> {
        let request = request.into_inner();
        let key = key(&request.container_id, &request.ifname)?;
        self.cidrs_known()?;
        let (found, released) = self.removals.remove(self, key.clone()).await?;
        debug!(%key, found, released, "detached");
        Ok(Response::new(DetachReply { found, released }))
    }

    async fn collect(
        &self,
        request: Request<CollectRequest>,
    ) -> Result<Response<CollectReply>, Status> {
        let CollectRequest { network, keep } = request.into_inner();
        if network.is_empty() {
            return Err(Status::invalid_argument("network is empty"));
        }
        self.cidrs_known()?;
        let keep = keep.into_iter().map(|r| Key::new(r.container_id, r.ifname));
        let (keep, now) = (keep.collect(), SystemTime::now());
        let keys = self.with_store(|store| store.collect(&network, &keep, now))?;
        info!(network, count = keys.len(), "GC");
        let released = keys.into_iter().map(|key| ReleaseRequest {
            container_id: key.container_id,
            ifname: key.ifname,
        });
        Ok(Response::new(CollectReply {
            released: released.collect(),
        }))
    }

    async fn lookup(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<AllocateReply>, Status> {
        let request = request.into_inner();
        let key = key(&request.container_id, &request.ifname)?;
        let mtu = self.facts.borrow().mtu;
        let lease = self.with_store(|store| Ok(store.get(&key).cloned()))?;
        let missing = || {
            Status::not_found(format!(
                "{key} has no address; its ADD did not succeed or it was released"
            ))
        };
        Ok(Response::new(reply(&lease.ok_or_else(missing)?, mtu)))
    }

    async fn ready(&self, _: Request<ReadyRequest>) -> Result<Response<ReadyReply>, Status> {
        self.ready()?;
        self.with_store(|store| store.room(SystemTime::now()))?;
        Ok(Response::new(ReadyReply {}))
    }
}

#[cfg(test)]
mod tests;
