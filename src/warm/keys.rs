//! Which keys are warmed: read from Postgres page by page, each from the last key of the one before on.
//!
//! One connection of its own for all entities together: a filter without an index takes long, and must not take it from
//! readers. Each statement runs in a transaction that can only read and is rolled back, so that what an operator writes
//! leaves nothing behind, not even a setting; and it is cancelled where nobody waits for it any more. No snapshot is held
//! from one page to the next: keys that come and go meanwhile are found or not, and the events on them see to their
//! entries.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::config::{SourceConfig, WarmOrder};
use crate::entity::{Entity, EntryKey, Shape};
use crate::source::{self, Canceller, Followed, SourceError};
use crate::sql::quote_ident as quote;

const PAGE: &str = include_str!("../../sql/warm_keys.sql");

/// How long a page may take, the whole of a query that gives keys among it.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a table that is locked is waited for, in Postgres' words: others wait for the connection.
const LOCK_TIMEOUT: &str = "2s";

/// How much longer the server's word on that is waited for.
const MARGIN: Duration = Duration::from_secs(2);

/// Which of an entity's keys are meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Which {
    /// Those of the table's rows for which a condition holds, in SQL over its columns; of all rows without one.
    Rows(Option<String>),
    /// Those that a SELECT gives, in the order of the key's columns.
    Select(String),
}

/// A page of keys.
#[derive(Debug, Default)]
pub struct Page {
    /// Those that can be keys of the entity.
    pub keys: Vec<EntryKey>,
    /// How many were found that cannot: too long, or a text that no request spells.
    pub strange: u64,
    /// The last key's columns, as they were read; `None` if nothing was found.
    pub last: Option<Vec<String>>,
    /// Whether there may be more.
    pub more: bool,
    /// How long Postgres took.
    pub took: Duration,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It may go better the next time.
    #[error("{0}")]
    Away(SourceError),
    /// Postgres refuses the statement.
    #[error("{0}")]
    Refused(String),
}

/// Reads keys.
pub struct Keys {
    config: SourceConfig,
    followed: Arc<Followed>,
    session: Mutex<Option<Session>>,
}

/// A connection.
struct Session {
    client: Client,
    canceller: Canceller,
    made: Instant,
}

/// A statement that is under way. Dropped before its end, it is cancelled on the server.
struct Statement(Option<Canceller>);

impl Drop for Statement {
    fn drop(&mut self) {
        if let Some(canceller) = self.0.take() {
            canceller.cancel();
        }
    }
}

const WHAT: &str = "read keys to warm";

impl Keys {
    /// Of the server that is followed.
    pub fn new(config: SourceConfig, followed: Arc<Followed>) -> Self {
        Keys { config, followed, session: Mutex::default() }
    }

    /// How many keys Postgres' planner expects, of `limit` at most. It runs nothing, but looks at the whole statement; and it
    /// waits for nobody else's page.
    ///
    /// # Errors
    /// As [`Keys::page`].
    pub async fn estimate(
        &self,
        entity: &Entity,
        (which, order): (&Which, WarmOrder),
        limit: u64,
        since: Instant,
    ) -> Result<u64, KeysError> {
        let statement = statement(entity, &entity.shape(), which, order, false, limit);
        let statement = format!("EXPLAIN (FORMAT JSON) {statement}");
        let rows = match self.session.try_lock() {
            Ok(mut kept) => self.query(&mut kept, since, &statement, &[]).await?,
            Err(_under_way) => self.query(&mut None, since, &statement, &[]).await?,
        };
        let plan: serde_json::Value = rows.first().and_then(|row| row.try_get(0).ok()).unwrap_or_default();
        // The planner's estimates are at least 1; without one, all that may come is expected.
        Ok(plan[0]["Plan"]["Plan Rows"].as_f64().map_or(limit, |rows| rows as u64).min(limit))
    }

