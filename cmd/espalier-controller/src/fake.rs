//! An API server of a few lines for tests: objects by path, versions, conflicts, merge patches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};

/// Shared by all clients of it.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    writes: Vec<String>,
    broken: bool,
    hanging: bool,
    /// Lists of kinds that are not installed.
    missing: BTreeSet<String>,
}

impl Fake {
    pub(crate) fn client(&self) -> kube::Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request| {
            let fake = fake.clone();
            async move { Ok::<_, std::io::Error>(fake.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    pub(crate) fn put(&self, path: &str, object: impl serde::Serialize) {
        self.state()
            .store(path, serde_json::to_value(object).unwrap());
    }

    pub(crate) fn change(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        let mut object = state.objects[path].clone();
        change(&mut object);
        state.store(path, object);
    }

    /// All requests fail from now on.
    pub(crate) fn break_down(&self, broken: bool) {
        self.state().broken = broken;
    }

    /// No request is answered from now on.
    pub(crate) fn hang(&self, hanging: bool) {
        self.state().hanging = hanging;
    }

    /// Whether the kind whose list is at `path` is not installed from now on.
    pub(crate) fn miss(&self, path: &str, missing: bool) {
        let mut state = self.state();
        match missing {
            true => state.missing.insert(path.to_owned()),
            false => state.missing.remove(path),
        };
    }

    /// The objects of a list.
    pub(crate) fn below(&self, path: &str) -> Vec<Value> {
        let below = format!("{path}/");
        let state = self.state();
        let found = state
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(&below));
        found.map(|(_, object)| object.clone()).collect()
    }

    /// Method and path of all that changed something or tried to.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.state().writes.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        // A watch on which nothing happens.
        let watch = request
            .uri()
            .query()
            .is_some_and(|q| q.contains("watch=true"));
        if watch || self.state().hanging {
            std::future::pending::<()>().await;
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (code, value) = self.state().handle(&head.method, head.uri.path(), body);
        Response::builder()
            .status(StatusCode::from_u16(code).unwrap())
            .header("content-type", "application/json")
            .body(Body::from(serde_json::to_vec(&value).unwrap()))
            .unwrap()
    }
}

impl State {
    fn handle(&mut self, method: &Method, path: &str, body: Value) -> (u16, Value) {
        if self.broken {
            return failure(503, "ServiceUnavailable");
        }
        if self.missing.contains(path) {
            return failure(404, "NotFound");
        }
        if method != Method::GET {
            self.writes.push(format!("{method} {path}"));
        }
        let object = ["/status", "/approval"]
            .iter()
            .find_map(|end| path.strip_suffix(end))
            .unwrap_or(path);
        match *method {
            Method::GET => self.read(object),
            Method::POST => self.create(object, body),
            Method::DELETE => match self.objects.remove(object) {
                Some(_) => (200, json!({"kind": "Status", "status": "Success"})),
                None => failure(404, "NotFound"),
            },
            Method::PUT => self.write(object, body),
            _ => {
                let mut merged = self.objects.get(object).cloned().unwrap_or(json!({}));
                merge(&mut merged, body);
                self.write(object, merged)
            }
        }
    }

    fn read(&self, path: &str) -> (u16, Value) {
        if let Some(object) = self.objects.get(path) {
            return (200, object.clone());
        }
        let below = format!("{path}/");
        let is_item = |key: &String| {
            let name = key.strip_prefix(&below);
            name.is_some_and(|name| !name.contains('/'))
        };
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(key, _)| is_item(key))
            .map(|(_, object)| object)
            .collect();
        // Plural words end in s: a list, of nothing perhaps. The names in these tests do not.
        if items.is_empty() && !path.ends_with('s') {
            return failure(404, "NotFound");
        }
        (
            200,
            json!({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}),
        )
    }

    fn create(&mut self, path: &str, body: Value) -> (u16, Value) {
        let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
        if self.objects.contains_key(&path) {
            return failure(409, "AlreadyExists");
        }
        (201, self.store(&path, body))
    }

    fn write(&mut self, path: &str, body: Value) -> (u16, Value) {
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        if let Some(current) = self.objects.get(path) {
            let given = version(&body);
            if !given.is_null() && given != version(current) {
                return failure(409, "Conflict");
            }
        }
        (200, self.store(path, body))
    }

    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }
}

fn failure(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code,
    });
    (code, status)
}

/// RFC 7396.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(&key);
        } else {
            merge(&mut target[&key], value);
        }
    }
}
