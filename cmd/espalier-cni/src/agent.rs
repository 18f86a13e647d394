//! The agent, called over its unix socket and waited for.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use espalier_cni_types::{Args, Attachment, Error, ErrorCode};
use espalier_rpc::agent::cni_client::CniClient;
use espalier_rpc::agent::{
    AllocateReply, AllocateRequest, CollectRequest, ReadyRequest, ReleaseRequest,
};
use espalier_rpc::connect_unix;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::failure::{AGENT, io_failure};

/// An agent that takes longer hangs. Runtimes wait for two minutes and more.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Of the runtime, in which a request gets as far as the socket.
const TURNS: usize = 3;

pub(crate) struct Agent {
    socket: PathBuf,
    runtime: Runtime,
    client: CniClient<Channel>,
}

impl Agent {
    pub(crate) fn new(socket: PathBuf) -> Result<Self, Error> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| io_failure(&e))?;
        let _entered = runtime.enter();
        let channel = connect_unix(&socket).map_err(|e| {
            Error::new(
                ErrorCode::InvalidConfig,
                format!("network configuration: socket: {e}"),
            )
        })?;
        let client = CniClient::new(channel);
        drop(_entered);
        Ok(Self {
            socket,
            runtime,
            client,
        })
    }

    /// Asks for addresses and does not wait for them: the agent takes as long to put the lease on a disk as it takes to make an
    /// interface.
    pub(crate) fn ask_for_addresses(
        &self,
        network: &str,
        attachment: &Attachment,
        netns: &Path,
        args: &Args,
    ) -> Asked {
        let request = AllocateRequest {
            network: network.to_owned(),
            container_id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
            netns: netns.to_string_lossy().into_owned(),
            pod_namespace: args.pod_namespace().unwrap_or_default().to_owned(),
            pod_name: args.pod_name().unwrap_or_default().to_owned(),
        };
        let mut client = self.client.clone();
        let call = async move { limited(client.allocate(request)).await };
        let asked = self.runtime.spawn(call);
        // Not more than a start: whatever is missing still, `addresses` does.
        self.runtime.block_on(async {
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
        });
        Asked(asked)
    }

    /// Waits for what was asked for.
    pub(crate) fn addresses(&self, asked: Asked) -> Result<AllocateReply, Failure> {
        let outcome = self.runtime.block_on(asked.0);
        self.outcome(outcome.unwrap_or_else(|e| Ok(Err(Status::unknown(e.to_string())))))
    }

    pub(crate) fn release(&self, attachment: &Attachment) -> Result<(), Failure> {
        self.call(self.client.clone().release(reference(attachment)))
            .map(drop)
    }

    /// Removes the interface and gives its addresses back.
    pub(crate) fn detach(&self, attachment: &Attachment) -> Result<(), Failure> {
        self.call(self.client.clone().detach(reference(attachment)))
            .map(drop)
    }

    /// Gives back what `network` leased and none of `keep` has.
    pub(crate) fn collect(&self, network: &str, keep: &[Attachment]) -> Result<(), Failure> {
        let request = CollectRequest {
            network: network.to_owned(),
            keep: keep.iter().map(reference).collect(),
        };
        self.call(self.client.clone().collect(request)).map(drop)
    }

    pub(crate) fn lookup(&self, attachment: &Attachment) -> Result<AllocateReply, Failure> {
        self.call(self.client.clone().lookup(reference(attachment)))
    }

    pub(crate) fn ready(&self) -> Result<(), Failure> {
        self.call(self.client.clone().ready(ReadyRequest {}))
            .map(drop)
    }

    fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let outcome = self.runtime.block_on(limited(call));
        self.outcome(outcome)
    }

    fn outcome<T>(&self, outcome: Outcome<T>) -> Result<T, Failure> {
        let kind = match outcome {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => Kind::of(status),
            Err(_) => Kind::Silent,
        };
        Err(Failure {
            socket: self.socket.clone(),
            kind,
        })
    }
}

/// A request for addresses that is under way.
pub(crate) struct Asked(JoinHandle<Outcome<AllocateReply>>);

