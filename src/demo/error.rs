//! What keeps the demo from going on.

use crate::catalog::Finding;
use crate::config::ConfigError;
use crate::daemon::DaemonError;
use crate::sandbox::SandboxError;
use crate::setup::SetupError;
use crate::source::SourceError;

/// Why the demo ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A private server.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The configuration made for it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The private Postgres refused the setup.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The shop cannot be served.
    #[error("the shop's schema cannot be served: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Setup(Vec<Finding>),
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// A statement of the shop.
    #[error("write to the shop")]
    Postgres(#[from] tokio_postgres::Error),
    /// A command to the private Redis.
    #[error("read the private Redis")]
    Redis(#[from] redis::RedisError),
    /// A request that got no response.
    #[error("{0}")]
    Http(String),
    /// A file of the demo's own.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The daemon did not get there in time.
    #[error("walcache did not {0} in time")]
    Timeout(&'static str),
    /// A task of the demo panicked.
    #[error("a task of the demo panicked: {0}")]
    Panicked(String),
}

impl From<SetupError> for DemoError {
    fn from(error: SetupError) -> Self {
        match error {
            SetupError::Source(error) => DemoError::Source(error),
            SetupError::Refused(findings) => DemoError::Setup(findings),
        }
    }
}

impl From<tokio::task::JoinError> for DemoError {
    fn from(error: tokio::task::JoinError) -> Self {
        DemoError::Panicked(error.to_string())
    }
}
