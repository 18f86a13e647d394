//! The agent's end: a data plane in another process.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use espalier_dataplane_core::{
    Dataplane, Direction, Dump, Error, Event, Hello, Peer, PeerId, Reqid, Sa, Spi,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::dataplane::{self as proto, dataplane_client};
use crate::failure::error_from_status;
use crate::unix::connect_unix;

/// A call that takes longer is given up: the process hangs, and the agent must say so instead of hanging too.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Events of a data plane. Ends with an error when the connection is lost or events were missed: then ask again and dump.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, Error>> + Send>>;

/// [`Dataplane`] over gRPC. Clones share one connection, which is made when it is needed and made again when it is gone.
#[derive(Clone, Debug)]
pub struct DataplaneClient {
    inner: dataplane_client::DataplaneClient<Channel>,
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

    /// What the data plane reports from now on: nothing that happens after this has returned is missed.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub async fn events(&self) -> Result<EventStream, Error> {
        let mut client = self.inner.clone();
        let stream = answer(client.events(proto::EventsRequest {})).await?;
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
        let mut client = self.inner.clone();
        answer(client.hello(proto::HelloRequest {}))
            .await
            .map(Into::into)
    }

    async fn dump(&self) -> Result<Dump, Error> {
        let mut client = self.inner.clone();
        answer(client.dump(proto::DumpRequest {})).await?.try_into()
    }

    async fn put_peer(&self, peer: Peer) -> Result<Reqid, Error> {
        let mut client = self.inner.clone();
        let reply = answer(client.put_peer(proto::Peer::from(peer))).await?;
        Ok(Reqid(reply.reqid))
    }

    async fn remove_peer(&self, peer: PeerId) -> Result<(), Error> {
        let mut client = self.inner.clone();
        done(client.remove_peer(proto::PeerRef { id: peer.0 })).await
    }

    async fn install_sa(&self, sa: Sa) -> Result<(), Error> {
        let mut client = self.inner.clone();
        done(client.install_sa(proto::Sa::from(&sa))).await
    }

    async fn switch_outbound(&self, peer: PeerId, spi: Option<Spi>) -> Result<(), Error> {
        let mut client = self.inner.clone();
        let request = proto::SwitchRequest {
            peer: peer.0,
            spi: spi.map(|spi| spi.0),
        };
        done(client.switch_outbound(request)).await
    }

    async fn remove_sa(&self, direction: Direction, spi: Spi) -> Result<(), Error> {
        let mut client = self.inner.clone();
        let direction = proto::Direction::from(direction).into();
        done(client.remove_sa(proto::SaRef {
            direction,
            spi: spi.0,
        }))
        .await
    }
}

async fn done(
    call: impl Future<Output = Result<Response<proto::Done>, Status>>,
) -> Result<(), Error> {
    answer(call).await.map(|proto::Done {}| ())
}

async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Error> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(error_from_status(&status)),
        Err(_elapsed) => Err(Error::Unreachable(format!(
            "no answer within {} s",
            CALL_TIMEOUT.as_secs()
        ))),
    }
}
