//! Why a batch is not applied.

use redis::RedisError;

use crate::gate::GateError;
use crate::source::SourceError;

/// Why a batch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another instance leads.
    #[error("another instance has taken over: a higher epoch stands in L2")]
    Fenced,
    /// L2 shows less than it had acknowledged.
    #[error("L2 lost writes that it had acknowledged")]
    WentBack,
    /// Redis or the way there.
    #[error("write L2: {0}")]
    L2(#[source] RedisError),
    /// The source database.
    #[error("ask the source database: {0}")]
    Source(#[source] tokio_postgres::Error),
    /// The gate.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The catalog of the source database.
    #[error(transparent)]
    Catalog(#[from] SourceError),
    /// The table's partitions, or the columns of its key, are others than before: the stream starts again, so that they are
    /// known. What was not confirmed comes again under them.
    #[error("the rows of entity {0} are of other partitions, or of another key, than before")]
    StreamedOtherwise(String),
    /// The daemon is stopping.
    #[error("cancelled")]
    Cancelled,
}

impl From<RedisError> for ApplyError {
    fn from(error: RedisError) -> Self {
        match error.code() {
            Some("FENCED") => ApplyError::Fenced,
            Some("WENTBACK") => ApplyError::WentBack,
            _ => ApplyError::L2(error),
        }
    }
}