    /// The next page: up to `limit` keys after `after`.
    ///
    /// # Errors
    /// If Postgres is away, or refuses the statement.
    pub async fn page(
        &self,
        entity: &Entity,
        (which, order): (&Which, WarmOrder),
        after: Option<&[String]>,
        limit: u64,
        since: Instant,
    ) -> Result<Page, KeysError> {
        let shape = entity.shape();
        let width = shape.key.len();
        if after.is_some_and(|after| after.len() != width) {
            return Err(KeysError::Refused("the key's columns have changed".to_owned()));
        }
        let statement = statement(entity, &shape, which, order, after.is_some(), limit);
        let params: Vec<&(dyn ToSql + Sync)> = after.iter().flat_map(|after| after.iter()).map(|v| v as _).collect();
        let mut kept = self.session.lock().await;
        let began = Instant::now();
        let rows = self.query(&mut kept, since, &statement, &params).await?;
        drop(kept);
        let mut page = Page { more: rows.len() as u64 >= limit, took: began.elapsed(), ..Page::default() };
        for row in rows {
            let values: Result<Vec<String>, _> = (0..width).map(|column| row.try_get(column)).collect();
            let Ok(values) = values else {
                return Err(KeysError::Refused("the key's columns cannot be read as text".to_owned()));
            };
            match entity.key_of(&values.iter().map(|value| Cow::Borrowed(value.as_str())).collect::<Vec<_>>()) {
                Ok(key) => page.keys.push(key),
                Err(_) => page.strange += 1,
            }
            page.last = Some(values);
        }
        Ok(page)
    }

