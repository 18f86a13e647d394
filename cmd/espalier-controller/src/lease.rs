//! Leader election by a Lease (coordination.k8s.io/v1): of several replicas one acts.
//!
//! Clocks of nodes are not compared. A candidate takes a lease over only after it has itself seen it unchanged for the lease's
//! whole duration, as client-go does. The holder stops when it has not renewed for [`Timing::renew_within`], which is shorter:
//! it has stopped before another can begin. Two holders at once are told apart by the object's resourceVersion.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use crate::api::is_code;

/// Of leader election.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Whoever sees the lease unchanged for so long may take it.
    pub(crate) duration: Duration,
    /// The holder stops when its last renewal is so long ago.
    pub(crate) renew_within: Duration,
    /// Between two renewals, and between two looks of a candidate.
    pub(crate) retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_within: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Takes part in the election for one lease.
pub(crate) struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
    rival: Option<Seen>,
}

/// A lease as it was seen first.
struct Seen {
    record: Record,
    since: Instant,
}

/// What changes whenever a holder renews or changes.
#[derive(PartialEq, Eq)]
struct Record(Option<String>, Option<MicroTime>, Option<i32>);

/// The lease while this process holds it.
pub(crate) struct Held {
    lease: Lease,
    /// When the request of the last renewal was begun.
    renewed: Instant,
}

impl Elector {
    pub(crate) fn new(api: Api<Lease>, name: &str, identity: String, timing: Timing) -> Self {
        Self {
            api,
            name: name.to_owned(),
            identity,
            timing,
            rival: None,
        }
    }

    /// Waits until the lease is this process's.
    pub(crate) async fn acquire(&mut self) -> Held {
        loop {
            let begun = Instant::now();
            let tried = timeout_at(begun + self.timing.renew_within, self.try_acquire(begun));
            match tried.await {
                Ok(Ok(Some(held))) => {
                    info!(lease = self.name, identity = self.identity, "leading");
                    return held;
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => warn!(%error, lease = self.name, "no leader election for now"),
                Err(_) => warn!(lease = self.name, "the API server does not answer"),
            }
            sleep(self.timing.retry).await;
        }
    }

    async fn try_acquire(&mut self, now: Instant) -> kube::Result<Option<Held>> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            return self.create(now).await;
        };
        let spec = lease.spec.take().unwrap_or_default();
        // The time after the answer: a slow one says nothing of the time before.
        if !self.may_take(&spec, Instant::now()) {
            return Ok(None);
        }
        let transitions = spec.lease_transitions.unwrap_or(0);
        let own = spec.holder_identity.as_deref() == Some(&self.identity);
        let acquired = spec.acquire_time.clone().filter(|_| own);
        lease.spec = Some(LeaseSpec {
            acquire_time: acquired.or_else(|| Some(wall_clock())),
            lease_transitions: Some(transitions + i32::from(!own)),
            ..self.spec()
        });
        self.take(lease, Instant::now()).await
    }

    /// Whether nobody holds the lease, or its holder has been silent for its whole duration as seen from here.
    fn may_take(&mut self, spec: &LeaseSpec, now: Instant) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let record = Record(
            spec.holder_identity.clone(),
            spec.renew_time.clone(),
            spec.lease_transitions,
        );
        let duration = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        let duration = duration.map_or(self.timing.duration, Duration::from_secs);
        match &self.rival {
            Some(seen) if seen.record == record => now >= seen.since + duration,
            _ => {
                debug!(lease = self.name, holder, "another leads");
                self.rival = Some(Seen { record, since: now });
                false
            }
        }
    }

    async fn create(&self, now: Instant) -> kube::Result<Option<Held>> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                acquire_time: Some(wall_clock()),
                lease_transitions: Some(0),
                ..self.spec()
            }),
        };
        match self.api.create(&PostParams::default(), &lease).await {
            Ok(lease) => Ok(Some(Held {
                lease,
                renewed: now,
            })),
            Err(error) if is_code(&error, 409) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn take(&self, lease: Lease, now: Instant) -> kube::Result<Option<Held>> {
        match self.replace(&lease).await {
            Ok(lease) => Ok(Some(Held {
                lease,
                renewed: now,
            })),
            // Somebody was faster.
            Err(error) if is_code(&error, 409) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Renews until that fails for too long or somebody else has the lease. When it returns, the caller has stopped acting.
    pub(crate) async fn keep(&mut self, held: &mut Held) {
        loop {
            let deadline = held.renewed + self.timing.renew_within;
            if timeout_at(deadline, sleep(self.timing.retry))
                .await
                .is_err()
            {
                break;
            }
            match timeout_at(deadline, self.renew(held)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => {
                    warn!(lease = self.name, "another has taken the lease");
                    return;
                }
                Ok(Err(error)) => warn!(%error, lease = self.name, "the lease was not renewed"),
                Err(_) => break,
            }
        }
        warn!(
            lease = self.name,
            "the lease could not be renewed in time: no longer leading"
        );
    }

    /// False: it is another's.
    async fn renew(&self, held: &mut Held) -> kube::Result<bool> {
        let begun = Instant::now();
        let mut lease = held.lease.clone();
        for _ in 0..2 {
            let spec = lease.spec.take().unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(false);
            }
            lease.spec = Some(LeaseSpec {
                acquire_time: spec.acquire_time,
                lease_transitions: spec.lease_transitions,
                ..self.spec()
            });
            match self.replace(&lease).await {
                Ok(lease) => {
                    *held = Held {
                        lease,
                        renewed: begun,
                    };
                    return Ok(true);
                }
                // Changed by another, or by a renewal whose answer was lost.
                Err(error) if is_code(&error, 409) => match self.api.get_opt(&self.name).await? {
                    Some(found) => lease = found,
                    None => return Ok(false),
                },
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Gives the lease back, so that another need not wait. Best effort.
    pub(crate) async fn release(&self, held: Held) {
        let mut lease = held.lease;
        let spec = lease.spec.take().unwrap_or_default();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            renew_time: Some(wall_clock()),
            ..spec
        });
        let deadline = Instant::now() + self.timing.retry;
        match timeout_at(deadline, self.replace(&lease)).await {
            Ok(Ok(_)) => info!(lease = self.name, "lease released"),
            Ok(Err(error)) => warn!(%error, lease = self.name, "the lease was not released"),
            Err(_) => warn!(lease = self.name, "the lease was not released in time"),
        }
    }

    async fn replace(&self, lease: &Lease) -> kube::Result<Lease> {
        self.api
            .replace(&self.name, &PostParams::default(), lease)
            .await
    }

    fn spec(&self) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.duration.as_secs()).ok(),
            renew_time: Some(wall_clock()),
            ..LeaseSpec::default()
        }
    }
}

fn wall_clock() -> MicroTime {
    MicroTime(Timestamp::now())
}

#[cfg(test)]
mod tests;
