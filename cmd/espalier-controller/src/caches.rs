//! What the leader knows: complete lists of the objects that it looks at, kept by watches.

use std::fmt::Debug;
use std::hash::Hash;
use std::pin::Pin;

use espalier_api::{EncryptionPolicy, MeshNode};
use espalier_kubernetes::explain;
use futures_util::stream::{SelectAll, select_all};
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::api::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Client, Error, Resource};
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::{ca, signer};

/// Kinds of our own, which may not be installed.
const OWN: [&str; 2] = ["encryptionpolicies", "meshnodes"];

/// Something was heard on the watch with this number.
enum Heard {
    /// Its list is complete, perhaps again.
    Complete(usize),
    /// An object is another now.
    Change,
    /// The watch with this number fails.
    Failed(usize, String),
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
    states: Vec<State>,
}

/// Of a list.
#[derive(Clone, Debug)]
enum State {
    /// Asked for.
    Listing,
    /// It cannot be had, and why.
    Failing(String),
    /// It was complete once.
    Complete,
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
            states: vec![State::Listing; feeds.0.len()],
            feeds: select_all(feeds.0),
        }
    }

    /// Waits for the next change. Nothing is lost when this is dropped.
    pub(crate) async fn changed(&mut self) {
        loop {
            match self.feeds.next().await {
                Some(Heard::Change) => return,
                Some(Heard::Complete(number)) => {
                    self.set(number, State::Complete);
                    return;
                }
                Some(Heard::Failed(number, why)) => {
                    // One that was complete stays: what is known goes on to hold.
                    if !matches!(self.states.get(number), Some(State::Complete)) {
                        self.set(number, State::Failing(why));
                        return;
                    }
                }
                Some(Heard::Nothing) => {}
                // Watches never end.
                None => std::future::pending().await,
            }
        }
    }

    fn set(&mut self, number: usize, new: State) {
        if let Some(state) = self.states.get_mut(number) {
            *state = new;
        }
    }

    /// Whether every list was complete once: before, an absent object proves nothing.
    pub(crate) fn are_complete(&self) -> bool {
        self.states
            .iter()
            .all(|state| matches!(state, State::Complete))
    }

    /// Why not, as far as it is known.
    pub(crate) fn why_not(&self) -> Option<String> {
        let whys = self.states.iter().filter_map(|state| match state {
            State::Failing(why) => Some(why.as_str()),
            _ => None,
        });
        let whys: Vec<&str> = whys.collect();
        (!whys.is_empty()).then(|| whys.join("; "))
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
                Heard::Failed(number, why(what, &error))
            }
        });
        self.0.push(Box::pin(heard));
        store
    }
}

/// For people, with a remedy.
fn why(what: &str, error: &watcher::Error) -> String {
    use watcher::Error as E;
    match error {
        E::InitialListFailed(Error::Api(status)) if status.code == 404 && OWN.contains(&what) => {
            format!(
                "CustomResourceDefinition {what}.espalier.dev is not installed: kubectl apply --server-side -f deploy/crds"
            )
        }
        E::InitialListFailed(error) | E::WatchStartFailed(error) => {
            explain(&format!("list {what}"), error)
        }
        other => format!("list {what}: {other}"),
    }
}
