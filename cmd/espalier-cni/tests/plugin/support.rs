//! A node with one pod, the real binary, and an agent of which only the address book is real.
//!
//! ```text
//!  sandbox (the node)                                   │ Netns "pod"
//!  lo 10.244.1.1/32 ── esp… ────────────────────────────┼──── eth0
//!  espalier-cni ──/run/test/agent.sock──▶ FakeAgent     │
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use espalier_ipam::{Consumed, Key, Owner, Store};
use espalier_netlink::{Link, Route, RouteEntry, RouteFilter, Socket};
use espalier_rpc::agent::cni_server::{Cni, CniServer};
use espalier_rpc::agent::{
    AllocateReply, AllocateRequest, CollectReply, CollectRequest, DetachReply, PodAddress,
    ReadyReply, ReadyRequest, ReleaseReply, ReleaseRequest,
};
use espalier_testnet::Netns;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

pub(crate) const MTU: u32 = 1408;
/// `RTPROT_KERNEL`.
const KERNEL: u8 = 2;
pub(crate) const CONTAINER: &str =
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub(crate) struct TestNode {
    pub(crate) pod: Netns,
    pub(crate) state: PathBuf,
    pub(crate) socket: PathBuf,
}

impl TestNode {
    pub(crate) fn new() -> Self {
        espalier_testnet::address("lo", "10.244.1.1".parse().unwrap(), 32).unwrap();
        let folder = Path::new("/run/test");
        std::fs::create_dir(folder).unwrap();
        let (state, socket) = (folder.join("state"), folder.join("agent.sock"));
        Self {
            pod: Netns::new("pod").unwrap(),
            state,
            socket,
        }
    }

    pub(crate) fn config(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "mesh", "type": "espalier-cni",
            "socket": self.socket, "stateDir": self.state,
            "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": [{"HostPort": 80, "ContainerPort": 8080}]},
        })
    }

    pub(crate) fn call(&self, verb: &str, config: &Value) -> Called {
        self.call_with(verb, config, &[], Stdio::piped())
    }

    /// `variables` come after the usual ones; an empty value removes one.
    pub(crate) fn call_with(
        &self,
        verb: &str,
        config: &Value,
        variables: &[(&str, &str)],
        stdout: Stdio,
    ) -> Called {
        let mut command = self.command(verb);
        command.envs(variables.iter().copied());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(config.to_string().as_bytes())
            .unwrap();
        Called(child.wait_with_output().unwrap())
    }

    /// The plugin, with a verb and the usual variables.
    pub(crate) fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_espalier-cni"));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", CONTAINER)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", self.pod.path())
            .env(
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
            )
            .env_remove("ESPALIER_LOG");
        command
    }

    pub(crate) fn add(&self, version: &str) -> Value {
        self.call("ADD", &self.config(version)).succeeded()
    }

    /// Everything in both namespaces that an ADD could leave. Routes that the kernel makes by itself go with their device
    /// and come a moment after it.
    pub(crate) fn traces(&self) -> Traces {
        let look = || {
            let mut socket = Socket::<Route>::open().unwrap();
            let mut routes = socket.routes(RouteFilter::default()).unwrap();
            routes.retain(|route| route.protocol != KERNEL);
            (socket.links().unwrap(), routes)
        };
        Traces {
            host: look(),
            pod: self.pod.run(look).unwrap(),
        }
    }

    pub(crate) fn queued(&self) -> usize {
        espalier_ipam::pending::list(&self.state).len()
    }

    /// One byte from the pod to its gateway and back.
    pub(crate) fn assert_pod_reaches_gateway(&self) {
        let listener = TcpListener::bind("10.244.1.1:0").unwrap();
        let target: SocketAddr = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(10)).unwrap();
        let mut inside = self.pod.run(connect).unwrap();
        let (mut outside, _) = listener.accept().unwrap();
        let mut byte = [0];
        inside.write_all(&[7]).unwrap();
        outside.read_exact(&mut byte).unwrap();
        outside.write_all(&[byte[0] + 1]).unwrap();
        inside.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [8]);
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct Traces {
    pub(crate) host: (Vec<Link>, Vec<RouteEntry>),
    pub(crate) pod: (Vec<Link>, Vec<RouteEntry>),
}

pub(crate) struct Called(pub(crate) Output);

impl Called {
    /// The object on stdout; nothing on stdout is `Null`. Nothing may be on stderr.
    pub(crate) fn succeeded(self) -> Value {
        let (out, err) = (text(&self.0.stdout), text(&self.0.stderr));
        assert!(self.0.status.success(), "{}: {out}{err}", self.0.status);
        assert_eq!(err, "", "stderr");
        if out.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&out).unwrap()
        }
    }

    /// The error object on stdout, checked for its form.
    pub(crate) fn failed(self, code: u32) -> String {
        let (out, err) = (text(&self.0.stdout), text(&self.0.stderr));
        assert_eq!(self.0.status.code(), Some(1), "{out}{err}");
        assert_eq!(err, "", "stderr");
        let error: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(error["code"], code, "{error}");
        assert!(
            !error["msg"].as_str().unwrap().is_empty() && error["cniVersion"].is_string(),
            "{error}"
        );
        format!(
            "{}: {}",
            error["msg"].as_str().unwrap(),
            error["details"].as_str().unwrap_or_default()
        )
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A device on which every write fails: a runtime that went away.
pub(crate) fn broken_stdout() -> Stdio {
    File::options()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into()
}

/// How the agent misbehaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mood {
    /// Not ready, with this reason.
    pub(crate) not_ready: Option<&'static str>,
    /// Has the lease written, and fails.
    pub(crate) fails_after_allocate: bool,
    /// Cannot release.
    pub(crate) fails_release: bool,
    /// The gateway that it tells is none.
    pub(crate) nonsense: bool,
    /// Of a release that knows neither Detach nor Collect.
    pub(crate) old: bool,
}

