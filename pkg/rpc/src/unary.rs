//! One call over a unix socket, and its answer, in a process that lives for milliseconds: gRPC over HTTP/2 as everywhere else, but
//! without a runtime and without what keeps connections. The socket does not block; whoever waits for the answer waits for it alone.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::Status;

use crate::Error;
use crate::unix::{check_length, not_connected};

/// Before a message: whether it is compressed, and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;
/// Of an answer, in bytes: as for every other client here (tonic's default).
const LONGEST_ANSWER: usize = 4 << 20;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody took the call.
    #[error(transparent)]
    Connect(Error),
    /// The connection was lost while the call was under way, or what came is no answer.
    #[error("{0}")]
    Lost(String),
    /// No answer in time.
    #[error("no answer in time")]
    Silent,
    /// The other end said no.
    #[error("{0}")]
    Refused(Box<Status>),
}

/// A call that is under way; dropping it gives it up.
pub struct Call {
    exchange: Pin<Box<dyn Future<Output = Answer>>>,
    answer: Option<Answer>,
    stream: Rc<Wire>,
    woken: Arc<Woken>,
    deadline: Instant,
}

type Answer = Result<Bytes, CallError>;

impl Call {
    /// Connects to the socket at `path`, sends a request for `method` (`/package.Service/Method`) as far as that goes without
    /// waiting, and looks once for its answer. What goes wrong is told by [`Call::wait`].
    #[must_use]
    pub fn start(
        path: &Path,
        method: &'static str,
        request: &impl Message,
        patience: Duration,
    ) -> Self {
        Self::begin(path, method, framed(request), Instant::now() + patience)
    }

    fn begin(path: &Path, method: &'static str, request: Bytes, deadline: Instant) -> Self {
        let (stream, failed) = match dial(path) {
            Ok(stream) => (Some(stream), None),
            Err(error) => (None, Some(Err(CallError::Connect(error)))),
        };
        let stream = Rc::new(Wire {
            stream,
            full: Cell::new(false),
        });
        let mut call = Self {
            exchange: Box::pin(exchange(Io(stream.clone()), method, request)),
            answer: failed,
            stream,
            woken: Arc::default(),
            deadline,
        };
        call.go_on();
        call
    }

    /// The answer is there, or it is certain that none will come.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.answer.is_some()
    }

    /// Waits for the answer, for as long as the patience lasts that [`Call::start`] was given.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn wait<T: Message + Default>(mut self) -> Result<T, CallError> {
        let answer = self.wait_for_bytes()?;
        T::decode(answer).map_err(|error| lost(&error))
    }

    fn wait_for_bytes(&mut self) -> Answer {
        loop {
            if let Some(answer) = self.answer.take() {
                return answer;
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CallError::Silent);
            }
            self.stream.wait(left).map_err(|error| lost(&error))?;
            self.go_on();
        }
    }

    /// Whatever can be done without waiting.
    fn go_on(&mut self) {
        let waker = Waker::from(self.woken.clone());
        let mut context = Context::from_waker(&waker);
        while self.answer.is_none() {
            match self.exchange.as_mut().poll(&mut context) {
                Poll::Ready(answer) => self.answer = Some(answer),
                Poll::Pending if self.woken.0.swap(false, Ordering::Relaxed) => {}
                Poll::Pending => return,
            }
        }
    }
}

/// One part of the exchange has something for another.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A full queue of connections is an error as on every socket that does not block: it must not hang who asks.
fn dial(path: &Path) -> Result<UnixStream, Error> {
    check_length(path)?;
    let dialled = || {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path)?)?;
        Ok(UnixStream::from(fd))
    };
    dialled().map_err(|errno: Errno| not_connected(path, errno.into()))
}

fn framed(request: &impl Message) -> Bytes {
    let mut bytes = vec![0; PREFIX];
    // Encoding into a vector has no limit that could be met.
    bytes.extend(request.encode_to_vec());
    let length = u32::try_from(bytes.len() - PREFIX).unwrap_or(u32::MAX);
    bytes[1..PREFIX].copy_from_slice(&length.to_be_bytes());
    bytes.into()
}

