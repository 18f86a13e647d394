//! Events of Kubernetes about objects that have no namespace.

use std::collections::VecDeque;
use std::time::Duration;

use espalier_api::conditions;
use k8s_openapi::api::core::v1::{Event as ApiEvent, EventSource, ObjectReference};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rand::RngExt as _;
use serde_json::json;
use tokio::time::Instant;
use tracing::debug;

/// Where events about objects without a namespace are.
const NAMESPACE: &str = "default";
/// The API takes no longer note.
const NOTE_MAX: usize = 1000;
/// The same again within this time is one event with a higher count.
const SAME: Duration = Duration::from_secs(3600);
/// Events that are remembered for that.
const REMEMBERED: usize = 256;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    api_version: &'static str,
    kind: &'static str,
    name: String,
    uid: Option<String>,
}

impl About {
    /// A Node.
    #[must_use]
    pub fn node(name: &str) -> Self {
        Self {
            api_version: "v1",
            kind: "Node",
            name: name.to_owned(),
            // As kubelet does, and as `kubectl describe node` looks for them.
            uid: Some(name.to_owned()),
        }
    }

    /// An EncryptionPolicy; its UID where it is known: `kubectl describe` shows no others then.
    #[must_use]
    pub fn policy(name: &str, uid: Option<String>) -> Self {
        Self {
            api_version: "espalier.dev/v1alpha1",
            kind: "EncryptionPolicy",
            name: name.to_owned(),
            uid,
        }
    }

    /// A CertificateSigningRequest.
    #[must_use]
    pub fn request(name: &str, uid: Option<String>) -> Self {
        Self {
            api_version: "certificates.k8s.io/v1",
            kind: "CertificateSigningRequest",
            name: name.to_owned(),
            uid,
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// To what.
    pub about: About,
    /// Something is to be mended.
    pub warning: bool,
    /// One word for programs.
    pub reason: String,
    /// For people, at most 1000 bytes.
    pub note: String,
}

impl Event {
    /// Something that is well, or not; a note that is too long is cut.
    #[must_use]
    pub fn new(about: About, warning: bool, reason: &str, note: impl Into<String>) -> Self {
        let mut note = note.into();
        if note.len() > NOTE_MAX {
            let end = (0..=NOTE_MAX).rev().find(|at| note.is_char_boundary(*at));
            note.truncate(end.unwrap_or(0));
        }
        Self {
            about,
            warning,
            reason: reason.to_owned(),
            note,
        }
    }
}

/// Writes events, not more than it may.
pub struct Recorder {
    events: Api<ApiEvent>,
    source: EventSource,
    budget: Budget,
    /// Written ones that are counted when they happen again, the newest last; `None`: each is written anew, which needs no right
    /// but `create`.
    known: Option<VecDeque<Written>>,
}

struct Written {
    event: Event,
    name: String,
    count: i32,
    at: Instant,
}

impl Recorder {
    /// In the name of `component`, on `host` where it is of one. `burst` events at once, then one for each `refill`.
    #[must_use]
    pub fn new(
        client: Client,
        component: &str,
        host: Option<&str>,
        burst: u32,
        refill: Duration,
    ) -> Self {
        Self {
            // Of the core group, not of events.k8s.io: there Kubernetes 1.20 refuses events about objects without a namespace.
            events: Api::namespaced(client, NAMESPACE),
            source: EventSource {
                component: Some(component.to_owned()),
                host: host.map(str::to_owned),
            },
            budget: Budget::new(burst, refill, Instant::now()),
            known: None,
        }
    }

    /// The same event again within an hour is counted, which needs the right `patch`.
    #[must_use]
    pub fn counting(mut self) -> Self {
        self.known = Some(VecDeque::new());
        self
    }

    /// Writes an event. One that cannot be written is not worth a second try.
    pub async fn tell(&mut self, event: Event) {
        let now = Instant::now();
        if !self.budget.take(now) {
            debug!(reason = event.reason, "event left out: there are too many");
            return;
        }
        if self.counted(&event, now).await {
            return;
        }
        let (name, object) = self.object(&event);
        match self.events.create(&PostParams::default(), &object).await {
            Ok(_) => self.remember(event, name, now),
            Err(error) => debug!(%error, "event not written"),
        }
    }

    /// Whether it was told before, and is one more of the same now.
    async fn counted(&mut self, event: &Event, now: Instant) -> bool {
        let Some(known) = &mut self.known else {
            return false;
        };
        known.retain(|written| now.duration_since(written.at) < SAME);
        let Some(written) = known.iter_mut().find(|written| written.event == *event) else {
            return false;
        };
        written.count += 1;
        let patch = json!({"count": written.count, "lastTimestamp": conditions::now()});
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        match self.events.patch(&written.name, &params, &patch).await {
            Ok(_) => true,
            // It was deleted: it is written anew.
            Err(error) => {
                debug!(%error, "event not counted");
                known.retain(|written| written.event != *event);
                false
            }
        }
    }

    fn remember(&mut self, event: Event, name: String, at: Instant) {
        if let Some(known) = &mut self.known {
            if known.len() >= REMEMBERED {
                known.pop_front();
            }
            known.push_back(Written {
                event,
                name,
                count: 1,
                at,
            });
        }
    }

    fn object(&self, event: &Event) -> (String, ApiEvent) {
        let now = conditions::now();
        let About {
            api_version,
            kind,
            name,
            uid,
        } = &event.about;
        let own = format!("{name}.{:016x}", rand::rng().random::<u64>());
        let object = ApiEvent {
            metadata: ObjectMeta {
                name: Some(own.clone()),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some((*api_version).to_owned()),
                kind: Some((*kind).to_owned()),
                name: Some(name.clone()),
                uid: uid.clone(),
                ..ObjectReference::default()
            },
            type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(event.reason.clone()),
            message: Some(event.note.clone()),
            source: Some(self.source.clone()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..ApiEvent::default()
        };
        (own, object)
    }
}

/// A token bucket.
struct Budget {
    burst: u32,
    refill: Duration,
    left: u32,
    since: Instant,
}

impl Budget {
    fn new(burst: u32, refill: Duration, now: Instant) -> Self {
        Self {
            burst,
            refill,
            left: burst,
            since: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        while self.left < self.burst && now >= self.since + self.refill {
            self.left += 1;
            self.since += self.refill;
        }
        if self.left == self.burst {
            self.since = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flapping_node_does_not_flood() {
        let (now, refill) = (Instant::now(), Duration::from_secs(30));
        let mut budget = Budget::new(10, refill, now);
        let taken = (0..100).filter(|_| budget.take(now)).count();
        assert_eq!(taken, 10);
        assert!(budget.take(now + refill));
        assert!(!budget.take(now + refill));
    }

    #[test]
    fn a_note_is_cut_between_letters() {
        let long = Event::new(About::node("a"), true, "Long", "é".repeat(600));
        assert_eq!(long.note.len(), NOTE_MAX);
        let odd = Event::new(
            About::node("a"),
            true,
            "Long",
            "x".to_owned() + &"é".repeat(600),
        );
        assert_eq!(odd.note.len(), NOTE_MAX - 1);
    }
}
