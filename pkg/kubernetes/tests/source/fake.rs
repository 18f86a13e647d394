//! An API server that lists, watches and can be away.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const POLICIES: &str = "/apis/espalier.dev/v1alpha1/encryptionpolicies";
pub(crate) const MESH_NODES: &str = "/apis/espalier.dev/v1alpha1/meshnodes";
pub(crate) const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
pub(crate) const EVENTS: &str = "/api/v1/namespaces/default/events";
pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/espalier-system/configmaps";
pub(crate) const EXTERNALS: &str = "/apis/espalier.dev/v1alpha1/externalpeers";

type Answer = BoxBody<Bytes, Infallible>;

#[derive(Default)]
struct State {
    /// By path; a path that is not there is answered with 404.
    objects: HashMap<String, BTreeMap<String, Value>>,
    version: u64,
    watches: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    away: bool,
    /// Answers to watches that begin.
    refuse_watch: Option<u16>,
    requests: Vec<String>,
}

#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<State>>);

impl Fake {
    pub(crate) fn new() -> Self {
        let fake = Self::default();
        for path in [
            NODES,
            POLICIES,
            EXTERNALS,
            MESH_NODES,
            CSRS,
            EVENTS,
            CONFIG_MAPS,
        ] {
            fake.serve(path);
        }
        fake
    }

    /// This kind is known from now on.
    pub(crate) fn serve(&self, path: &str) {
        self.state(|state| {
            state.objects.entry(path.to_owned()).or_default();
        });
    }

    pub(crate) fn unserve(&self, path: &str) {
        self.state(|state| drop(state.objects.remove(path)));
    }

    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    pub(crate) fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                fake.answer(&head, body)
            }
        });
        Client::new(service, "default")
    }

    /// Refuses all requests and breaks all watches, or comes back.
    pub(crate) fn away(&self, away: bool) {
        self.state(|state| {
            state.away = away;
            state.watches.clear();
        });
    }

    /// Breaks all watches, and refuses new ones with this code until there was a list.
    pub(crate) fn forget_history(&self, code: u16) {
        self.state(|state| {
            state.refuse_watch = Some(code);
            state.watches.clear();
        });
    }

    /// What was listed (not watched), by path.
    pub(crate) fn lists(&self, path: &str) -> usize {
        self.state(|state| {
            state
                .requests
                .iter()
                .filter(|request| *request == path)
                .count()
        })
    }

    pub(crate) fn watches(&self) -> usize {
        self.state(|state| {
            state.watches.retain(|(_, watch)| !watch.is_closed());
            state.watches.len()
        })
    }

    pub(crate) fn put(&self, path: &str, mut object: Value) {
        self.state(|state| {
            state.version += 1;
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            let objects = state.objects.get_mut(path).unwrap();
            let type_ = match objects.insert(name, object.clone()) {
                Some(_) => "MODIFIED",
                None => "ADDED",
            };
            state.send(path, type_, &object);
        });
    }

    pub(crate) fn delete(&self, path: &str, name: &str) {
        self.state(|state| {
            state.version += 1;
            let mut object = state.objects.get_mut(path).unwrap().remove(name).unwrap();
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            state.send(path, "DELETED", &object);
        });
    }

    /// Says to all watches that they are too old.
    pub(crate) fn expire(&self) {
        let gone = status(410, "too old resource version");
        self.state(|state| {
            for (path, _) in state.watches.clone() {
                state.send(&path, "ERROR", &gone);
            }
            state.watches.clear();
        });
    }

    /// The object as it is now.
    pub(crate) fn get(&self, path: &str, name: &str) -> Option<Value> {
        self.state(|state| state.objects.get(path)?.get(name).cloned())
    }

    /// Names of all objects.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        self.state(|state| state.objects.get(path).unwrap().keys().cloned().collect())
    }

    fn answer(&self, request: &Parts, body: Value) -> Result<Response<Answer>, std::io::Error> {
        let path = request.uri.path().to_owned();
        let query = request.uri.query().unwrap_or_default();
        if self.state(|state| state.away) {
            return Err(std::io::Error::other("connection refused"));
        }
        match request.method.as_str() {
            "POST" => return Ok(self.create(&path, body)),
            "PATCH" => return Ok(self.patch(&path, &body)),
            _ => {}
        }
        if let Some((list, name)) = path.rsplit_once('/').filter(|(list, _)| self.known(list)) {
            let found = self.get(list, name);
            return Ok(found.map_or_else(not_found, |object| response(200, &object)));
        }
        self.state(|state| {
            if query.contains("watch=true") {
                return Ok(state.watch(&path));
            }
            state.requests.push(path.clone());
            state.refuse_watch = None;
            let Some(objects) = state.objects.get(&path) else {
                return Ok(not_found());
            };
            let items: Vec<&Value> = objects.values().collect();
            let list = json!({
                "apiVersion": "v1", "kind": "List",
                "metadata": {"resourceVersion": state.version.to_string()}, "items": items,
            });
            Ok(response(200, &list))
        })
    }
}

impl Fake {
    fn known(&self, list: &str) -> bool {
        self.state(|state| state.objects.contains_key(list))
    }

    fn create(&self, path: &str, mut object: Value) -> Response<Answer> {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if self.get(path, &name).is_some() {
            return response(409, &status(409, "already exists"));
        }
        object["metadata"]["uid"] = json!(format!("uid-{name}"));
        self.put(path, object.clone());
        response(201, &object)
    }

    fn patch(&self, path: &str, patch: &Value) -> Response<Answer> {
        let (whole, of_status) = match path.strip_suffix("/status") {
            Some(whole) => (whole, true),
            None => (path, false),
        };
        let (list, name) = whole.rsplit_once('/').unwrap();
        let old = self.get(list, name);
        if of_status && old.is_none() {
            return not_found();
        }
        let mut object = old.unwrap_or_default();
        merge(&mut object, patch);
        self.put(list, object.clone());
        response(200, &object)
    }
}

fn merge(into: &mut Value, patch: &Value) {
    match (into.as_object_mut(), patch.as_object()) {
        (Some(into), Some(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        _ => *into = patch.clone(),
    }
}

fn not_found() -> Response<Answer> {
    response(
        404,
        &status(404, "the server could not find the requested resource"),
    )
}

impl State {
    fn send(&self, path: &str, type_: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": type_, "object": object}));
        for (_, watch) in self.watches.iter().filter(|(watched, _)| watched == path) {
            let _ = watch.send(line.clone().into());
        }
    }

    fn watch(&mut self, path: &str) -> Response<Answer> {
        if let Some(code) = self.refuse_watch {
            return response(code, &status(code, "too old resource version"));
        }
        let (send, lines) = mpsc::unbounded_channel();
        self.watches.push((path.to_owned(), send));
        let frames =
            UnboundedReceiverStream::new(lines).map(|line| Ok::<_, Infallible>(Frame::data(line)));
        Response::new(http_body_util::BodyExt::boxed(StreamBody::new(frames)))
    }
}

fn response(code: u16, body: &Value) -> Response<Answer> {
    let body = Full::new(Bytes::from(body.to_string()));
    let mut response = Response::new(body.boxed());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        404 => "NotFound",
        409 => "AlreadyExists",
        _ => "Expired",
    };
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}
