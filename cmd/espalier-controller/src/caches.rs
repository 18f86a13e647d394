//! What the leader knows: complete lists of the objects that it looks at, kept by watches.

use std::fmt::Debug;
use std::hash::Hash;
use std::pin::Pin;

use espalier_api::{EncryptionPolicy, MeshNode};
use futures_util::stream::{SelectAll, select_all};
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::api::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::{ca, signer};

/// Something was heard on the watch with this number.
enum Heard {
    /// Its list is complete, perhaps again.
    Complete(usize),
    /// An object is another now.
    Change,
    /// Nothing of use.
    Nothing,
}

type Feed = Pin<Box<dyn Stream<Item = Heard> + Send>>;

/// The lists, and the watches that keep them while [`Caches::changed`] is awaited.
pub(crate) struct Caches {
    pub(crate) nodes: Store<Node>,
    pub(crate) mesh: Store<MeshNode>,
    pub(crate) policies: Store<EncryptionPolicy>,
    pub(crate) csrs: Store<CertificateSigningRequest>,
    pub(crate) secret: Store<Secret>,
    pub(crate) trust: Store<ConfigMap>,
    feeds: SelectAll<Feed>,
    /// By number of the watch.
    complete: Vec<bool>,
}

impl Caches {
    /// `signs`: the CA's Secret and requests are looked at, too.
    pub(crate) fn new(client: &Client, namespace: &str, signs: bool) -> Self {
        let mut feeds = Feeds::default();
        let cluster = watcher::Config::default();
        let named = |name| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let requests = cluster
            .clone()
            .fields(&format!("spec.signerName={}", signer::SIGNER));
        let secrets = Api::namespaced(client.clone(), namespace);
        let maps = Api::namespaced(client.clone(), namespace);
        let all = |signs: bool| signs.then(|| Api::all(client.clone()));
        let nodes = feeds.add("nodes", Some(Api::all(client.clone())), cluster.clone());
        let mesh = feeds.add("meshnodes", Some(Api::all(client.clone())), cluster.clone());
        let policies = feeds.add(
            "encryptionpolicies",
            Some(Api::all(client.clone())),
            cluster,
        );
        let csrs = feeds.add("certificatesigningrequests", all(signs), requests);
        let secret = feeds.add("secrets", signs.then_some(secrets), named(ca::SECRET));
        let trust = feeds.add("configmaps", signs.then_some(maps), named(ca::TRUST));
        Self {
            nodes,
            mesh,
            policies,
            csrs,
            secret,
            trust,
            complete: vec![false; feeds.0.len()],
            feeds: select_all(feeds.0),
        }
    }

    /// Waits for the next change. It is lost nothing when this is dropped.
    pub(crate) async fn changed(&mut self) {
        loop {
            match self.feeds.next().await {
                Some(Heard::Change) => return,
                Some(Heard::Complete(number)) => {
                    if let Some(complete) = self.complete.get_mut(number) {
                        *complete = true;
                    }
                    return;
                }
                Some(Heard::Nothing) => {}
                // Watches never end.
                None => std::future::pending().await,
            }
        }
    }

    /// Whether every list was complete once: before, an absent object proves nothing.
    pub(crate) fn are_complete(&self) -> bool {
        self.complete.iter().all(|complete| *complete)
    }
}

#[derive(Default)]
struct Feeds(Vec<Feed>);

impl Feeds {
    /// An empty store stays empty without `api`.
    fn add<K>(
        &mut self,
        what: &'static str,
        api: Option<Api<K>>,
        config: watcher::Config,
    ) -> Store<K>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        K::DynamicType: Default + Eq + Hash + Clone + Send + Sync + Unpin,
    {
        let (store, writer) = reflector::store();
        let Some(api) = api else { return store };
        let number = self.0.len();
        let events = watch(api, config)
            .default_backoff()
            .modify(|object| object.meta_mut().managed_fields = None);
        let heard = reflector::reflector(writer, events).map(move |event| match event {
            Ok(Event::InitDone) => Heard::Complete(number),
            Ok(Event::Apply(_) | Event::Delete(_)) => Heard::Change,
            Ok(Event::Init | Event::InitApply(_)) => Heard::Nothing,
            Err(error) => {
                warn!(what, %error, "watching failed; it is tried again");
                Heard::Nothing
            }
        });
        self.0.push(Box::pin(heard));
        store
    }
}
