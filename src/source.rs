//! Connections to the source database.
//!
//! Every session is pinned to the settings that decide how values print, so that a value read by a fill has the text
//! that the stream would give.

mod error;
mod server;
pub mod text;
mod tls;
mod url;

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts,
};
use tokio::runtime::Handle;
use tokio_postgres::{CancelToken, Client};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::SourceConfig;

pub use error::{EXIT_CONFIG, EXIT_PERMISSION, EXIT_UNAVAILABLE, SourceError, Verdict};
pub use server::{Followed, Server, System, WHICH_SERVER, which_server};
pub use url::{SourceUrl, SourceUrlError, SslMode};

/// What every session is pinned to, that of the stream among them. Text output depends on all but the last: `lc_monetary`
/// decides how `money` is written, `quote_all_identifiers` the names that `regclass` and its like stand for. Compiling a
/// query takes longer than any of ours.
pub const SESSION: [(&str, &str); 8] = [
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("quote_all_identifiers", "off"),
    ("jit", "off"),
];

/// The name under which sessions appear in `pg_stat_activity`.
pub const APPLICATION_NAME: &str = "walcache";

/// [`SESSION`] as the startup parameter `options`, with a `search_path` where one is set, and a limit on each statement where
/// one is given.
fn session_options(search_path: &str, statement_timeout: Option<Duration>) -> String {
    let mut options: Vec<String> = SESSION.iter().map(|(name, value)| format!("-c {name}={value}")).collect();
    if !search_path.is_empty() {
        options.push(format!("-c search_path={}", escaped(search_path)));
    }
    if let Some(timeout) = statement_timeout {
        // Zero would mean no limit.
        options.push(format!("-c statement_timeout={}", timeout.as_millis().max(1)));
    }
    options.join(" ")
}

/// A value as a part of the startup parameter `options`: the server takes it apart at blanks that no backslash stands before
/// (`pg_split_opts()`). Those that are not ASCII are parts of names.
fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        // The vertical tab is one to C's `isspace()`.
        if c == '\\' || c == '\x0b' || c.is_ascii_whitespace() {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Opens one connection. A task of its own drives it and ends when the client is dropped or the connection is lost.
///
/// # Errors
/// [`SourceError`]; [`SourceError::verdict`] tells whether another attempt makes sense.
pub async fn connect(config: &SourceConfig, statement_timeout: Option<Duration>) -> Result<Client, SourceError> {
    let (postgres, tls) = parameters(config, statement_timeout)?;
    let connecting = postgres.connect(tls);
    let (client, connection) = tokio::time::timeout(config.connect_timeout, connecting)
        .await
        .map_err(|_| SourceError::Timeout { what: "connect", after: config.connect_timeout })?
        .map_err(|error| SourceError::postgres("connect", error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the source ended");
        }
    });
    Ok(client)
}

/// The schemas that a session looks through, in the form of `source.search_path`.
///
/// # Errors
/// If the connection fails, or nothing comes within `patience`.
pub async fn search_path(client: &Client, patience: Duration) -> Result<String, SourceError> {
    const WHAT: &str = "read search_path";
    let row = within(WHAT, patience, client.query_one("SELECT current_setting('search_path')", &[])).await?;
    let path: String = row.map_err(|error| SourceError::postgres(WHAT, error))?.get(0);
    // Which would mean that none is set.
    Ok(if path.is_empty() { "\"\"".to_owned() } else { path })
}

/// What ends a statement of one connection on the server, where nobody waits for its end any more.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    tls: MakeRustlsConnect,
    /// How long that may take.
    patience: Duration,
}

impl Canceller {
    /// Of a connection that was made with this configuration.
    ///
    /// # Errors
    /// As [`connect`].
    pub fn new(config: &SourceConfig, client: &Client) -> Result<Self, SourceError> {
        let (_, tls) = parameters(config, None)?;
        Ok(Canceller { token: client.cancel_token(), tls, patience: config.connect_timeout })
    }

    /// Cancels what is under way on the connection, in a task of its own.
    pub fn cancel(self) {
        // Without a runtime the process ends, and its connections with it.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            match tokio::time::timeout(self.patience, self.token.cancel_query(self.tls)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "cancel a statement"),
                // Where the way to the server is silent, its own limit on statements ends it.
                Err(_) => tracing::debug!("cancel a statement: no answer"),
            }
        });
    }
}

