//! Private throw-away servers: a Postgres and a Redis that nobody else sees, for `walcache demo`, the integration
//! tests and the benches.
//!
//! Each server lives in a directory of its own below the temporary directory, listens on 127.0.0.1 only, and is
//! gone with that directory when its value is dropped, when the process ends, and also when the process is killed
//! (see [`Supervised`] for how). Nothing of the system's own servers is used or changed.

mod binaries;
mod ports;
mod postgres;
mod process_table;
mod redis;
mod supervised;

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

pub use self::ports::free_port;
pub use self::postgres::{Postgres, PostgresOptions, StopMode};
pub use self::redis::{Redis, RedisOptions, RedisStop, Restart};
pub use self::supervised::{LastSignal, Signal, Supervised, User};

/// Why a private server could not be started, reached or stopped.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The server is not installed where we look.
    #[error("{program} not found (looked in {looked}): run scripts/install-servers, or install {remedy}")]
    MissingBinary {
        /// The program that is missing.
        program: &'static str,
        /// Every place where it was looked for.
        looked: String,
        /// The packages that bring it.
        remedy: &'static str,
    },
    /// Postgres refuses to run as root, and there is nobody else to run it as.
    #[error("Postgres does not run as root, and this system has neither a user `postgres` nor `nobody`")]
    NoUser,
    /// A file or process operation failed.
    #[error("{action} ({})", path.display())]
    Io {
        /// What was tried, as verb and object.
        action: &'static str,
        /// The file, directory or program.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A tool or server ended where it should not have.
    #[error("{program} ended with {status}; its output ends:\n{log}")]
    Exited {
        /// Which program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote.
        log: String,
    },
    /// A server did not get where it should within the limit.
    #[error("{program} did not {goal} within {limit:?}; its output ends:\n{log}")]
    Timeout {
        /// Which program.
        program: &'static str,
        /// What was waited for.
        goal: &'static str,
        /// How long.
        limit: Duration,
        /// The last lines it wrote.
        log: String,
    },
    /// The operation needs a running server.
    #[error("{0} is not running")]
    NotRunning(&'static str),
    /// The server runs already.
    #[error("{0} is already running")]
    AlreadyRunning(&'static str),
    /// The private Postgres refused a connection or a statement.
    #[error("use the private Postgres")]
    Postgres(#[from] tokio_postgres::Error),
    /// The private Redis refused a connection or a command.
    #[error("use the private Redis")]
    Redis(#[from] ::redis::RedisError),
}

impl SandboxError {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SandboxError {
        let path = path.into();
        move |source| SandboxError::Io { action, path, source }
    }
}
