//! Connections to the source database.
//!
//! Every session is pinned to the settings that decide how values print, so that a value read by a fill has the text
//! that the stream would give.

mod error;
mod server;
mod tls;
mod url;

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts,
};
use tokio_postgres::Client;
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

/// [`SESSION`] as the startup parameter `options`, with a limit on each statement where one is given.
pub fn session_options(statement_timeout: Option<Duration>) -> String {
    let mut options: Vec<String> = SESSION.iter().map(|(name, value)| format!("-c {name}={value}")).collect();
    if let Some(timeout) = statement_timeout {
        // Zero would mean no limit.
        options.push(format!("-c statement_timeout={}", timeout.as_millis().max(1)));
    }
    options.join(" ")
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
    let own = session_options(statement_timeout);
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
