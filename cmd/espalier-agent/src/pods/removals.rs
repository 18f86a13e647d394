//! Interfaces that are to go: whatever is asked for while the kernel is at one removal goes together in the next.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use espalier_ipam::Key;
use tokio::sync::{Mutex as Turn, MutexGuard, oneshot};
use tonic::Status;

use super::Pods;

/// Whether there was an interface, and whether there was a lease.
type Outcome = Result<(bool, bool), Status>;

struct Waiting {
    key: Key,
    report: oneshot::Sender<Outcome>,
}

/// Who waits, and whose turn it is.
#[derive(Default)]
pub(super) struct Removals {
    waiting: Mutex<Vec<Waiting>>,
    turn: Turn<()>,
}

impl Removals {
    /// Removes the interface, then gives its addresses back.
    pub(super) async fn remove(&self, pods: &Pods, key: Key) -> Outcome {
        let (report, mut outcome) = oneshot::channel();
        self.lock().push(Waiting { key, report });
        let turn = tokio::select! {
            biased;
            done = &mut outcome => return done.unwrap_or_else(|_| Err(lost())),
            turn = self.take_turn() => turn,
        };
        let mut batch = std::mem::take(&mut *self.lock());
        // Who does not wait any more may have gone to make the interface anew.
        batch.retain(|waiting| !waiting.report.is_closed());
        if !batch.is_empty() {
            tokio::task::block_in_place(|| remove_all(pods, batch));
        }
        drop(turn);
        outcome.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Whoever has it removes what all are waiting for.
    pub(super) async fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost() -> Status {
    Status::internal("the removal of the interface broke off; the agent's log says why")
}

fn remove_all(pods: &Pods, batch: Vec<Waiting>) {
    let names: Vec<_> = batch
        .iter()
        .map(|waiting| {
            (
                waiting.key.container_id.as_str(),
                waiting.key.ifname.as_str(),
            )
        })
        .collect();
    let stays = |error: &espalier_podnet::Error| Status::failed_precondition(error.to_string());
    let found = match espalier_podnet::detach_all(&names, &in_background) {
        Ok(outcomes) => outcomes
            .into_iter()
            .map(|one| one.map_err(|e| stays(&e)))
            .collect(),
        Err(error) => vec![Err(stays(&error)); names.len()],
    };
    for (waiting, found) in batch.into_iter().zip(found) {
        let outcome = found.and_then(|found| Ok((found, release(pods, &waiting.key)?)));
        // Who has left meanwhile asks again.
        let _ = waiting.report.send(outcome);
    }
}

/// A thread of the runtime's: those stay for the next removal, and have their memory already.
fn in_background(work: espalier_podnet::Work) {
    tokio::task::spawn_blocking(work);
}

fn release(pods: &Pods, key: &Key) -> Result<bool, Status> {
    let released = pods.with_store(|store| store.release(key, SystemTime::now()));
    released.map(|lease| lease.is_some())
}
