//! Sockets: bind, accept, carry, drain.
//!
//! warp's own server sets no TCP_NODELAY, no header timeout and no deadline for draining, so the accept loop is ours.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::Limits;
use super::timer::ConnectionTimer;

/// A connection's read buffer grows up to this: a longest key, percent-encoded, and the longest headers fit in.
const MAX_BUFFER: usize = 128 * 1024;

/// How long sent bytes may stay unacknowledged, or the client's window closed, before the connection is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often an HTTP/2 client must prove to be there.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long to wait after `accept` failed for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The address of a listener cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ([{name}] listen): {source}; choose another address, or end what uses this one")]
pub struct BindError {
    address: String,
    name: &'static str,
    source: io::Error,
}

/// A bound listener: the port is taken, nothing is accepted yet.
#[derive(Debug)]
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `host:port`; port 0 takes a free one. `name` is the configuration's section.
    ///
    /// # Errors
    /// The address does not resolve, is not one of this machine, or is in use.
    pub async fn bind(address: &str, name: &'static str) -> Result<Self, BindError> {
        let failed = |source| BindError { address: address.to_owned(), name, source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Listener { name, socket, address })
    }

    /// The bound address, with the port that was chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives each connection a service of its own until `shutdown` is cancelled, then lets requests in flight finish within the grace period.
    pub async fn serve<S, B>(self, service: impl Fn() -> S, limits: Limits, shutdown: CancellationToken)
    where
        S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data: Send, Error: Into<ConnectionError>> + Send + 'static,
    {
        info!(listener = self.name, address = %self.address, "listening");
        self.accept(service, limits, shutdown).await;
    }

    /// As [`Listener::serve`], with a thread and a runtime of its own for each core: a request then never wakes another
    /// thread than the one that received it.
    ///
    /// # Errors
    /// If the socket cannot be shared or a thread cannot be started.
    pub async fn serve_on_cores<F, S, B>(
        self,
        service: F,
        limits: Limits,
        shutdown: CancellationToken,
    ) -> io::Result<()>
    where
        F: Fn() -> S + Clone + Send + 'static,
        S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data: Send, Error: Into<ConnectionError>> + Send + 'static,
    {
        let Listener { name, socket, address } = self;
        let socket = socket.into_std()?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let limits = Limits { max_connections: limits.max_connections.div_ceil(cores), ..limits };
        let mut ends = JoinSet::new();
        for core in 0..cores {
            let (socket, service, shutdown) = (socket.try_clone()?, service.clone(), shutdown.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            std::thread::Builder::new().name(format!("{name}-{core}")).spawn(move || {
                // Dropped at the end of the thread, however it ends.
                let _end = end;
                runtime.block_on(async {
                    match TcpListener::from_std(socket) {
                        Ok(socket) => Listener { name, socket, address }.accept(service, limits, shutdown).await,
                        Err(error) => tracing::error!(listener = name, %error, "cannot listen"),
                    }
                });
            })?;
            ends.spawn(ended);
        }
        drop(socket);
        info!(listener = name, %address, "listening");
        while ends.join_next().await.is_some() {}
        Ok(())
    }

    async fn accept<F, S, B>(self, service: F, limits: Limits, shutdown: CancellationToken)
    where
        F: Fn() -> S,
        S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data: Send, Error: Into<ConnectionError>> + Send + 'static,
    {
        let Listener { name, socket, .. } = self;
        let builder = builder(&limits);
        let permits = Arc::new(Semaphore::new(limits.max_connections));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                // The semaphore is never closed.
                let permit = permits.clone().acquire_owned().await.ok();
                socket.accept().await.map(|(stream, _)| (stream, permit))
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => note_panic(name, ended),
                accepted = accepted => match accepted {
                    Ok((stream, permit)) => {
                        let connection =
                            carry(stream, service(), builder.clone(), graceful.watcher(), limits.header_timeout);
                        connections.spawn(async move {
                            if let Err(error) = connection.await {
                                debug!(listener = name, error = %error, "connection ended");
                            }
                            drop(permit);
                        });
                    }
                    Err(error) if is_clients(&error) => debug!(listener = name, %error, "client left while connecting"),
                    Err(error) => {
                        warn!(listener = name, %error, "cannot accept connections");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // New clients are refused from here on.
        drop(socket);
        if tokio::time::timeout(limits.grace, graceful.shutdown()).await.is_err() {
            let unfinished = connections.len();
            warn!(listener = name, unfinished, grace = ?limits.grace, "cut off connections at the end of the grace period");
        }
        connections.abort_all();
        while let Some(ended) = connections.join_next().await {
            note_panic(name, ended);
        }
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The timer of HTTP/1 is each connection's own.
    builder.http1().header_read_timeout(limits.header_timeout).max_buf_size(MAX_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_BUFFER as u32)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(limits.header_timeout);
    builder
}

type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

async fn carry<S, B>(
    stream: TcpStream,
    service: S,
    mut builder: auto::Builder<TokioExecutor>,
    watcher: Watcher,
    first_request: Duration,
) -> Result<(), ConnectionError>
where
    S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible> + 'static,
    S::Future: Send + 'static,
    B: Body<Data: Send, Error: Into<ConnectionError>> + Send + 'static,
{
    stream.set_nodelay(true)?;
    // A client that stops reading is noticed by the kernel, which alone knows what was taken.
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(WRITE_TIMEOUT))?;
    // hyper's header timeout begins when the HTTP version is known; until then a silent client would wait for free.
    let asked = Arc::new(AtomicBool::new(false));
    let service = Noting { service, asked: asked.clone() };
    builder.http1().timer(ConnectionTimer::default());
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(watcher.watch(connection));
    tokio::select! {
        ended = &mut connection => return ended,
        () = tokio::time::sleep(first_request) => {}
    }
    if !asked.load(Ordering::Relaxed) {
        return Err("no request within the header timeout".into());
    }
    connection.await
}

/// Notes that a request came.
struct Noting<S> {
    service: S,
    asked: Arc<AtomicBool>,
}

impl<B, S: Service<hyper::Request<B>>> Service<hyper::Request<B>> for Noting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: hyper::Request<B>) -> S::Future {
        self.asked.store(true, Ordering::Relaxed);
        self.service.call(request)
    }
}

fn note_panic(listener: &str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(listener, %error, "a request panicked; its connection was closed");
    }
}

/// Whether `accept` failed because of that one client.
fn is_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
