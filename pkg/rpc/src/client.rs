//! The agent's end: a data plane in another process.

use std::error::Error as _;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use espalier_dataplane_core::{
    Dataplane, Direction, Dump, Error, Event, Hello, Peer, PeerId, Reqid, Sa, Spi,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::dataplane::{self as proto, dataplane_client};
use crate::failure::error_from_status;
use crate::unix::connect_unix;

/// A call that takes longer is given up: the process hangs, and the agent must say so instead of hanging too.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a data plane may look at a program that is to replace it.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a data plane still runs the program that it ran before, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// It says why.
    #[error("the data plane goes on as it was: {0}")]
    Refused(String),
    /// It is of a release that knows nothing of this.
    #[error(
        "the running data plane {0} cannot be replaced in place; delete its pod, or start it again"
    )]
    Unknown(String),
    /// It answers as something else.
    #[error("the data plane runs {got:?} instead of {expected}; its log says why")]
    Other {
        /// What was asked for.
        expected: String,
        /// What answers.
        got: String,
    },
    /// It does not answer.
    #[error(transparent)]
    Gone(#[from] Error),
}

/// Events of a data plane. Ends with an error when the connection is lost or events were missed: then ask again and dump.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, Error>> + Send>>;

type Inner = dataplane_client::DataplaneClient<Channel>;

/// [`Dataplane`] over gRPC. Clones share one connection, which is made when it is needed and made again when it is gone.
#[derive(Clone, Debug)]
pub struct DataplaneClient {
    inner: Inner,
}

impl DataplaneClient {
    /// A client of the data plane that serves `socket`, which need not be there yet.
    ///
    /// # Errors
    /// [`crate::Error::PathTooLong`].
    pub fn new(socket: impl Into<PathBuf>) -> Result<Self, crate::Error> {
        Ok(Self {
            inner: dataplane_client::DataplaneClient::new(connect_unix(socket)?),
        })
    }

    /// Has the running program replaced by that of this SHA-256 (hex), which must be in its folder of binaries. Who answers then.
    ///
    /// # Errors
    /// [`UpgradeError`].
    pub async fn upgrade(&self, sha256: &str) -> Result<Hello, UpgradeError> {
        let before = self.hello().await?;
        if before.digest == sha256 {
            return Ok(before);
        }
        let mut client = self.inner.clone();
        let request = proto::UpgradeRequest {
            sha256: sha256.to_owned(),
        };
        match tokio::time::timeout(UPGRADE_TIMEOUT, client.upgrade(request)).await {
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                return Err(UpgradeError::Unknown(before.version));
            }
            Ok(Err(status)) if !was_cut(&status) => {
                return Err(UpgradeError::Refused(status.message().to_owned()));
            }
            // The connection ends with the old program; whoever answers now says what it is.
            _ => {}
        }
        let after = self.hello().await?;
        if after.digest == sha256 {
            return Ok(after);
        }
        Err(UpgradeError::Other {
            expected: sha256.to_owned(),
            got: after.digest,
        })
    }

    /// Asks, and once more when the connection ended before the answer: a data plane that is replaced in place takes up the next
    /// one at once, and all operations may be repeated.
    async fn ask<M: Clone, T, C>(
        &self,
        request: M,
        call: impl Fn(Inner, M) -> C,
    ) -> Result<T, Error>
    where
        C: Future<Output = Result<Response<T>, Status>>,
    {
        match answer(call(self.inner.clone(), request.clone())).await {
            Err(status) if was_cut(&status) => answer(call(self.inner.clone(), request)).await,
            answered => answered,
        }
        .map_err(|status| error_from_status(&status))
    }

    /// What the data plane reports from now on: nothing that happens after this has returned is missed.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub async fn events(&self) -> Result<EventStream, Error> {
        let call = |mut client: Inner, request| async move { client.events(request).await };
        let stream = self.ask(proto::EventsRequest {}, call).await?;
        Ok(Box::pin(stream.filter_map(|message| match message {
            // A kind that this version does not know.
            Ok(proto::Event { kind: None }) => None,
            Ok(event) => Some(event.try_into()),
            Err(status) => Some(Err(error_from_status(&status))),
        })))
    }
}

impl Dataplane for DataplaneClient {
    async fn hello(&self) -> Result<Hello, Error> {
        let call = |mut client: Inner, request| async move { client.hello(request).await };
        self.ask(proto::HelloRequest {}, call).await.map(Into::into)
    }

    async fn dump(&self) -> Result<Dump, Error> {
        let call = |mut client: Inner, request| async move { client.dump(request).await };
        self.ask(proto::DumpRequest {}, call).await?.try_into()
    }

    async fn put_peer(&self, peer: Peer) -> Result<Reqid, Error> {
        let call = |mut client: Inner, request| async move { client.put_peer(request).await };
        let reply = self.ask(proto::Peer::from(peer), call).await?;
        Ok(Reqid(reply.reqid))
    }

    async fn remove_peer(&self, peer: PeerId) -> Result<(), Error> {
        let call = |mut client: Inner, request| async move { client.remove_peer(request).await };
        self.ask(proto::PeerRef { id: peer.0 }, call)
            .await
            .map(done)
    }

    async fn install_sa(&self, sa: Sa) -> Result<(), Error> {
        let call = |mut client: Inner, request| async move { client.install_sa(request).await };
        self.ask(proto::Sa::from(&sa), call).await.map(done)
    }

    async fn switch_outbound(&self, peer: PeerId, spi: Option<Spi>) -> Result<(), Error> {
        let call =
            |mut client: Inner, request| async move { client.switch_outbound(request).await };
        let request = proto::SwitchRequest {
            peer: peer.0,
            spi: spi.map(|spi| spi.0),
        };
        self.ask(request, call).await.map(done)
    }

    async fn remove_sa(&self, direction: Direction, spi: Spi) -> Result<(), Error> {
        let call = |mut client: Inner, request| async move { client.remove_sa(request).await };
        let request = proto::SaRef {
            direction: proto::Direction::from(direction).into(),
            spi: spi.0,
        };
        self.ask(request, call).await.map(done)
    }
}

fn done(proto::Done {}: proto::Done) {}

async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_elapsed) => {
            let why = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
            Err(Status::unavailable(why))
        }
    }
}

/// Made here and not by the data plane: the transport failed.
fn was_cut(status: &Status) -> bool {
    status.source().is_some()
}