    /// Over the connection that is kept, if it was made after `since`, or a new one, which is kept then.
    async fn query(
        &self,
        kept: &mut Option<Session>,
        since: Instant,
        statement: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, KeysError> {
        // Taken out meanwhile: if this future is dropped, an answer may be on its way that the next one must not read.
        let mut session = match kept.take().filter(|session| !session.client.is_closed() && session.made >= since) {
            Some(session) => session,
            None => self.connect().await.map_err(KeysError::Away)?,
        };
        let mut under_way = Statement(Some(session.canceller.clone()));
        let after = STATEMENT_TIMEOUT + MARGIN;
        let late = |_| KeysError::Away(SourceError::Timeout { what: WHAT, after });
        let rows =
            tokio::time::timeout(after, read_only(&mut session.client, statement, params)).await.map_err(late)?;
        under_way.0 = None;
        if !session.client.is_closed() {
            *kept = Some(session);
        }
        rows.map_err(|error| refused(WHAT, error))
    }

    async fn connect(&self) -> Result<Session, SourceError> {
        let made = Instant::now();
        let client = source::connect(&self.config, Some(STATEMENT_TIMEOUT)).await?;
        let server = source::which_server(&client, self.config.dead_after).await?;
        if !self.followed.admits(server.as_ref()) {
            return Err(SourceError::Moved);
        }
        let pins = format!("SET default_transaction_read_only = on; SET lock_timeout = '{LOCK_TIMEOUT}'");
        let pinned = client.batch_execute(&pins).await;
        pinned.map_err(|error| SourceError::postgres("prepare to read keys", error))?;
        let canceller = Canceller::new(&self.config, &client)?;
        Ok(Session { client, canceller, made })
    }
}

/// Runs a statement in a transaction of its own, which can only read. In it that cannot be changed any more once a
/// statement has begun, and what a function sets is set back; advisory locks that it takes are given back.
async fn read_only(
    client: &mut Client,
    statement: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let transaction = client.build_transaction().read_only(true).start().await?;
    let rows = transaction.query(statement, params).await;
    let ended = transaction.rollback().await;
    // Of all that a transaction can do that only reads, this alone outlives it: also where the statement has failed.
    let unlocked = client.batch_execute("SELECT pg_advisory_unlock_all()").await;
    let rows = rows?;
    ended.and(unlocked)?;
    Ok(rows)
}

/// What Postgres says of a statement goes back to whoever wrote it; anything else may pass.
fn refused(what: &'static str, error: tokio_postgres::Error) -> KeysError {
    let Some(db) = error.as_db_error() else { return KeysError::Away(SourceError::postgres(what, error)) };
    let code = db.code().code();
    // Connections, resources, the server's own state, and conflicts with others: locks that are not given in time, too.
    if ["08", "53", "57P", "58", "XX", "40", "55P03"].iter().any(|class| code.starts_with(class)) {
        return KeysError::Away(SourceError::postgres(what, error));
    }
    let hint = db.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    KeysError::Refused(format!("{}{hint}, SQLSTATE {code}", db.message()))
}

/// The statement that gives an entity's first page, of `limit` keys.
pub fn first_page(entity: &Entity, which: &Which, order: WarmOrder, limit: u64) -> String {
    statement(entity, &entity.shape(), which, order, false, limit)
}

/// A SELECT of the key's columns, without order. What others wrote ends with its line: it may end with a comment.
fn source(entity: &Entity, shape: &Shape, which: &Which) -> String {
    let condition = match which {
        Which::Select(select) => {
            // As the key's own types: else other texts would be compared, in another order.
            let columns =
                |text: &dyn Fn(usize) -> String| (0..shape.key.len()).map(text).collect::<Vec<_>>().join(", ");
            let (cast, names) = (columns(&|i| format!("s.k{i}::{}", shape.key[i].cast)), columns(&|i| format!("k{i}")));
            return format!("SELECT {cast} FROM ({}\n) AS s({names})", select.trim().trim_end_matches(';'));
        }
        Which::Rows(condition) => condition,
    };
    let columns: Vec<String> = shape.key.iter().map(|key| quote(&key.name)).collect();
    let mut select = format!("SELECT {} FROM {}.{}", columns.join(", "), quote(&entity.schema), quote(&entity.table));
    let conditions: Vec<&str> =
        [shape.published.row_filter.as_deref(), condition.as_deref()].into_iter().flatten().collect();
    if !conditions.is_empty() {
        select.push_str(&format!(" WHERE ({}\n)", conditions.join("\n) AND (")));
    }
    select
}

fn statement(entity: &Entity, shape: &Shape, which: &Which, order: WarmOrder, goes_on: bool, limit: u64) -> String {
    let each = |text: &dyn Fn(usize) -> String| (0..shape.key.len()).map(text).collect::<Vec<_>>().join(", ");
    let (sign, direction) = match order {
        WarmOrder::Asc => (">", "ASC"),
        WarmOrder::Desc => ("<", "DESC"),
    };
    let columns = each(&|i| format!("t.k{i}"));
    let mut conditions = Vec::new();
    if goes_on {
        let last = each(&|i| format!("${}::text::{}", i + 1, shape.key[i].cast));
        conditions.push(format!("({columns}) {sign} ({last})"));
    }
    if matches!(which, Which::Select(_)) {
        // What has a null is no key, and nothing comes after it.
        conditions.push(format!("({columns}) IS NOT NULL"));
    }
    let after = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") };
    crate::sql::statement(PAGE)
        .replace("{columns}", &each(&|i| format!("t.k{i}::text")))
        .replace("{names}", &each(&|i| format!("k{i}")))
        .replace("{after}", &after)
        .replace("{order}", &each(&|i| format!("t.k{i} {direction}")))
        .replace("{limit}", &limit.min(i64::MAX as u64).to_string())
        // Last: what an operator wrote may hold any text.
        .replace("{source}", &source(entity, shape, which))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::{Definition, Published};
    use crate::key::{KeyColumn, KeyType};

    fn entity(row_filter: Option<&str>) -> Entity {
        let column = |name: &str, cast: &str| KeyColumn {
            name: name.into(),
            type_oid: 0,
            key_type: KeyType::Text,
            cast: cast.into(),
        };
        let shape = Shape {
            key: vec![column("a", "pg_catalog.int4"), column("B b", "pg_catalog.text")],
            published: Published { row_filter: row_filter.map(str::to_owned), version: 0 },
            ..Shape::unknown(0)
        };
        Entity::new(0, Definition::rows("row", "public", "My rows"), "", shape)
    }

    #[test]
    fn pages_go_on_after_the_last_key() {
        let entity = entity(Some("a > 0"));
        let which = Which::Rows(Some("x = 1 -- the {limit}".into()));
        let text = statement(&entity, &entity.shape(), &which, WarmOrder::Desc, true, 500);
        assert_eq!(
            text,
            "SELECT t.k0::text, t.k1::text\nFROM (SELECT \"a\", \"B b\" FROM \"public\".\"My rows\" WHERE (a > 0\n) AND \
             (x = 1 -- the {limit}\n)\n) AS t(k0, k1)\nWHERE (t.k0, t.k1) < ($1::text::pg_catalog.int4, \
             $2::text::pg_catalog.text)\nORDER BY t.k0 DESC, t.k1 DESC\nLIMIT 500"
        );
        let select = Which::Select(" select 1, 'x'; ".into());
        let text = statement(&entity, &entity.shape(), &select, WarmOrder::Asc, false, 1);
        assert!(
            text.contains("FROM (select 1, 'x'\n) AS s(k0, k1)\n) AS t(k0, k1)\nWHERE (t.k0, t.k1) IS NOT NULL\n"),
            "{text}"
        );
        let text = statement(&entity, &entity.shape(), &select, WarmOrder::Asc, true, 1);
        let after = "WHERE (t.k0, t.k1) > ($1::text::pg_catalog.int4, $2::text::pg_catalog.text) AND (t.k0, t.k1) IS NOT NULL\n";
        assert!(text.contains(after), "{text}");
        assert!(source(&entity, &entity.shape(), &Which::Rows(None)).ends_with("\"My rows\" WHERE (a > 0\n)"));
    }
}
