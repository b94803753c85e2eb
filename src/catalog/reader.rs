//! Reading the catalog over one connection: each statement is prepared once, and each answer comes within a limit.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use crate::config::SourceConfig;
use crate::source::{self, SourceError};

/// Parameters of a statement.
pub(super) type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A connection for one pass over entities. Statements may be under way side by side: they are answered in their order.
pub(super) struct Reader<'c> {
    client: &'c Client,
    /// How long each answer may take. The server's own limit on statements does not help where the way to it is silent; and
    /// a limit on the whole would be one on the number of entities.
    limit: Duration,
    /// By its text; many entities are looked at by the same ones.
    prepared: Mutex<HashMap<&'static str, Arc<OnceCell<Statement>>>>,
}

impl Deref for Reader<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client
    }
}

impl<'c> Reader<'c> {
    pub(super) fn new(client: &'c Client, source: &SourceConfig) -> Self {
        Reader { client, limit: source.dead_after, prepared: Mutex::default() }
    }

    /// What is not one of its own statements, within the same limit.
    pub(super) async fn within<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        source::within(what, self.limit, work).await?
    }

    async fn prepared(&self, what: &'static str, sql: &'static str) -> Result<Statement, SourceError> {
        let cell = self.prepared.lock().entry(sql).or_default().clone();
        let prepare = || async { self.client.prepare(sql).await.map_err(|error| SourceError::postgres(what, error)) };
        cell.get_or_try_init(prepare).await.cloned()
    }
}

pub(super) async fn query(
    reader: &Reader<'_>,
    what: &'static str,
    sql: &'static str,
    with: Parameters<'_>,
) -> Result<Vec<Row>, SourceError> {
    let answer = async {
        let statement = reader.prepared(what, sql).await?;
        reader.client.query(&statement, with).await.map_err(|error| SourceError::postgres(what, error))
    };
    reader.within(what, answer).await
}

pub(super) async fn query_one(
    reader: &Reader<'_>,
    what: &'static str,
    sql: &'static str,
    with: Parameters<'_>,
) -> Result<Row, SourceError> {
    let answer = async {
        let statement = reader.prepared(what, sql).await?;
        reader.client.query_one(&statement, with).await.map_err(|error| SourceError::postgres(what, error))
    };
    reader.within(what, answer).await
}

pub(super) async fn query_opt(
    reader: &Reader<'_>,
    what: &'static str,
    sql: &'static str,
    with: Parameters<'_>,
) -> Result<Option<Row>, SourceError> {
    let answer = async {
        let statement = reader.prepared(what, sql).await?;
        reader.client.query_opt(&statement, with).await.map_err(|error| SourceError::postgres(what, error))
    };
    reader.within(what, answer).await
}
