//! Reading the results of an entity's query, a statement for each key: what the query is cannot be told apart, so it cannot
//! be joined with many keys. The statements of a batch go over one connection, several at a time on their way.

use std::time::Instant;

use bytes::Bytes;
use deadpool_postgres::{Object, Pool};
use futures_util::{StreamExt, stream};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, Statement};

use super::{Found, MARGIN, Rows};
use crate::cache::answer::ReadError;
use crate::entity::query::{Query, ResultShape};
use crate::entity::{Entity, EntryKey, Shape};
use crate::key::KeyColumn;
use crate::lsn::Lsn;
use crate::source::text::{Text, of_oid};

/// Keys of one batch: they wait for each other.
pub const MAX_RESULTS: usize = 16;

/// Statements on their way at a time. They would still run on the server after their connection was given up.
const PIPELINED: usize = 4;

/// A value and where the log stood, or why there is none.
type Read = Result<(Lsn, Option<Bytes>), ReadError>;

/// The parameters' types, domains looked through.
fn types(key: &[KeyColumn]) -> Vec<Type> {
    key.iter().map(|column| of_oid(column.type_oid)).collect()
}

/// Closes the statements that were prepared for this text, which was made for that shape. They are found by their types, too:
/// only those of queries are prepared with any.
pub(super) fn forget(pool: &Pool, sql: &str, entity: &Entity, made_for: &Shape) {
    let types = if entity.query.is_some() { types(&made_for.key) } else { Vec::new() };
    pool.manager().statement_caches.remove(sql, &types);
}

impl Rows {
    /// As [`Rows::read`], of a query.
    pub(super) async fn read_results(
        &self,
        entity: &Entity,
        query: &Query,
        keys: &[&EntryKey],
        since: Instant,
    ) -> Result<Found, ReadError> {
        let shape = entity.shape();
        let (_, sql) = self.query(entity);
        let types = types(&shape.key);
        let (_turn, client) = self.connection(entity, since).await?;
        let deadline = tokio::time::Instant::now() + self.timeout + MARGIN;
        let values: Vec<Vec<Text>> = keys.iter().map(|key| parts(key)).collect();
        let prepared = client.prepare_typed_cached(&sql, &types);
        let prepared = tokio::time::timeout_at(deadline, prepared).await;
        let results: Vec<Read> = match prepared {
            Ok(Ok(statement)) => {
                let read =
                    One { rows: self, entity, client: &client, statement: &statement, deadline, shape: query.shape };
                let (read, values) = (&read, &values);
                stream::iter(0..values.len()).map(move |i| read.read(&values[i])).buffered(PIPELINED).collect().await
            }
            Ok(Err(error)) => return Err(self.refused(entity, &error)),
            Err(_) => keys.iter().map(|_| Err(ReadError::SourceTimeout(self.timeout))).collect(),
        };
        let is_late = tokio::time::Instant::now() >= deadline;
        if is_late {
            // Some of it may still be under way: the next read gets another connection.
            drop(Object::take(client));
        }
        if let Some(error) = whole(&results) {
            if is_late {
                // It has answered nothing at all.
                self.is_down();
            }
            return Err(error);
        }
        let mut found = Found { hi: Lsn::ZERO, values: Vec::with_capacity(keys.len()), refused: Vec::new() };
        for (i, result) in results.into_iter().enumerate() {
            match result {
                Ok((hi, value)) => {
                    found.hi = found.hi.max(hi);
                    found.values.push(value);
                }
                Err(error) => {
                    found.values.push(None);
                    found.refused.push((i, error));
                }
            }
        }
        Ok(found)
    }
}

/// The values of a key's parts.
fn parts(key: &EntryKey) -> Vec<Text> {
    crate::key::parts(key.key()).map(|part| Text(Some(part.into_owned().into_bytes()))).collect()
}

/// What reads one key after the other.
struct One<'a> {
    rows: &'a Rows,
    entity: &'a Entity,
    client: &'a Object,
    statement: &'a Statement,
    deadline: tokio::time::Instant,
    shape: ResultShape,
}

impl One<'_> {
    async fn read(&self, values: &[Text]) -> Read {
        if values.len() != self.statement.params().len() {
            // The request was parsed before the parameters' types changed.
            return Err(ReadError::Refused("the query's parameters have changed".into()));
        }
        let params: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
        let row = tokio::time::timeout_at(self.deadline, self.client.query_one(self.statement, &params)).await;
        let row = row.map_err(|_| ReadError::SourceTimeout(self.rows.timeout))?;
        value(&row.map_err(|error| self.rows.refused(self.entity, &error))?, self.shape)
    }
}

/// The error of all of them, where none was read and it is about more than their own keys.
fn whole(results: &[Read]) -> Option<ReadError> {
    let of_key = |error: &ReadError| matches!(error, ReadError::SeveralRows | ReadError::Refused(_));
    let first = results.first()?.as_ref().err()?;
    results.iter().all(|result| result.as_ref().is_err_and(|error| !of_key(error))).then(|| first.clone())
}

/// A value and where the log stood.
fn value(row: &Row, shape: ResultShape) -> Read {
    let unexpected = |_| ReadError::Refused("unexpected result".into());
    let rows: i64 = row.try_get("rows").map_err(unexpected)?;
    if shape == ResultShape::One && rows > 1 {
        return Err(ReadError::SeveralRows);
    }
    let hi: &str = row.try_get("hi").map_err(unexpected)?;
    let hi: Lsn = hi.parse().map_err(|_| ReadError::Refused("unexpected result".into()))?;
    let value: Option<&str> = row.try_get("value").map_err(unexpected)?;
    Ok((hi, value.map(|value| Bytes::copy_from_slice(value.as_bytes()))))
}
