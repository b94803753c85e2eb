//! The comparison at the end: every row through HTTP, and every entry in Redis, with Postgres.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio_postgres::Client;

use super::client::Http;
use super::error::DemoError;
use super::readers::Violations;
use super::shop::Table;
use crate::entity::Generation;
use crate::entry::{self, Stored};
use crate::lsn::Lsn;

/// Keys of one batch request, or of one MGET.
const BATCH: usize = 500;
/// No value of the shop is larger, in bytes.
const MAX_VALUE: usize = 1 << 20;
/// How long replication may take to catch up.
const LIMIT: Duration = Duration::from_secs(30);

/// What was compared.
#[derive(Debug, Default)]
pub struct Audit {
    /// How long replication took to catch up once nothing was written any more.
    pub caught_up: Duration,
    /// Keys read through HTTP.
    pub read: usize,
    /// Entries found in Redis.
    pub entries: usize,
    /// What differs.
    pub differences: Violations,
}

/// Rows by their keys.
type Rows = HashMap<(Table, String), String>;

/// Waits until replication has caught up, and compares. `gone` are keys that may have no row.
///
/// # Errors
/// If a server does not answer, or replication does not catch up.
pub async fn audit(
    source: &Client,
    l2: &mut redis::aio::MultiplexedConnection,
    http: &Http,
    admin: &Http,
    gone: HashSet<(Table, String)>,
) -> Result<Audit, DemoError> {
    let mut audit = Audit::default();
    let started = Instant::now();
    let lsn = catch_up(source, http).await?;
    audit.caught_up = started.elapsed();

    let before = rows(source).await?;
    let mut keys: HashMap<Table, Vec<String>> = HashMap::new();
    for (table, key) in before.keys().cloned().chain(gone).collect::<HashSet<_>>() {
        keys.entry(table).or_default().push(key);
    }
    let mut found: Vec<(&str, Table, String, Option<Bytes>)> = Vec::new();
    for (table, keys) in keys {
        for keys in keys.chunks(BATCH) {
            let (reply, items) = http.rows(table.entity(), keys, Some(lsn)).await?;
            let Some(items) = items else {
                let body = String::from_utf8_lossy(&reply.body);
                audit.differences.add(format!("a batch of {} was answered {}: {body}", table.entity(), reply.status));
                continue;
            };
            for (key, item) in keys.iter().zip(items) {
                match item.status {
                    200 | 404 => {
                        let value = item.value.map(|value| Bytes::copy_from_slice(value.get().as_bytes()));
                        found.push(("HTTP", table, key.clone(), value));
                    }
                    status => audit.differences.add(format!("{} {key} was answered {status}", table.entity())),
                }
            }
        }
    }
    audit.read = found.len();
    found.extend(entries(l2, admin).await?);
    audit.entries = found.len() - audit.read;
    let after = rows(source).await?;
    for (place, table, key, value) in found {
        let id = (table, key);
        // Somebody else may write; every write draws a new version, so that equal rows did not change in between.
        if before.get(&id) == after.get(&id) && !same(before.get(&id), value.as_deref()) {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let row = before.get(&id).map_or("no row", String::as_str);
            let value = value.map_or("no row".to_owned(), |value| text(&value));
            audit.differences.add(format!("{} {} in Postgres: {row}\n    {place}: {value}", table.entity(), id.1));
        }
    }
    Ok(audit)
}

async fn rows(source: &Client) -> Result<Rows, DemoError> {
    // One snapshot for all tables.
    source.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let mut rows = Rows::new();
    for table in Table::ALL {
        rows.extend(table.rows(source).await?.into_iter().map(|(key, row)| ((table, key), row)));
    }
    source.batch_execute("COMMIT").await?;
    Ok(rows)
}

/// Reads with `X-Min-LSN` until the answer comes from a cache that has applied everything written so far.
async fn catch_up(source: &Client, http: &Http) -> Result<Lsn, DemoError> {
    let row = source.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
    // Postgres prints LSNs that parse.
    let lsn: Lsn = row.get::<_, &str>(0).parse().unwrap_or_default();
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let reply = http.row(Table::Product.entity(), "1", Some(lsn)).await?;
        if reply.applied.is_some_and(|applied| applied >= lsn) {
            return Ok(lsn);
        }
    }
    Err(DemoError::Timeout("catch up with Postgres"))
}

/// Every servable entry in Redis.
async fn entries(
    l2: &mut redis::aio::MultiplexedConnection,
    admin: &Http,
) -> Result<Vec<(&'static str, Table, String, Option<Bytes>)>, DemoError> {
    let status: Value = serde_json::from_slice(&admin.get("/v1/status", None).await?.body)
        .map_err(|error| DemoError::Http(format!("GET /v1/status: {error}")))?;
    let generation = |table: Table| {
        let entities = status["entities"].as_array().into_iter().flatten();
        let entity = entities.into_iter().find(|e| e["name"] == table.entity());
        Generation(entity.and_then(|e| e["generation"].as_u64()).unwrap_or_default())
    };
    let generations: HashMap<Table, Generation> = Table::ALL.iter().map(|t| (*t, generation(*t))).collect();
    let mut found = Vec::new();
    // A scan may name a key more than once.
    let mut named = HashSet::new();
    let mut cursor = 0;
    loop {
        let (next, keys): (u64, Vec<String>) =
            redis::cmd("SCAN").arg(cursor).arg("COUNT").arg(BATCH).query_async(l2).await?;
        let keys: Vec<(Table, String)> =
            keys.iter().filter_map(|key| split(key)).filter(|key| named.insert(key.clone())).collect();
        if !keys.is_empty() {
            let mut get = redis::cmd("MGET");
            get.arg(keys.iter().map(|(table, key)| format!("{}:{key}", table.entity())).collect::<Vec<_>>());
            let values: Vec<Option<Vec<u8>>> = get.query_async(l2).await?;
            for ((table, key), value) in keys.into_iter().zip(values) {
                // A lease, and an entry of an older generation, is never served.
                if let Some(Stored::Entry(label, value)) = value.map(|value| entry::decode(value.into(), MAX_VALUE))
                    && label.generation >= generations[&table]
                {
                    found.push(("Redis", table, key, value));
                }
            }
        }
        cursor = next;
        if cursor == 0 {
            return Ok(found);
        }
    }
}

/// The entity and key of a key in Redis; `None` for the fence.
fn split(key: &str) -> Option<(Table, String)> {
    let (entity, key) = key.split_once(':')?;
    Table::ALL.into_iter().find(|table| table.entity() == entity).map(|table| (table, key.to_owned()))
}

/// Whether a cached value is the row.
fn same(row: Option<&String>, value: Option<&[u8]>) -> bool {
    match (row, value) {
        (None, None) => true,
        (Some(row), Some(value)) => {
            let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
            row.as_bytes() == value || json(row.as_bytes()).is_some_and(|row| json(value) == Some(row))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_as_json() {
        let row = Some(&"{\"id\":1, \"name\":\"a\"}".to_owned());
        assert!(same(row, Some(br#"{"id":1,"name":"a"}"#)));
        assert!(!same(row, Some(br#"{"id":1,"name":"b"}"#)));
        assert!(!same(row, None) && !same(None, Some(b"{}")) && same(None, None));
    }

    #[test]
    fn the_fence_is_no_entry() {
        assert_eq!(split("~walcache:fence"), None);
        assert_eq!(split("order_item:7,3"), Some((Table::OrderItem, "7,3".to_owned())));
    }
}
