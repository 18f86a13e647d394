//! gRPC over unix sockets that only their owner can open.

use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::{Connected, Router, UdsConnectInfo};
use tonic::transport::{Channel, Endpoint, Uri};

/// Longest path of a unix socket, in bytes: `sun_path` of unix(7) without its terminating zero.
const MAX_PATH: usize = 107;
/// How long running calls may take to end once the server is told to stop. Event streams never end by themselves.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// What can go wrong with a socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path does not fit into a socket address.
    #[error(
        "the socket path {} has {} bytes, more than the {MAX_PATH} that unix sockets allow; use a shorter directory", .0.display(), .0.as_os_str().len()
    )]
    PathTooLong(PathBuf),
    /// Nobody answers.
    #[error("cannot connect to {}: {cause}; {remedy}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
        /// What to do.
        remedy: String,
    },
    /// Somebody else answers on the path that is to be served.
    #[error("a running process already serves {}; stop it first or use another directory", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket has the name.
    #[error("{} exists and is not a socket; move it away or use another directory", .0.display())]
    NotASocket(PathBuf),
    /// The socket could not be made.
    #[error("cannot make the socket {}: {cause}; its directory must exist and be writable for this user", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The server ended with an error.
    #[error("serving {} ended: {cause}", path.display())]
    Serve {
        /// The socket.
        path: PathBuf,
        /// Why.
        cause: tonic::transport::Error,
    },
}

/// A channel to the unix socket at `path`. It connects with the first call and again whenever the connection is gone; a call
/// that finds nobody there fails with `UNAVAILABLE` and a message that names the path and the remedy.
///
/// # Errors
/// [`Error::PathTooLong`].
pub fn connect_unix(path: impl Into<PathBuf>) -> Result<Channel, Error> {
    let path = path.into();
    check_length(&path)?;
    let connector = tower::service_fn(move |_: Uri| connect(path.clone()));
    // The name only fills the :authority header; the connector decides where the bytes go.
    Ok(Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector))
}

/// Serves `router` on a new socket at `path` until `shutdown` resolves; removes the socket at the end.
///
/// # Errors
/// Those of [`bind_unix`], and [`Error::Serve`].
pub async fn serve_unix(
    path: impl AsRef<Path>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    serve_bound(bind_unix(path).await?, router, shutdown).await
}

/// The same on a socket that is there already.
///
/// # Errors
/// [`Error::Serve`].
pub async fn serve_bound(
    (listener, file): (UnixListener, SocketFile),
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let (stop, stopped) = oneshot::channel::<()>();
    let (cut, is_cut) = watch::channel(false);
    let incoming = UnixListenerStream::new(listener)
        .map(move |stream| Ok::<_, io::Error>(Cuttable::new(stream?, is_cut.clone())));
    let mut serving =
        Box::pin(router.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }));
    let failed = |cause| Error::Serve {
        path: file.path.clone(),
        cause,
    };
    tokio::select! {
        ended = &mut serving => return ended.map_err(failed),
        () = shutdown => drop(stop),
    }
    let ended = tokio::time::timeout(SHUTDOWN_GRACE, &mut serving).await;
    match ended {
        Ok(ended) => ended.map_err(failed),
        Err(_still_streaming) => {
            cut.send_replace(true);
            serving.await.map_err(failed)
        }
    }
}

/// Makes a listening socket at `path` with mode 0600. It is never reachable for others, not even for a moment, and takes
/// the name in one step. A socket that nobody answers on is replaced.
///
/// # Errors
/// [`Error::PathTooLong`], [`Error::InUse`], [`Error::NotASocket`], [`Error::Bind`].
pub async fn bind_unix(path: impl AsRef<Path>) -> Result<(UnixListener, SocketFile), Error> {
    let path = path.as_ref();
    check_length(path)?;
    check_free(path).await?;
    bind_privately(path).map_err(|cause| Error::Bind {
        path: path.into(),
        cause,
    })
}

/// Goes on with the listening socket that an earlier program of this process made at `path`: who connects meanwhile, waits. Must be
/// called inside a tokio runtime.
///
/// # Errors
/// [`Error::Bind`] when it is none.
pub fn resume_unix(
    path: impl AsRef<Path>,
    listener: OwnedFd,
) -> Result<(UnixListener, SocketFile), Error> {
    let path = path.as_ref();
    let resume = || {
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let file = SocketFile {
            path: path.into(),
            inode: inode(path)?,
        };
        Ok((UnixListener::from_std(listener)?, file))
    };
    resume().map_err(|cause| Error::Bind {
        path: path.into(),
        cause,
    })
}

