//! The transaction that everything is tried in: rolled back, and in bounded time.

use std::future::Future;
use std::time::{Duration, Instant};

use futures_util::future::join;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, IsolationLevel, Row, Statement, Transaction};
use tracing::debug;

use super::DryRunError;

/// From its begin to its end. Whoever wants the rows that it has changed waits that long.
const LIMIT: Duration = Duration::from_secs(10);
/// How much later than the server this side gives up: where the way to it is silent.
const GRACE: Duration = Duration::from_secs(1);
/// How much of the limit is so little that whatever was cancelled was cancelled for it.
const REST: Duration = Duration::from_millis(200);
/// How long it waits for others, and how long the server waits for this side.
const LIMITS: &str = "SET LOCAL lock_timeout = '2s'; SET LOCAL idle_in_transaction_session_timeout = '10s'";

/// A transaction that takes no longer than [`LIMIT`] in all, by the server's clock. It sees one state of the database
/// throughout: by READ COMMITTED, a row that somebody else has changed meanwhile would be changed as it is then, beside the
/// old row as it was before, or not at all.
pub(super) struct Trial<'c> {
    transaction: Transaction<'c>,
    end: Instant,
}

impl Trial<'_> {
    pub(super) async fn begin(client: &mut Client) -> Result<Trial<'_>, DryRunError> {
        let end = Instant::now() + LIMIT;
        let transaction = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start();
        let transaction = timeout(LIMIT + GRACE, transaction).await.map_err(|_| late())?;
        let trial = Trial { transaction: transaction.map_err(|error| said(&error))?, end };
        trial.limited(trial.transaction.batch_execute(LIMITS)).await?;
        Ok(trial)
    }

    /// Prepares a statement, with parameters of these types.
    pub(super) async fn prepare(&self, sql: &str, types: &[Type]) -> Result<Statement, DryRunError> {
        self.limited(self.transaction.prepare_typed(sql, types)).await
    }

    /// Runs one statement, or says that the database does not take it: then everything is as it was before.
    pub(super) async fn attempt(&self, sql: &str) -> Result<Option<Vec<Row>>, DryRunError> {
        self.limited(self.transaction.batch_execute("SAVEPOINT walcache")).await?;
        match self.query(sql, &[]).await {
            Ok(rows) => Ok(Some(rows)),
            // Another form would wait for the same lock, or for the same rows.
            Err(DryRunError::Refused(what, state)) if state != Some(SqlState::LOCK_NOT_AVAILABLE) => {
                debug!(what, "a form of the statement that is not taken");
                let back = timeout(GRACE, self.transaction.batch_execute("ROLLBACK TO walcache")).await;
                back.map_err(|_| late())?.map_err(|error| said(&error))?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Runs one statement: it goes through the extended protocol, which takes no more.
    pub(super) async fn query(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, DryRunError> {
        // By itself: what is left is reckoned anew.
        let statement = self.prepare(sql, &[]).await?;
        self.run(&statement, values).await
    }

    /// Runs a prepared statement.
    pub(super) async fn run(
        &self,
        statement: &Statement,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, DryRunError> {
        self.limited(self.transaction.query(statement, values)).await
    }

    /// Takes everything back. What fails here ends with the connection, and the transaction with it.
    pub(super) async fn end(self) {
        match timeout(GRACE, self.transaction.rollback()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "roll back"),
            Err(_) => debug!("roll back: no answer"),
        }
    }

    /// Each statement gets what is left: a limit for each by itself would be none for all.
    async fn limited<T>(&self, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, DryRunError> {
        let left = self.end.saturating_duration_since(Instant::now());
        let limit = match left.as_millis() {
            // Zero would mean no limit.
            0 => return Err(late()),
            millis => format!("SET LOCAL statement_timeout = {millis}"),
        };
        // Polled in this order, they are sent in this order.
        let both = join(self.transaction.batch_execute(&limit), work);
        let (limited, done) = timeout(left + GRACE, both).await.map_err(|_| late())?;
        limited.and(done).map_err(|error| {
            let cancelled = error.code() == Some(&SqlState::QUERY_CANCELED);
            let over = self.end.saturating_duration_since(Instant::now()) < REST;
            if cancelled && over { late() } else { said(&error) }
        })
    }
}

fn late() -> DryRunError {
    DryRunError::Late(LIMIT)
}

/// What the database says of an error.
pub(super) fn said(error: &tokio_postgres::Error) -> DryRunError {
    if let Some(&(SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED)) = error.code() {
        return DryRunError::Overtaken;
    }
    let said = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
    DryRunError::Refused(said, error.code().cloned())
}