impl Asked {
    /// The answer is there, or it is certain that none will come.
    pub(crate) fn is_answered(&self) -> bool {
        self.0.is_finished()
    }
}

type Outcome<T> = Result<Result<Response<T>, Status>, Elapsed>;

async fn limited<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Outcome<T> {
    tokio::time::timeout(CALL_TIMEOUT, call).await
}

fn reference(attachment: &Attachment) -> ReleaseRequest {
    ReleaseRequest {
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
    }
}

/// Why a call gave nothing.
#[derive(Debug)]
pub(crate) struct Failure {
    socket: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Nobody took the call. Names the remedy.
    NotConnected(String),
    /// The connection was lost while the call was under way.
    Lost(String),
    /// No answer in time.
    Silent,
    /// The agent said no.
    Refused(Status),
}

impl Kind {
    fn of(status: Status) -> Self {
        match connect_error(&status) {
            Some(text) => Self::NotConnected(text),
            None if matches!(
                status.code(),
                Code::Unavailable | Code::Cancelled | Code::Unknown
            ) =>
            {
                Self::Lost(status.message().to_owned())
            }
            None => Self::Refused(status),
        }
    }
}

/// The transport's own error at the bottom of a status that no agent sent.
fn connect_error(status: &Status) -> Option<String> {
    let mut next: Option<&(dyn StdError + 'static)> = status.source();
    while let Some(error) = next {
        if let Some(espalier_rpc::Error::Connect { .. }) = error.downcast_ref() {
            return Some(error.to_string());
        }
        next = error.source();
    }
    None
}

impl Failure {
    /// The agent has no such lease.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(&self.kind, Kind::Refused(status) if status.code() == Code::NotFound)
    }

    /// The agent could have done it and did not, for this reason.
    pub(crate) fn refusal(&self) -> Option<&str> {
        match &self.kind {
            Kind::Refused(status) if status.code() == Code::FailedPrecondition => {
                Some(status.message())
            }
            _ => None,
        }
    }

    /// The agent is of an older release, which has no such call.
    pub(crate) fn is_unknown_call(&self) -> bool {
        matches!(&self.kind, Kind::Refused(status) if status.code() == Code::Unimplemented)
    }

    /// The same call will never succeed.
    pub(crate) fn is_final(&self) -> bool {
        matches!(&self.kind, Kind::Refused(status) if status.code() == Code::InvalidArgument)
    }

    /// The agent may have done what was asked for although no answer came.
    pub(crate) fn may_have_happened(&self) -> bool {
        match &self.kind {
            Kind::Lost(_) | Kind::Silent => true,
            Kind::NotConnected(_) => false,
            Kind::Refused(status) => !matches!(
                status.code(),
                Code::FailedPrecondition
                    | Code::ResourceExhausted
                    | Code::InvalidArgument
                    | Code::NotFound
            ),
        }
    }

    pub(crate) fn into_error(self, verb: &str) -> Error {
        let Kind::Refused(status) = &self.kind else {
            let message = format!(
                "{verb}: the Espalier agent does not answer at {}",
                self.socket.display()
            );
            return Error::new(ErrorCode::TryAgainLater, message).with_details(self.reason());
        };
        let code = match status.code() {
            // A full node and one that is not ready may be different in a moment.
            Code::FailedPrecondition | Code::ResourceExhausted => ErrorCode::TryAgainLater,
            Code::InvalidArgument => ErrorCode::InvalidEnvironment,
            _ => AGENT,
        };
        Error::new(code, format!("{verb}: {}", status.message()))
    }

    fn reason(&self) -> String {
        const START: &str = "start espalier-agent on this node or look into its log, \
                             or correct `socket` in the network configuration";
        match &self.kind {
            Kind::NotConnected(text) => {
                format!("{text}, or correct `socket` in the network configuration")
            }
            Kind::Lost(text) => format!("no usable answer ({text}); {START}"),
            Kind::Silent => format!("no answer within {} s; {START}", CALL_TIMEOUT.as_secs()),
            Kind::Refused(status) => status.message().to_owned(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "agent at {}: {}", self.socket.display(), self.reason())
    }
}
