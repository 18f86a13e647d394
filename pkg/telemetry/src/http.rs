//! Metrics and health over HTTP: a few fixed pages, read only.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::debug;

/// Probes and a scraper or two need no more; others wait.
const CONNECTIONS: usize = 32;
/// For a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection ends after so long, whatever it does.
const LIFE: Duration = Duration::from_secs(300);

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// As in the header.
    pub content_type: &'static str,
    /// The text.
    pub body: String,
}

impl Page {
    /// Plain text.
    #[must_use]
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }

    /// Metrics.
    #[must_use]
    pub fn metrics(text: crate::metrics::Text) -> Self {
        Self {
            status: 200,
            content_type: crate::metrics::CONTENT_TYPE,
            body: text.into_string(),
        }
    }
}

/// What is served.
pub trait Site: Send + Sync + 'static {
    /// The page at `path`; `None`: there is none.
    fn page(&self, path: &str) -> impl Future<Output = Option<Page>> + Send;
}

/// Serves `site` at `address` until the returned task is aborted. The address is bound when this returns.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(address: SocketAddr, site: Arc<impl Site>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    tokio::spawn(accept(listener, site));
    Ok(bound)
}

async fn accept(listener: TcpListener, site: Arc<impl Site>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let site = Arc::clone(&site);
                tokio::spawn(async move {
                    let _place = place;
                    let served = tokio::time::timeout(LIFE, converse(stream, site)).await;
                    debug!(?served, "HTTP connection ended");
                });
            }
            // Out of descriptors, mostly: it passes.
            Err(error) => {
                debug!(%error, "accepting an HTTP connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, site: Arc<impl Site>) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| answer(Arc::clone(&site), request));
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(
    site: Arc<impl Site>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let page = match *request.method() {
        Method::GET | Method::HEAD => site.page(request.uri().path()).await,
        _ => Some(Page::text(405, "only GET\n")),
    };
    let page = page.unwrap_or_else(|| {
        Page::text(404, "not found; there are /metrics, /healthz and /readyz\n")
    });
    let mut response = Response::new(Full::new(Bytes::from(page.body)));
    *response.status_mut() =
        StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = HeaderValue::from_static(page.content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    struct Two;

    impl Site for Two {
        async fn page(&self, path: &str) -> Option<Page> {
            match path {
                "/readyz" => Some(Page::text(503, "no policy\n")),
                _ => None,
            }
        }
    }

    async fn ask(to: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }

    #[tokio::test]
    async fn pages_are_served_and_others_refused() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let to = serve(any, Arc::new(Two)).await.unwrap();
        let ready = ask(to, "GET /readyz").await;
        assert!(
            ready.starts_with("HTTP/1.1 503") && ready.ends_with("no policy\n"),
            "{ready}"
        );
        assert!(ask(to, "GET /other").await.starts_with("HTTP/1.1 404"));
        assert!(ask(to, "POST /readyz").await.starts_with("HTTP/1.1 405"));
    }
}