/// Waits for `work` no longer than `after`: the server's own limit on statements does not help where the way to it is
/// silent.
///
/// # Errors
/// [`SourceError::Timeout`].
pub async fn within<T>(what: &'static str, after: Duration, work: impl Future<Output = T>) -> Result<T, SourceError> {
    tokio::time::timeout(after, work).await.map_err(|_| SourceError::Timeout { what, after })
}

/// A pool of connections for fills, to the server that is followed and no other. Nothing is connected yet.
///
/// # Errors
/// [`SourceError::Url`] and [`SourceError::Certificate`], which no retry mends.
pub fn pool(config: &SourceConfig, followed: Arc<Followed>) -> Result<Pool, SourceError> {
    let (postgres, tls) = parameters(config, Some(config.fill_timeout))?;
    let manager = Manager::from_config(postgres, tls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let timeouts = Timeouts {
        wait: Some(config.fill_timeout),
        create: Some(config.connect_timeout),
        recycle: Some(config.connect_timeout),
    };
    let patience = config.connect_timeout;
    let admitted = Hook::async_fn(move |client: &mut ClientWrapper, _| {
        let followed = followed.clone();
        Box::pin(async move {
            match which_server(client, patience).await {
                Ok(found) if followed.admits(found.as_ref()) => Ok(()),
                Ok(_) => Err(HookError::message("source.url leads to another server than the one that is followed")),
                Err(SourceError::Postgres { error, .. }) => Err(HookError::Backend(error)),
                Err(error) => Err(HookError::message(error.to_string())),
            }
        })
    });
    let builder = Pool::builder(manager).max_size(config.pool_size).timeouts(timeouts).runtime(Runtime::Tokio1);
    let builder = builder.post_create(admitted);
    // Fails only where timeouts are set without a runtime.
    builder.build().map_err(|error| SourceError::Pool(error.to_string()))
}

fn parameters(
    config: &SourceConfig,
    statement_timeout: Option<Duration>,
) -> Result<(tokio_postgres::Config, MakeRustlsConnect), SourceError> {
    let url = SourceUrl::parse(&config.url)?;
    let tls = tls::connector(&url)?;
    let mut postgres = url.postgres;
    let own = session_options(&config.search_path, statement_timeout);
    // What stands later wins: the pins come after whatever the URL asks for.
    let options = postgres.get_options().map_or(own.clone(), |theirs| format!("{theirs} {own}"));
    postgres
        .options(options)
        .application_name(APPLICATION_NAME)
        .connect_timeout(config.connect_timeout)
        .keepalives_idle(Duration::from_secs(10))
        .keepalives_interval(Duration::from_secs(5))
        .keepalives_retries(3)
        .tcp_user_timeout(config.dead_after);
    Ok((postgres, tls))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_search_path_is_one_value_of_the_options() {
        for (path, wanted) in [
            ("public", "public"),
            ("\"$user\", public", "\"$user\",\\ public"),
            ("\"a\\b\",\tc\x0b", "\"a\\\\b\",\\\tc\\\x0b"),
            // A schema's name may hold any character: these are no blanks to the server.
            ("\"no\u{a0}break\u{3000}wide\"", "\"no\u{a0}break\u{3000}wide\""),
        ] {
            assert_eq!(escaped(path), wanted, "{path:?}");
            assert!(session_options(path, None).ends_with(&format!(" -c search_path={wanted}")), "{path:?}");
        }
    }

    /// A server that never says whether it wants TLS holds no task for ever.
    #[tokio::test]
    async fn a_cancellation_that_is_not_answered_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = SourceConfig {
            url: format!("postgres://me@127.0.0.1:{port}/mine?sslmode=prefer").as_str().into(),
            connect_timeout: Duration::from_secs(30),
            ..SourceConfig::default()
        };
        let accept = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            // A request for TLS has eight bytes, and no is an answer; then come the startup packet and what follows it.
            socket.read_exact(&mut [0; 8]).await.unwrap();
            socket.write_all(b"N").await.unwrap();
            let length = socket.read_u32().await.unwrap() as usize;
            socket.read_exact(&mut vec![0; length - 4]).await.unwrap();
            // AuthenticationOk, BackendKeyData, ReadyForQuery.
            let hello = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";
            socket.write_all(hello).await.unwrap();
            socket
        };
        let (client, _socket) = tokio::join!(connect(&config, None), accept);
        let client = client.unwrap();
        let patient = SourceConfig { connect_timeout: Duration::from_millis(20), ..config };
        Canceller::new(&patient, &client).unwrap().cancel();
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(60), socket.read_to_end(&mut asked)).await;
        assert!(ended.is_ok(), "it still waits for an answer");
    }
}
