//! Writing to the API server what changes here: the newest of it, not too often, and until it works.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::client::explain;

/// Something in the API that is to be as it is wanted here.
pub(crate) trait Target: Send {
    /// What is wanted.
    type Wanted: Clone + Send + Sync;

    /// For logs.
    fn what(&self) -> &'static str;

    /// How long after a write of `written` the `wanted` may be written; equal: how long until it is written again, in case that
    /// somebody else changed it.
    fn pace(&self, written: &Self::Wanted, wanted: &Self::Wanted) -> Duration;

    /// Writes it.
    fn write(&mut self, wanted: &Self::Wanted) -> impl Future<Output = kube::Result<()>> + Send;
}

/// Keeps a target as it is wanted, until nobody wants any more.
pub(crate) async fn keep<T: Target>(mut target: T, mut wanted: watch::Receiver<T::Wanted>) {
    let mut written: Option<(T::Wanted, Instant)> = None;
    let mut backoff = Backoff::api();
    let mut not_before = Instant::now();
    let mut complained = false;
    loop {
        let newest = wanted.borrow_and_update().clone();
        let due = written
            .as_ref()
            .map_or(not_before, |(old, at)| *at + target.pace(old, &newest));
        tokio::select! {
            changed = wanted.changed() => match changed {
                Ok(()) => continue,
                Err(_nobody) => return,
            },
            () = tokio::time::sleep_until(due.max(not_before)) => {}
        }
        match target.write(&newest).await {
            Ok(()) => {
                written = Some((newest, Instant::now()));
                backoff.worked();
                complained = false;
            }
            Err(error) => {
                let why = explain(target.what(), &error);
                match complained {
                    true => debug!(%why, "not written"),
                    false => warn!(%why, "not written; it is tried again"),
                }
                complained = true;
                not_before = Instant::now() + backoff.failed();
            }
        }
    }
}
