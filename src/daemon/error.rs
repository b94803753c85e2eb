//! What ends the daemon, or a session of its stream.

use crate::apply::ApplyError;
use crate::capture::CaptureError;
use crate::capture::frames::STREAM;
use crate::catalog::Finding;
use crate::decode::{DecodeError, Problem};
use crate::gate::GateError;
use crate::serve::BindError;
use crate::source::{EXIT_CONFIG, SourceError, Verdict};

/// What ends the daemon.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A listener's address cannot be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The source database does not fit the configuration.
    #[error("the database is not ready for this configuration")]
    Findings(Vec<Finding>),
    /// The source database refuses us.
    #[error(transparent)]
    Source(SourceError),
    /// The stream cannot go on without an operator.
    #[error(transparent)]
    Session(SessionError),
    /// The URL of L2.
    #[error("[l2] url: {0}")]
    L2Url(#[source] redis::RedisError),
    /// The threads of the HTTP API cannot be started.
    #[error("serve HTTP: {0}")]
    Serve(#[source] std::io::Error),
    /// Metrics cannot be recorded.
    #[error("install the metrics recorder: {0}")]
    Metrics(String),
    /// Signals cannot be received.
    #[error("listen for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// A stage has a defect.
    #[error("a stage panicked: {0}")]
    Panicked(String),
    /// It was told to stop while starting.
    #[error("stopped while starting")]
    Stopped,
}

impl From<SourceError> for DaemonError {
    fn from(error: SourceError) -> Self {
        DaemonError::Source(error)
    }
}

/// What ends a session of the stream.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The source database.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The replication connection.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The gate.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// Writing the tiers.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The stream's bytes.
    #[error("decode the stream: {0}")]
    Decode(#[from] DecodeError),
    /// A stage has a defect.
    #[error("a stage panicked: {0}")]
    Panicked(String),
}

impl SessionError {
    /// Whether another session may go better, or what somebody must do.
    pub fn verdict(&self) -> Verdict {
        let operator = |remedy: &str| Verdict::Operator { remedy: remedy.to_owned(), exit_code: EXIT_CONFIG };
        let sqlstate = match self {
            // What the plugin is asked for is fixed: it does not know it.
            SessionError::Capture(e) if e.sqlstate() == Some("22023") => {
                return operator("install wal2json 2.5 or later, or use source.plugin = \"pgoutput\"");
            }
            SessionError::Decode(DecodeError { problem: Problem::TooOld(_), .. }) => {
                return operator("install wal2json 2.5 or later, or use source.plugin = \"pgoutput\"");
            }
            SessionError::Source(e) => return e.verdict(),
            SessionError::Capture(e) => e.sqlstate(),
            SessionError::Gate(GateError::Source(e)) | SessionError::Apply(ApplyError::Source(e)) => {
                e.code().map(tokio_postgres::error::SqlState::code)
            }
            SessionError::Apply(ApplyError::Catalog(e)) => return e.verdict(),
            _ => None,
        };
        sqlstate.map_or(Verdict::Retry, Verdict::of_sqlstate)
    }

    /// Whether it was told to end before it had finished.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, SessionError::Apply(ApplyError::Cancelled))
    }

    /// Whether a publication was missing when a change was made that came next in the stream.
    pub fn is_publication_missing(&self) -> bool {
        let SessionError::Capture(CaptureError::Server { doing, code, .. }) = self else { return false };
        // While it starts, the same says that there is no slot.
        *doing == STREAM && code == "42704"
    }

    /// Whether another consumer holds the slot.
    pub fn is_slot_in_use(&self) -> bool {
        matches!(self, SessionError::Capture(e) if e.sqlstate() == Some("55006"))
    }
}
