//! Owns the replication connection and what is confirmed to the slot.
//!
//! A stream of our own on pgwire-replication's public parts, rather than its client: whole buffers of messages are
//! handed on at once, which saves the walsender a wake-up for each message, and the socket's timeouts are ours.
//!
//! ```text
//! connect -> identify -> start -> stream: read | hand on | send status, until cancelled, dead or ended by the server
//! ```
//!
//! Status is sent on a timer of its own, whatever happens downstream: a stalled apply never looks like a dead client
//! to the server. An LSN is confirmed only after it was applied.

pub mod connect;
pub mod frames;
mod options;
pub mod stream;

use std::time::Duration;

use pgwire_replication::{PgWireError, TlsConfig};

/// Where and how to stream.
#[derive(Clone)]
pub struct Config {
    /// Host name or address; a path means a Unix socket's directory.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Role with the REPLICATION right.
    pub user: String,
    /// Its password, if it has one.
    pub password: Option<String>,
    /// The database of the slot.
    pub database: String,
    /// TLS towards a TCP host.
    pub tls: TlsConfig,
    /// What `search_path` is set to; empty: what it is for the role.
    pub search_path: String,
    /// The replication slot, `[a-z0-9_]+`.
    pub slot: String,
    /// What the output plugin is asked for.
    pub output: Output,
    /// How long connecting, authenticating and starting may take.
    pub connect_timeout: Duration,
    /// How often the applied position is reported.
    pub status_interval: Duration,
    /// The connection is dead when nothing was received for this long.
    pub dead_after: Duration,
    /// Bytes of the largest message that is received as a whole.
    pub max_message: usize,
}

/// What the slot's output plugin is asked for.
#[derive(Debug, Clone)]
pub enum Output {
    /// pgoutput, protocol version 1.
    Pgoutput {
        /// The publications.
        publications: Vec<String>,
    },
    /// wal2json, format version 2.
    Wal2json {
        /// The tables whose rows are wanted, by schema and name; `None`: all.
        tables: Option<Vec<(String, String)>>,
    },
}

/// What ended the stream or kept it from starting.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The network.
    #[error("{doing}: {source}")]
    Io {
        /// Verb and object.
        doing: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// The server said no.
    #[error("{doing}: {message} (SQLSTATE {code})")]
    Server {
        /// Verb and object.
        doing: &'static str,
        /// SQLSTATE.
        code: String,
        /// The server's message.
        message: String,
    },
    /// Connecting or starting took too long.
    #[error("{doing}: no answer within {after:?}")]
    Timeout {
        /// Verb and object.
        doing: &'static str,
        /// The bound.
        after: Duration,
    },
    /// Nothing was received for too long.
    #[error("the replication connection is dead: nothing received for {0:?}")]
    Dead(Duration),
    /// The server ended the stream.
    #[error("the server ended the replication stream")]
    Ended,
    /// TLS, authentication, or bytes that are not of the protocol.
    #[error("{doing}: {source}")]
    Protocol {
        /// Verb and object.
        doing: &'static str,
        /// The cause.
        source: PgWireError,
    },
}

impl CaptureError {
    /// SQLSTATE, if the server gave one.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            CaptureError::Server { code, .. } => Some(code),
            _ => None,
        }
    }

    fn wire(doing: &'static str) -> impl Fn(PgWireError) -> CaptureError {
        move |source| match source {
            PgWireError::Io(io) => CaptureError::Io { doing, source: std::io::Error::new(io.kind(), io.to_string()) },
            source => CaptureError::Protocol { doing, source },
        }
    }

    fn io(doing: &'static str) -> impl Fn(std::io::Error) -> CaptureError {
        move |source| CaptureError::Io { doing, source }
    }

    fn server(doing: &'static str, payload: &[u8]) -> CaptureError {
        let fields = pgwire_replication::protocol::messages::ErrorFields::parse(payload);
        CaptureError::Server {
            doing,
            code: fields.code.unwrap_or_default(),
            message: fields.message.unwrap_or_else(|| "no message".into()),
        }
    }
}
