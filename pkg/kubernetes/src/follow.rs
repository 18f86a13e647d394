//! One kind, followed for ever: list, watch, and again from the start where that is needed.

use std::fmt::Debug;
use std::pin::pin;

use futures_util::StreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Error, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::debug;

use crate::backoff::Backoff;
use crate::client::explain;
use crate::feed::{Kind, Told, Watched};
use crate::source::Timing;

type Sender = mpsc::Sender<(Kind, Told)>;

/// Follows a kind until nobody listens.
pub(crate) async fn follow(client: Client, kind: Kind, told: Sender, timing: Timing) {
    match kind.resource() {
        None => {
            let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client);
            follow_api(nodes, kind, told, timing).await;
        }
        Some(resource) => {
            let objects: Api<kube::api::DynamicObject> = Api::all_with(client, &resource);
            follow_api(objects, kind, told, timing).await;
        }
    }
}

async fn follow_api<K>(api: Api<K>, kind: Kind, told: Sender, timing: Timing)
where
    K: Watched + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut follower = Follower {
        kind,
        told,
        listing: None,
        failing: false,
        backoff: timing.backoff.clone(),
        timing,
    };
    // Each turn lists anew.
    while follower.watch(&api).await {}
}

struct Follower<K> {
    kind: Kind,
    told: Sender,
    /// What was listed up to now; nothing is said of it before it is complete.
    listing: Option<Vec<K>>,
    failing: bool,
    backoff: Backoff,
    timing: Timing,
}

impl<K> Follower<K>
where
    K: Watched + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Whether to begin anew; else nobody listens any more.
    async fn watch(&mut self, api: &Api<K>) -> bool {
        self.listing = None;
        let mut events = pin!(watcher(api.clone(), watcher::Config::default()));
        loop {
            let event = tokio::select! {
                () = self.told.closed() => return false,
                event = events.next() => event,
                () = tokio::time::sleep(self.timing.works_after), if self.failing && self.listing.is_none() => {
                    self.works().await;
                    continue;
                }
            };
            match event {
                None => return true,
                Some(Ok(event)) => self.take(event).await,
                Some(Err(error)) => {
                    self.failed(&error).await;
                    if must_list(&error) {
                        return true;
                    }
                }
            }
        }
    }

    async fn take(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.listing = Some(Vec::new()),
            Event::InitApply(object) => self.listing.get_or_insert_default().push(object),
            Event::InitDone => {
                self.works().await;
                let listed = self.listing.take().unwrap_or_default().into_iter();
                let named = listed.filter_map(|o| Some((o.name_any(), o.read(self.kind)?)));
                self.tell(Told::All(named.collect())).await;
            }
            Event::Apply(object) => {
                self.works().await;
                if let Some(read) = object.read(self.kind) {
                    self.tell(Told::One(read)).await;
                }
            }
            Event::Delete(object) => {
                self.works().await;
                self.tell(Told::Gone(object.name_any())).await;
            }
        }
    }

    /// Says so, and waits.
    async fn failed(&mut self, error: &watcher::Error) {
        debug!(kind = self.kind.word(), %error, "watch failed");
        // A list that broke off is begun again.
        self.listing = None;
        // A server that ends a watch in the middle of it is about to restart, or just did.
        if !matches!(error, watcher::Error::WatchFailed(_)) {
            self.failing = true;
            self.tell(Told::Failed(why(self.kind, error))).await;
        }
        tokio::time::sleep(self.backoff.failed()).await;
    }

    async fn works(&mut self) {
        self.backoff.worked();
        if std::mem::take(&mut self.failing) {
            self.tell(Told::Works).await;
        }
    }

    async fn tell(&self, told: Told) {
        // Nobody listens any more: noticed above.
        let _ = self.told.send((self.kind, told)).await;
    }
}

/// Where the server refuses to go on from what was seen last (410 Gone, and others after its store was restored), all is read
/// again. The watcher does so only when the refusal comes within a watch.
fn must_list(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(Error::Api(status)) if status.code != 403 && status.code != 429)
}

fn why(kind: Kind, error: &watcher::Error) -> String {
    let plural = kind.plural();
    match error {
        watcher::Error::InitialListFailed(Error::Api(status)) if status.code == 404 => format!(
            "CustomResourceDefinition {plural} is not installed: apply deploy/crds of Espalier's release"
        ),
        watcher::Error::InitialListFailed(error) => explain(&format!("list {plural}"), error),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            explain(&format!("watch {plural}"), error)
        }
        watcher::Error::WatchError(status) => {
            format!(
                "watch {plural}: the API server says {} ({})",
                status.message, status.code
            )
        }
        watcher::Error::NoResourceVersion => format!("watch {plural}: {error}"),
    }
}