/// Removes its socket when dropped, unless another process has taken the name by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A connection that reads as closed by its peer once the server wants to end: tonic runs connections in tasks of their own
/// that nothing else stops.
struct Cuttable {
    stream: UnixStream,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Cuttable {
    fn new(stream: UnixStream, mut is_cut: watch::Receiver<bool>) -> Self {
        let cut = async move { drop(is_cut.wait_for(|cut| *cut).await) };
        Self {
            stream,
            cut: Box::pin(cut),
        }
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending => self.cut.as_mut().poll(cx).map(Ok),
            ready => ready,
        }
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Cuttable {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

/// Whether a socket address has room for a path.
///
/// # Errors
/// [`Error::PathTooLong`].
pub fn check_length(path: &Path) -> Result<(), Error> {
    if path.as_os_str().len() > MAX_PATH {
        Err(Error::PathTooLong(path.into()))
    } else {
        Ok(())
    }
}

async fn connect(path: PathBuf) -> Result<TokioIo<UnixStream>, Error> {
    match UnixStream::connect(&path).await {
        Ok(stream) => Ok(TokioIo::new(stream)),
        Err(cause) => Err(not_connected(&path, cause)),
    }
}

pub(crate) fn not_connected(path: &Path, cause: io::Error) -> Error {
    Error::Connect {
        path: path.into(),
        remedy: remedy(path, cause.kind()),
        cause,
    }
}

fn remedy(path: &Path, kind: io::ErrorKind) -> String {
    if kind == io::ErrorKind::PermissionDenied {
        return "run this as root".into();
    }
    let server = match path.file_name().and_then(|name| name.to_str()) {
        Some("dataplane.sock") => "espalier-dataplane",
        Some("agent.sock") => "espalier-agent",
        _ => "the process that serves it",
    };
    format!("start {server} on this node, or give the directory in which it has its socket")
}

async fn check_free(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Err(_absent) => return Ok(()),
        Ok(found) if !found.file_type().is_socket() => return Err(Error::NotASocket(path.into())),
        Ok(_socket) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if refuses(&error) => Ok(()),
        // Anything else, such as EAGAIN for a full backlog, means that somebody holds it.
        _ => Err(Error::InUse(path.into())),
    }
}

fn refuses(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

/// Binds inside a directory that only this user can enter, sets the mode there and then moves the socket to its name.
fn bind_privately(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let private = PrivateDir::new(parent.join(format!(".{:x}-{number:x}", std::process::id())))?;
    let hidden = private.0.join("s");
    let listener = UnixListener::bind(&hidden)?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))?;
    let inode = inode(&hidden)?;
    fs::rename(&hidden, path)?;
    Ok((
        listener,
        SocketFile {
            path: path.into(),
            inode,
        },
    ))
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

struct PrivateDir(PathBuf);

impl PrivateDir {
    fn new(path: PathBuf) -> io::Result<Self> {
        // Left over by a process that was killed between two lines here and whose id came again.
        let _ = fs::remove_dir_all(&path);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_goes_with_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dataplane.sock");
        let (_listener, file) = bind_unix(&path).await.unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing but the socket"
        );
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_listener, _file) = bind_unix(&path).await.unwrap();
        let refused = bind_unix(&path).await.unwrap_err();
        assert!(
            matches!(&refused, Error::InUse(named) if named == &path),
            "{refused}"
        );
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_resumed_socket_has_who_connected_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dataplane.sock");
        let (listener, file) = bind_unix(&path).await.unwrap();
        let same = listener.into_std().unwrap();
        // As an exec does it: the old program's destructors do not run.
        std::mem::forget(file);
        let _waits = UnixStream::connect(&path).await.unwrap();
        let (listener, _file) = resume_unix(&path, same.into()).unwrap();
        listener.accept().await.unwrap();
    }

    #[tokio::test]
    async fn a_plain_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        let refused = bind_unix(&path).await.unwrap_err();
        assert!(matches!(refused, Error::NotASocket(_)), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_guard_leaves_the_successors_socket_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let (listener, old) = bind_unix(&path).await.unwrap();
        drop(listener);
        let (_listener, _new) = bind_unix(&path).await.unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn errors_name_the_path_and_the_remedy() {
        let missing = Path::new("/nonexistent-directory/agent.sock");
        let bind = bind_unix(missing).await.unwrap_err().to_string();
        assert!(
            bind.contains("/nonexistent-directory/agent.sock") && bind.contains("must exist"),
            "{bind}"
        );
        let connect = connect(missing.into()).await.unwrap_err().to_string();
        assert!(connect.contains("start espalier-agent"), "{connect}");
        let long = format!("/tmp/{}", "x".repeat(120));
        let long = connect_unix(long).unwrap_err().to_string();
        assert!(
            long.contains("125 bytes") && long.contains("shorter"),
            "{long}"
        );
    }
}
