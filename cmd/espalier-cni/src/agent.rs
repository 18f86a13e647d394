//! The agent, called over its unix socket and waited for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use espalier_cni_types::{Args, Attachment, Error, ErrorCode};
use espalier_rpc::agent::{
    AllocateReply, AllocateRequest, CollectReply, CollectRequest, DetachReply, ReadyReply,
    ReadyRequest, ReleaseReply, ReleaseRequest,
};
use espalier_rpc::{Call, CallError};
use prost::Message;
use tonic::{Code, Status};

use crate::failure::AGENT;

/// An agent that takes longer hangs. Runtimes wait for two minutes and more.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Agent {
    socket: PathBuf,
}

impl Agent {
    pub(crate) fn new(socket: PathBuf) -> Result<Self, Error> {
        match espalier_rpc::check_length(&socket) {
            Ok(()) => Ok(Self { socket }),
            Err(e) => Err(Error::new(
                ErrorCode::InvalidConfig,
                format!("network configuration: socket: {e}"),
            )),
        }
    }

    /// Asks for addresses and does not wait for them: the agent takes as long to put the lease on a disk as it takes to make an
    /// interface.
    pub(crate) fn ask_for_addresses(
        &self,
        network: &str,
        attachment: &Attachment,
        netns: &Path,
        args: &Args,
    ) -> Call {
        let request = AllocateRequest {
            network: network.to_owned(),
            container_id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
            netns: netns.to_string_lossy().into_owned(),
            pod_namespace: args.pod_namespace().unwrap_or_default().to_owned(),
            pod_name: args.pod_name().unwrap_or_default().to_owned(),
        };
        self.ask("/espalier.agent.v1.Cni/Allocate", &request)
    }

    /// Waits for what was asked for.
    pub(crate) fn addresses(&self, asked: Call) -> Result<AllocateReply, Failure> {
        self.answer(asked)
    }

    pub(crate) fn release(&self, attachment: &Attachment) -> Result<(), Failure> {
        let asked = self.ask("/espalier.agent.v1.Cni/Release", &reference(attachment));
        self.answer(asked).map(|_: ReleaseReply| ())
    }

    /// Removes the interface and gives its addresses back.
    pub(crate) fn detach(&self, attachment: &Attachment) -> Result<(), Failure> {
        let asked = self.ask("/espalier.agent.v1.Cni/Detach", &reference(attachment));
        self.answer(asked).map(|_: DetachReply| ())
    }

    /// Gives back what `network` leased and none of `keep` has.
    pub(crate) fn collect(&self, network: &str, keep: &[Attachment]) -> Result<(), Failure> {
        let request = CollectRequest {
            network: network.to_owned(),
            keep: keep.iter().map(reference).collect(),
        };
        let asked = self.ask("/espalier.agent.v1.Cni/Collect", &request);
        self.answer(asked).map(|_: CollectReply| ())
    }

    pub(crate) fn lookup(&self, attachment: &Attachment) -> Result<AllocateReply, Failure> {
        self.answer(self.ask("/espalier.agent.v1.Cni/Lookup", &reference(attachment)))
    }

    pub(crate) fn ready(&self) -> Result<(), Failure> {
        let asked = self.ask("/espalier.agent.v1.Cni/Ready", &ReadyRequest {});
        self.answer(asked).map(|ReadyReply {}| ())
    }

    fn ask(&self, method: &'static str, request: &impl Message) -> Call {
        Call::start(&self.socket, method, request, CALL_TIMEOUT)
    }

    fn answer<T: Message + Default>(&self, asked: Call) -> Result<T, Failure> {
        asked.wait().map_err(|error| Failure {
            socket: self.socket.clone(),
            kind: Kind::of(error),
        })
    }
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
    Refused(Box<Status>),
}

impl Kind {
    fn of(error: CallError) -> Self {
        match error {
            CallError::Connect(error) => Self::NotConnected(error.to_string()),
            CallError::Lost(text) => Self::Lost(text),
            CallError::Silent => Self::Silent,
            CallError::Refused(status) => match status.code() {
                Code::Unavailable | Code::Cancelled | Code::Unknown => {
                    Self::Lost(status.message().to_owned())
                }
                _ => Self::Refused(status),
            },
        }
    }
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
