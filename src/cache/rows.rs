//! Reading rows from Postgres by key, many at a time; or the results of queries.

mod results;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use deadpool_postgres::{Object, Pool, PoolError, TimeoutType};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_postgres::error::DbError;

pub use self::results::MAX_RESULTS;
use super::answer::ReadError;
use super::permits::{Permit, Permits, share};
use crate::entity::{Entity, EntryKey, Shape};
use crate::key::{KeyColumn, KeyType};
use crate::lsn::Lsn;
use crate::sql::quote_ident as quote;

const FILL: &str = include_str!("../../sql/fill.sql");

/// How long, in milliseconds, reads fail at once after Postgres could not be reached: those who wait for it would only
/// be told the same later.
const DOWN: u64 = 250;

/// How much longer than a statement may take the server's word on that is waited for, before its connection is given up.
const MARGIN: Duration = Duration::from_millis(500);

/// How often, in milliseconds, it is said of an entity that the database refuses its query.
const SAY: u64 = 10_000;

/// The rows of many keys, in one snapshot.
pub struct Found {
    /// Nothing committed after here is in the values.
    pub hi: Lsn,
    /// The values' JSON in the order of the keys; `None` for absent rows.
    pub values: Vec<Option<Bytes>>,
    /// Keys, by position, that have no value, and why: what is said of them in `values` means nothing.
    pub refused: Vec<(usize, ReadError)>,
}

/// An entity's query, and the shape that it was made for.
type Query = (Arc<Shape>, String);

/// The readers' way to Postgres.
pub struct Rows {
    pool: Pool,
    permits: Permits,
    /// By entity: how many connections it may use at a time. One whose table is locked leaves some to the others.
    connections: Vec<Semaphore>,
    timeout: Duration,
    origin: Instant,
    /// Milliseconds from `origin` until which Postgres is not tried again after it could not be reached.
    down_until: AtomicU64,
    /// By entity.
    queries: Mutex<Vec<Option<Query>>>,
    /// By entity: when it was last said that the database refuses its query, in milliseconds from `origin`; 0: never.
    said: Vec<AtomicU64>,
}