/// Drives the connection for as long as the call lasts.
async fn exchange(io: Io, method: &'static str, request: Bytes) -> Answer {
    let shaken = h2::client::handshake(io).await;
    let (sender, connection) = shaken.map_err(|error| lost(&error))?;
    let (mut connection, mut call) = (pin!(connection), pin!(call(sender, method, request)));
    poll_fn(|context| {
        if let Poll::Ready(answer) = call.as_mut().poll(context) {
            return Poll::Ready(answer);
        }
        let Poll::Ready(ended) = connection.as_mut().poll(context) else {
            return Poll::Pending;
        };
        // What came before its end is the call's to read; it is not always told of the end.
        match (call.as_mut().poll(context), ended) {
            (Poll::Ready(answer), _) => Poll::Ready(answer),
            (Poll::Pending, Err(error)) => Poll::Ready(Err(lost(&error))),
            (Poll::Pending, Ok(())) => {
                Poll::Ready(Err(CallError::Lost("the connection was closed".into())))
            }
        }
    })
    .await
}

async fn call(mut sender: SendRequest<Bytes>, method: &'static str, request: Bytes) -> Answer {
    let head = head(method).map_err(|error| lost(&error))?;
    let sent = sender.send_request(head, false);
    let (response, mut body) = sent.map_err(|error| lost(&error))?;
    body.send_data(request, true)
        .map_err(|error| lost(&error))?;
    let (head, mut body) = response.await.map_err(|error| lost(&error))?.into_parts();
    // An error comes without a message, and its head is all of it.
    refused(&head.headers)?;
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| lost(&error))?;
        let room = body.flow_control().release_capacity(data.len());
        room.map_err(|error| lost(&error))?;
        message.extend_from_slice(&data);
        if message.len() > LONGEST_ANSWER {
            return Err(CallError::Lost("the answer is too long".into()));
        }
    }
    let trailers = body.trailers().await.map_err(|error| lost(&error))?;
    refused(&trailers.unwrap_or_default())?;
    unframed(message.into())
}

fn head(method: &'static str) -> http::Result<Request<()>> {
    Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        // The name only fills the :authority header.
        .uri(format!("http://localhost{method}"))
        .header("te", "trailers")
        .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
        .body(())
}

fn refused(headers: &HeaderMap) -> Result<(), CallError> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() != tonic::Code::Ok => {
            Err(CallError::Refused(Box::new(status)))
        }
        _ => Ok(()),
    }
}

/// One message, not compressed: nobody said that we could read others.
fn unframed(mut answer: Bytes) -> Answer {
    let length = answer.get(1..PREFIX).and_then(|four| four.try_into().ok());
    match (answer.first(), length.map(u32::from_be_bytes)) {
        (Some(0), Some(length)) if answer.len() - PREFIX == length as usize => {
            Ok(answer.split_off(PREFIX))
        }
        _ => Err(CallError::Lost(format!(
            "{} bytes that are no message",
            answer.len()
        ))),
    }
}

fn lost(error: &dyn std::error::Error) -> CallError {
    CallError::Lost(error.to_string())
}

/// The connection; none: it could not be made, and nobody asks for it.
struct Wire {
    stream: Option<UnixStream>,
    /// What is to be sent had no room.
    full: Cell<bool>,
}

impl Wire {
    fn get(&self) -> io::Result<&UnixStream> {
        self.stream
            .as_ref()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Until there is something to read, or room for what is to be sent.
    fn wait(&self, at_most: Duration) -> io::Result<()> {
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, self.full.take());
        let milliseconds = at_most.as_millis().saturating_add(1);
        let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.get()?.as_fd(), events)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

struct Io(Rc<Wire>);

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut stream = self.0.get()?;
        match stream.read(buf.initialize_unfilled()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            read => Poll::Ready(read.map(|length| buf.advance(length))),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut stream = self.0.get()?;
        match stream.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.0.full.set(true);
                Poll::Pending
            }
            written => Poll::Ready(written),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