pub(crate) struct FakeAgent {
    store: Arc<Mutex<Store>>,
    mood: Arc<Mutex<Mood>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeAgent {
    /// Returns when the socket is there. `cidrs` are separated by commas.
    pub(crate) fn start(node: &TestNode, cidrs: &str) -> Self {
        let cidrs: Vec<_> = cidrs.split(',').map(|cidr| cidr.parse().unwrap()).collect();
        let store = Store::open(&node.state.join("leases"), &cidrs, Duration::ZERO).unwrap();
        let (store, mood) = (
            Arc::new(Mutex::new(store)),
            Arc::new(Mutex::new(Mood::default())),
        );
        let service = CniServer::new(Service {
            store: store.clone(),
            mood: mood.clone(),
        });
        let (stop, stopped) = oneshot::channel();
        let (socket, path) = (node.socket.clone(), node.socket.clone());
        let serve = async move {
            let router = tonic::transport::Server::builder().add_service(service);
            espalier_rpc::serve_unix(socket, router, async { drop(stopped.await) })
                .await
                .unwrap();
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let thread = std::thread::spawn(move || runtime.block_on(serve));
        while !path.exists() {
            assert!(!thread.is_finished());
            std::thread::yield_now();
        }
        Self {
            store,
            mood,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(crate) fn leases(&self) -> usize {
        self.store.lock().unwrap().leases().len()
    }

    pub(crate) fn owner(&self) -> Owner {
        self.store
            .lock()
            .unwrap()
            .get(&Key::new(CONTAINER, "eth0"))
            .unwrap()
            .owner
            .clone()
    }

    pub(crate) fn consume(&self, node: &TestNode) -> Consumed {
        self.store
            .lock()
            .unwrap()
            .consume_pending(&node.state, SystemTime::now())
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Service {
    store: Arc<Mutex<Store>>,
    mood: Arc<Mutex<Mood>>,
}

impl Service {
    fn mood(&self) -> Mood {
        self.mood.lock().unwrap().clone()
    }

    fn reply(&self, lease: &espalier_ipam::Lease) -> Response<AllocateReply> {
        let gateway = |a: &espalier_ipam::LeasedAddress| match self.mood().nonsense {
            true => "nowhere".to_owned(),
            false => a.gateway.to_string(),
        };
        let address = |a: &espalier_ipam::LeasedAddress| PodAddress {
            address: a.host_net().to_string(),
            gateway: gateway(a),
        };
        Response::new(AllocateReply {
            addresses: lease.addresses.iter().map(address).collect(),
            mtu: MTU,
        })
    }
}

#[tonic::async_trait]
impl Cni for Service {
    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateReply>, Status> {
        if let Some(reason) = self.mood().not_ready {
            return Err(Status::failed_precondition(reason));
        }
        let r = request.into_inner();
        let owner = Owner {
            netns: r.netns,
            pod_namespace: r.pod_namespace,
            pod_name: r.pod_name,
            network: r.network,
        };
        let key = Key::new(r.container_id, r.ifname);
        let lease = self
            .store
            .lock()
            .unwrap()
            .allocate(&key, owner, SystemTime::now());
        let lease = lease.map_err(|e| Status::resource_exhausted(e.to_string()))?;
        if self.mood().fails_after_allocate {
            return Err(Status::unavailable("the agent is stopping"));
        }
        Ok(self.reply(&lease))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseReply>, Status> {
        if self.mood().fails_release {
            return Err(Status::internal("the disk is full"));
        }
        let r = request.into_inner();
        let released = self
            .store
            .lock()
            .unwrap()
            .release(&Key::new(r.container_id, r.ifname), SystemTime::now());
        Ok(Response::new(ReleaseReply {
            released: released.unwrap().is_some(),
        }))
    }

    async fn detach(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<DetachReply>, Status> {
        if self.mood().old {
            return Err(Status::unimplemented("no such call"));
        }
        let r = request.get_ref();
        let found = espalier_podnet::detach(&r.container_id, &r.ifname)
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        let released = self.release(request).await?.into_inner().released;
        Ok(Response::new(DetachReply { found, released }))
    }

    async fn collect(
        &self,
        request: Request<CollectRequest>,
    ) -> Result<Response<CollectReply>, Status> {
        if self.mood().old {
            return Err(Status::unimplemented("no such call"));
        }
        let CollectRequest { network, keep } = request.into_inner();
        let keep = keep.into_iter().map(|r| Key::new(r.container_id, r.ifname));
        let mut store = self.store.lock().unwrap();
        store
            .collect(&network, &keep.collect(), SystemTime::now())
            .unwrap();
        Ok(Response::new(CollectReply::default()))
    }

    async fn lookup(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<AllocateReply>, Status> {
        let r = request.into_inner();
        let store = self.store.lock().unwrap();
        let lease = store.get(&Key::new(r.container_id, r.ifname));
        Ok(self.reply(lease.ok_or_else(|| Status::not_found("no lease"))?))
    }

    async fn ready(&self, _: Request<ReadyRequest>) -> Result<Response<ReadyReply>, Status> {
        if let Some(reason) = self.mood().not_ready {
            return Err(Status::failed_precondition(reason));
        }
        let room = self.store.lock().unwrap().room(SystemTime::now());
        room.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        Ok(Response::new(ReadyReply {}))
    }
}