impl Rows {
    /// Over a pool of connections to the primary, whose sessions limit a statement to `timeout`; so long is a connection
    /// waited for, too.
    pub fn new(pool: Pool, permits: Permits, timeout: Duration) -> Self {
        let entities = permits.entities();
        let connections = share(pool.status().max_size, entities);
        Rows {
            pool,
            permits,
            connections: (0..entities).map(|_| Semaphore::new(connections)).collect(),
            timeout,
            origin: Instant::now(),
            down_until: AtomicU64::new(0),
            queries: Mutex::default(),
            said: (0..entities).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Who may read how much.
    pub(super) fn permits(&self) -> &Permits {
        &self.permits
    }

    /// How long one statement may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How many connections an entity may use at a time.
    pub(super) fn connections_each(&self) -> usize {
        share(self.pool.status().max_size, self.connections.len())
    }

    /// Whether readers use no more than half of the connections, and wait for none.
    pub(super) fn has_spare_connections(&self) -> bool {
        let pool = self.pool.status();
        let used = pool.size.saturating_sub(pool.available);
        pool.waiting == 0 && (2 * used <= pool.max_size || used == 0)
    }

    /// A permit to read `keys` keys where nobody waits for them: `None` while others need what there is.
    pub fn spare(&self, keys: usize) -> Option<Permit> {
        if self.pool.status().waiting > 0 { None } else { self.permits.spare(keys) }
    }

    /// Reads rows by key, under a permit for at least that many, over a connection that was made after `since`: older
    /// ones may lead to a server that is not followed any more.
    ///
    /// # Errors
    /// If Postgres cannot be reached, takes too long, or refuses the query.
    pub async fn read(
        &self,
        entity: &Entity,
        keys: &[&EntryKey],
        permit: &Permit,
        since: std::time::Instant,
    ) -> Result<Found, ReadError> {
        debug_assert!(keys.len() <= permit.keys(), "{} keys under a permit for {}", keys.len(), permit.keys());
        if self.now() < self.down_until.load(Ordering::Acquire) {
            return Err(ReadError::SourceUnavailable);
        }
        let attempt = async || match &entity.query {
            Some(query) => self.read_results(entity, query, keys, since).await,
            None => self.query_rows(entity, keys, since).await,
        };
        let found = match attempt().await {
            // Whoever it was given up for has gone on meanwhile.
            Err(ReadError::Contended(_)) => attempt().await,
            found => found,
        };
        if matches!(found, Err(ReadError::SourceUnavailable)) {
            self.is_down();
        }
        found
    }

    /// Milliseconds since this was made.
    fn now(&self) -> u64 {
        self.origin.elapsed().as_millis() as u64
    }

    /// Postgres as a whole does not answer; a statement that it has given up says nothing of others.
    fn is_down(&self) {
        self.down_until.store(self.now() + DOWN, Ordering::Release);
    }

    async fn query_rows(
        &self,
        entity: &Entity,
        keys: &[&EntryKey],
        since: std::time::Instant,
    ) -> Result<Found, ReadError> {
        let (width, query) = self.query(entity);
        let mut columns = vec![Vec::with_capacity(keys.len()); width];
        for key in keys {
            let parts: Vec<_> = crate::key::parts(key.key()).collect();
            if parts.len() != width {
                // The request was parsed before the table's key changed.
                return Err(ReadError::Refused("the key's columns have changed".into()));
            }
            for (column, part) in columns.iter_mut().zip(parts) {
                column.push(part.into_owned());
            }
        }
        let (_turn, client) = self.connection(entity, since).await?;
        let refused = |error: tokio_postgres::Error| self.refused(entity, &error);
        let work = async {
            let statement = client.prepare_cached(&query).await.map_err(refused)?;
            let params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = columns.iter().map(|c| c as _).collect();
            client.query(&statement, &params).await.map_err(refused)
        };
        // The session's own limit ends a statement that takes too long, and leaves nothing behind on the server.
        let rows = match tokio::time::timeout(self.timeout + MARGIN, work).await {
            Ok(rows) => rows?,
            Err(_silent) => {
                // It may never answer again: the next read gets another connection.
                drop(Object::take(client));
                self.is_down();
                return Err(ReadError::SourceTimeout(self.timeout));
            }
        };
        let unexpected = || ReadError::Refused("unexpected result".into());
        let mut found = Found { hi: Lsn::ZERO, values: vec![None; keys.len()], refused: Vec::new() };
        for row in rows {
            match row.try_get::<_, Option<i64>>("ord").map_err(refused)? {
                None => {
                    let hi: &str = row.try_get("hi").map_err(refused)?;
                    found.hi = hi.parse().map_err(|_| unexpected())?;
                }
                Some(ord) => {
                    let value: &str = row.try_get("value").map_err(refused)?;
                    let slot = usize::try_from(ord - 1).ok().and_then(|i| found.values.get_mut(i));
                    *slot.ok_or_else(unexpected)? = Some(Bytes::copy_from_slice(value.as_bytes()));
                }
            }
        }
        Ok(found)
    }

    /// One of the connections that the entity may use, which was made after `since`.
    async fn connection(
        &self,
        entity: &Entity,
        since: std::time::Instant,
    ) -> Result<(SemaphorePermit<'_>, Object), ReadError> {
        let connection = async {
            // Never closed.
            let turn = self.connections[entity.id].acquire().await.map_err(|_| ReadError::Overloaded)?;
            loop {
                let client = self.pool.get().await.map_err(|e| self.unavailable(entity, &e))?;
                if Object::metrics(&client).created >= since {
                    return Ok((turn, client));
                }
                drop(Object::take(client));
            }
        };
        let late = |_| Err(ReadError::Overloaded);
        tokio::time::timeout(self.timeout, connection).await.unwrap_or_else(late)
    }

    fn query(&self, entity: &Entity) -> (usize, String) {
        let shape = entity.shape();
        let mut queries = self.queries.lock();
        if queries.len() <= entity.id {
            queries.resize(entity.id + 1, None);
        }
        let width = shape.key.len();
        match &queries[entity.id] {
            Some((made_for, query)) if Arc::ptr_eq(made_for, &shape) => (width, query.clone()),
            known => {
                let query = match &entity.query {
                    // What its names stand for may be something else now, which a statement that is prepared does not notice.
                    Some(query) => format!("{}\n-- {:016x}", query.fill_statement(), shape.version),
                    None => fill_query(entity, &shape),
                };
                if let Some((made_for, before)) = known.as_ref().filter(|(_, before)| *before != query) {
                    results::forget(&self.pool, before, entity, made_for);
                }
                queries[entity.id] = Some((shape, query.clone()));
                (width, query)
            }
        }
    }

    fn unavailable(&self, entity: &Entity, error: &PoolError) -> ReadError {
        match error {
            PoolError::Timeout(TimeoutType::Wait) => ReadError::Overloaded,
            PoolError::Timeout(_) => {
                self.is_down();
                ReadError::SourceTimeout(self.timeout)
            }
            PoolError::Backend(e) => self.refused(entity, e),
            _ => ReadError::SourceUnavailable,
        }
    }

    fn refused(&self, entity: &Entity, error: &tokio_postgres::Error) -> ReadError {
        match error.code().map(|code| code.code()) {
            // Shutting down, starting up, too many connections, connection lost.
            None => ReadError::SourceUnavailable,
            Some(code) if code.starts_with("08") || code.starts_with("57P") || code.starts_with("53") => {
                ReadError::SourceUnavailable
            }
            // query_canceled: the session's limit on statements.
            Some("57014") => ReadError::SourceTimeout(self.timeout),
            // lock_not_available, deadlock_detected, serialization_failure.
            Some(code @ ("55P03" | "40P01" | "40001")) => ReadError::Contended(code.to_owned()),
            Some(code) => {
                self.say(entity, code, error);
                ReadError::Refused(code.to_owned())
            }
        }
    }

    /// Logs what the database has refused, not for each read.
    fn say(&self, entity: &Entity, sqlstate: &str, error: &tokio_postgres::Error) {
        let (now, said) = (self.now(), &self.said[entity.id]);
        let before = said.load(Ordering::Relaxed);
        let due = before == 0 || now.saturating_sub(before) >= SAY;
        if due && said.compare_exchange(before, now.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let (entity, error) = (entity.name.as_str(), error.as_db_error().map_or("", DbError::message));
            tracing::warn!(entity, sqlstate, error, "read rows: the database refused the query");
        }
    }
}

fn fill_query(entity: &Entity, shape: &Shape) -> String {
    let list = |items: Vec<String>, separator: &str| items.join(separator);
    let numbered = || shape.key.iter().enumerate();
    let table = format!("{}.{}", quote(&entity.schema), quote(&entity.table));
    let table = match &shape.published.row_filter {
        // In a query of its own, where no other name than the table's columns means anything.
        Some(filter) => {
            let columns = shape.columns.iter().map(|c| &c.name).chain(shape.key.iter().map(|k| &k.name));
            let columns: BTreeSet<String> = columns.map(|name| quote(name)).collect();
            let columns: Vec<String> = columns.into_iter().collect();
            format!("(SELECT {} FROM {table} WHERE {filter})", columns.join(", "))
        }
        None => table,
    };
    crate::sql::statement(FILL)
        .replace("{columns}", &list(shape.columns.iter().map(|c| format!("t.{}", quote(&c.name))).collect(), ", "))
        .replace("{keys}", &list(numbered().map(|(i, k)| format!("${}::text[]::{}[]", i + 1, k.cast)).collect(), ", "))
        .replace("{names}", &list(numbered().map(|(i, _)| format!("k{i}")).collect(), ", "))
        .replace("{condition}", &list(numbered().map(|(i, k)| format!("{} = k.k{i}", compared(k))).collect(), " AND "))
        // Last: a filter may hold any text.
        .replace("{table}", &table)
}

/// A key's column, as it is compared with values.
fn compared(key: &KeyColumn) -> String {
    let column = format!("t.{}", quote(&key.name));
    match key.key_type {
        // Of a domain the comparison of enums takes no notice.
        KeyType::Enum(_) => format!("{column}::{}", key.cast),
        _ => column,
    }
}
