//! One call without a runtime, against the server that everybody else talks to.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use espalier_rpc::agent::cni_server::{Cni, CniServer};
use espalier_rpc::agent::{
    AllocateReply, AllocateRequest, CollectReply, CollectRequest, DetachReply, ReadyReply,
    ReadyRequest, ReleaseReply, ReleaseRequest,
};
use espalier_rpc::{Call, CallError};
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

const PATIENCE: Duration = Duration::from_secs(20);
const COLLECT: &str = "/espalier.agent.v1.Cni/Collect";

/// Gives back what it is given, refuses what has no name, and takes its time for [`Cni::lookup`].
struct Echo;

#[tonic::async_trait]
impl Cni for Echo {
    async fn allocate(
        &self,
        _: Request<AllocateRequest>,
    ) -> Result<Response<AllocateReply>, Status> {
        Ok(Response::new(AllocateReply::default()))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseReply>, Status> {
        match request.into_inner().ifname.as_str() {
            "" => Err(Status::invalid_argument("ifname is empty: 100 % näher")),
            _ => Ok(Response::new(ReleaseReply { released: true })),
        }
    }

    async fn detach(&self, _: Request<ReleaseRequest>) -> Result<Response<DetachReply>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn collect(
        &self,
        request: Request<CollectRequest>,
    ) -> Result<Response<CollectReply>, Status> {
        let released = request.into_inner().keep;
        Ok(Response::new(CollectReply { released }))
    }

    async fn lookup(&self, _: Request<ReleaseRequest>) -> Result<Response<AllocateReply>, Status> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(Response::new(AllocateReply {
            mtu: 1408,
            ..AllocateReply::default()
        }))
    }

    async fn ready(&self, _: Request<ReadyRequest>) -> Result<Response<ReadyReply>, Status> {
        Ok(Response::new(ReadyReply {}))
    }
}

/// Serves [`Echo`] until dropped.
struct Serving {
    path: PathBuf,
    _folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    _stop: oneshot::Sender<()>,
}

fn serving() -> Serving {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let bound = runtime.block_on(espalier_rpc::bind_unix(&path)).unwrap();
    runtime.spawn(async {
        let router = Server::builder().add_service(CniServer::new(Echo));
        espalier_rpc::serve_bound(bound, router, async { drop(stopped.await) }).await
    });
    Serving {
        path,
        _folder: folder,
        runtime,
        _stop: stop,
    }
}

fn keys(count: usize) -> CollectRequest {
    let key = |n| ReleaseRequest {
        container_id: format!("{n:064x}"),
        ifname: "eth0".into(),
    };
    CollectRequest {
        network: "mesh".into(),
        keep: (0..count).map(key).collect(),
    }
}

fn collect(path: &Path, request: &CollectRequest) -> Result<CollectReply, CallError> {
    Call::start(path, COLLECT, request, PATIENCE).wait()
}

fn release(path: &Path, ifname: &str) -> Result<ReleaseReply, CallError> {
    let request = ReleaseRequest {
        container_id: "c0ffee".into(),
        ifname: ifname.into(),
    };
    let method = "/espalier.agent.v1.Cni/Release";
    Call::start(path, method, &request, PATIENCE).wait()
}

/// Some are larger than HTTP/2's first window (65,535 bytes) and than the socket's buffer, in both directions.
#[test]
fn messages_of_every_size_arrive_and_come_back() {
    let serving = serving();
    for count in [0, 1, 250, 1_000, 20_000] {
        let request = keys(count);
        let reply = collect(&serving.path, &request).unwrap();
        assert!(reply.released == request.keep, "{count} keys");
    }
}

#[test]
fn a_refusal_keeps_its_code_and_its_words() {
    let serving = serving();
    assert!(release(&serving.path, "eth0").unwrap().released);
    let Err(CallError::Refused(status)) = release(&serving.path, "") else {
        panic!("expected a refusal");
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "ifname is empty: 100 % näher");
    let unknown = Call::start(
        &serving.path,
        "/espalier.agent.v1.Cni/Nothing",
        &keys(0),
        PATIENCE,
    );
    let refused = unknown.wait::<CollectReply>().unwrap_err();
    assert!(
        matches!(&refused, CallError::Refused(status) if status.code() == Code::Unimplemented),
        "{refused}"
    );
}

#[test]
fn a_call_goes_on_while_its_caller_does_something_else() {
    let serving = serving();
    let lookup = "/espalier.agent.v1.Cni/Lookup";
    let call = Call::start(&serving.path, lookup, &ReleaseRequest::default(), PATIENCE);
    assert!(!call.is_answered());
    assert_eq!(call.wait::<AllocateReply>().unwrap().mtu, 1408);
    // One that is given up harms nobody.
    drop(Call::start(
        &serving.path,
        lookup,
        &ReleaseRequest::default(),
        PATIENCE,
    ));
    assert!(release(&serving.path, "eth0").unwrap().released);
}

#[test]
fn nobody_there_is_certain_at_once_and_names_the_remedy() {
    let serving = serving();
    let missing = serving.path.with_file_name("nobody.sock");
    let call = Call::start(&missing, COLLECT, &keys(1), PATIENCE);
    assert!(call.is_answered());
    let text = call.wait::<CollectReply>().unwrap_err().to_string();
    assert!(text.contains("nobody.sock"), "{text}");
    let long = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
    let text = collect(&long, &keys(1)).unwrap_err().to_string();
    assert!(text.contains("125 bytes"), "{text}");
}

#[test]
fn who_hangs_up_or_talks_nonsense_has_lost_the_call() {
    let folder = tempfile::tempdir().unwrap();
    let all: [&'static [u8]; 3] = [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0; 64]];
    for (n, words) in all.into_iter().cycle().take(600).enumerate() {
        let path = folder.path().join(format!("{n}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        let answers = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // It depends on how far the call has come by then.
            stream.read_exact(&mut vec![0; n % 70]).unwrap();
            let _ = stream.write_all(words);
        });
        let error = collect(&path, &keys(1)).unwrap_err();
        assert!(matches!(error, CallError::Lost(_)), "{error}");
        answers.join().unwrap();
    }
}

#[test]
fn who_says_nothing_is_not_waited_for_longer_than_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let call = Call::start(&path, COLLECT, &keys(1), Duration::from_millis(30));
    let error = call.wait::<CollectReply>().unwrap_err();
    assert!(matches!(error, CallError::Silent), "{error}");
}

/// The other client and this one speak to the same server.
#[test]
fn both_clients_get_the_same_answers() {
    let serving = serving();
    let request = keys(300);
    let other = serving.runtime.block_on(async {
        let channel = espalier_rpc::connect_unix(&serving.path).unwrap();
        let mut client = espalier_rpc::agent::cni_client::CniClient::new(channel);
        client.collect(request.clone()).await.unwrap().into_inner()
    });
    assert!(other == collect(&serving.path, &request).unwrap());
}
