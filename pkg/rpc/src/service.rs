//! The data plane's end: serves any [`Dataplane`] of this process to the agent.

use std::pin::Pin;
use std::sync::Arc;

use espalier_dataplane_core::{Dataplane, Error, Event};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::dataplane::dataplane_server::{self, DataplaneServer};
use crate::dataplane::{self as proto};
use crate::failure::status_from_error;

/// Replaces the program that serves.
#[tonic::async_trait]
pub trait Upgrader: Send + Sync + 'static {
    /// By the one with this SHA-256, in hex. Returns when it is that one already, or with the reason why it goes on as it was:
    /// a program that is replaced does not return.
    async fn upgrade(&self, sha256: &str) -> Result<(), String>;
}

/// Serves `D` and what it reports.
pub struct DataplaneService<D> {
    dataplane: Arc<D>,
    events: broadcast::Sender<Event>,
    upgrader: Option<Arc<dyn Upgrader>>,
}

impl<D: Dataplane> DataplaneService<D> {
    /// The service for `tonic::transport::Server::add_service`. `events` is what `dataplane` sends its events to; a subscriber
    /// that falls behind by the channel's capacity is cut off with `DATA_LOSS`, so that it dumps and asks again.
    pub fn server(dataplane: Arc<D>, events: broadcast::Sender<Event>) -> DataplaneServer<Self> {
        DataplaneServer::new(Self {
            dataplane,
            events,
            upgrader: None,
        })
    }

    /// The same for a program that can be replaced in place.
    pub fn upgradable(
        dataplane: Arc<D>,
        events: broadcast::Sender<Event>,
        upgrader: Arc<dyn Upgrader>,
    ) -> DataplaneServer<Self> {
        DataplaneServer::new(Self {
            dataplane,
            events,
            upgrader: Some(upgrader),
        })
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl<D: Dataplane> dataplane_server::Dataplane for DataplaneService<D> {
    async fn hello(&self, _: Request<proto::HelloRequest>) -> Answer<proto::HelloReply> {
        answer(self.dataplane.hello().await)
    }

    async fn dump(&self, _: Request<proto::DumpRequest>) -> Answer<proto::DumpReply> {
        answer(self.dataplane.dump().await)
    }

    async fn put_peer(&self, request: Request<proto::Peer>) -> Answer<proto::PutPeerReply> {
        let peer = parse(request)?;
        answer(self.dataplane.put_peer(peer).await)
    }

    async fn remove_peer(&self, request: Request<proto::PeerRef>) -> Answer<proto::Done> {
        let peer = parse(request)?;
        done(self.dataplane.remove_peer(peer).await)
    }

    async fn install_sa(&self, request: Request<proto::Sa>) -> Answer<proto::Done> {
        let sa = parse(request)?;
        done(self.dataplane.install_sa(sa).await)
    }

    async fn switch_outbound(&self, request: Request<proto::SwitchRequest>) -> Answer<proto::Done> {
        let (peer, spi) = parse(request)?;
        done(self.dataplane.switch_outbound(peer, spi).await)
    }

    async fn remove_sa(&self, request: Request<proto::SaRef>) -> Answer<proto::Done> {
        let (direction, spi) = parse(request)?;
        done(self.dataplane.remove_sa(direction, spi).await)
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<proto::Event, Status>> + Send>>;

    async fn events(&self, _: Request<proto::EventsRequest>) -> Answer<Self::EventsStream> {
        let events = BroadcastStream::new(self.events.subscribe());
        Ok(Response::new(Box::pin(
            events.map(|event| event.map(Into::into).map_err(lagged)),
        )))
    }

    async fn upgrade(&self, request: Request<proto::UpgradeRequest>) -> Answer<proto::Done> {
        let sha256 = request.into_inner().sha256;
        let upgraded = match &self.upgrader {
            Some(upgrader) => upgrader.upgrade(&sha256).await,
            None => Err("nothing encrypts here, so there is nothing to go on with".to_owned()),
        };
        upgraded
            .map(|()| Response::new(proto::Done {}))
            .map_err(Status::failed_precondition)
    }
}

fn parse<M, T: TryFrom<M, Error = Error>>(request: Request<M>) -> Result<T, Status> {
    T::try_from(request.into_inner()).map_err(|error| status_from_error(&error))
}

fn answer<T, M: From<T>>(result: Result<T, Error>) -> Answer<M> {
    result
        .map(|value| Response::new(value.into()))
        .map_err(|error| status_from_error(&error))
}

fn done(result: Result<(), Error>) -> Answer<proto::Done> {
    result
        .map(|()| Response::new(proto::Done {}))
        .map_err(|error| status_from_error(&error))
}

fn lagged(BroadcastStreamRecvError::Lagged(missed): BroadcastStreamRecvError) -> Status {
    Status::data_loss(format!("missed {missed} events; dump and subscribe again"))
}
