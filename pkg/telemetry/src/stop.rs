//! How a process is told to end.

use std::future::Future;
use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Completes on SIGTERM or SIGINT. From the call on these do not end the process any more. Needs a tokio runtime.
///
/// # Errors
/// The system's, when they cannot be listened for.
pub fn stop_signal() -> io::Result<impl Future<Output = ()> + Send + use<>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
