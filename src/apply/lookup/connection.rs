//! The connection that lookups run on: one transaction a round.

use std::borrow::Cow;
use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::join3;
use futures_util::stream::{StreamExt, iter};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Row, Statement};

use crate::apply::batch::Lookup;
use crate::config::SourceConfig;
use crate::entity::query::Via;
use crate::entity::{Entity, EntryKey};
use crate::gate::Snapshot;
use crate::key::KeyError;
use crate::lsn::Lsn;
use crate::source::{self, Server, SourceError};

const BEGIN: &str = include_str!("../../../sql/lookup_begin.sql");
const VIEW: &str = include_str!("../../../sql/lookup_view.sql");
const LOOKUP: &str = include_str!("../../../sql/lookup.sql");
/// Lookups under way at a time, one after the other for the server.
const PIPELINED: usize = 16;

/// Why a lookup has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// No connection.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The database refused it, or gave it up after `apply.lookup_timeout`.
    #[error("run a lookup: {0}")]
    Refused(#[source] tokio_postgres::Error),
    /// They have taken longer than that in all.
    #[error("run lookups: not done within {0:?}")]
    Late(Duration),
    /// The connection has reached another server than the stream's.
    #[error("run lookups: source.url leads to another server than the one that is streamed")]
    Elsewhere,
    /// The server says something else than expected.
    #[error("run lookups: unexpected form {0:?}")]
    Form(String),
    /// The configuration knows no such rule.
    #[error("run a lookup: entity {0} has no such rule")]
    NoRule(String),
}

/// How to reach the server.
pub(super) struct Reach {
    pub(super) source: SourceConfig,
    /// The one that is streamed, where it tells.
    pub(super) server: Option<Server>,
    /// How long one lookup may take.
    pub(super) timeout: Duration,
}

/// What a round's snapshot sees.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) snapshot: Snapshot,
    /// Everything that it sees lies before.
    pub(super) end: Lsn,
}

impl LookupError {
    /// Whether the server has refused one statement, and goes on with others.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, LookupError::Refused(error) if error.code().is_some_and(|code| !code.code().starts_with("57P")))
            || matches!(self, LookupError::NoRule(_) | LookupError::Form(_))
    }

    /// Whether it was given up because it took too long.
    pub(super) fn is_late(&self) -> bool {
        match self {
            LookupError::Late(_) => true,
            LookupError::Refused(error) => error.code() == Some(&SqlState::QUERY_CANCELED),
            _ => false,
        }
    }
}

/// A connection, with the statements that were prepared there.
pub(super) struct Connection {
    client: Client,
    view: Statement,
    /// By entity and rule.
    rules: HashMap<(usize, usize), Statement>,
}

impl Connection {
    /// Connects.
    pub(super) async fn open(reach: &Reach) -> Result<Connection, LookupError> {
        let client = source::connect(&reach.source, Some(reach.timeout)).await?;
        let found = source::which_server(&client, reach.source.connect_timeout).await?;
        if let (Some(stream), Some(found)) = (&reach.server, &found)
            && (found.system.is_none() || !found.is(stream))
        {
            return Err(LookupError::Elsewhere);
        }
        let view = client.prepare(VIEW).await.map_err(LookupError::Refused)?;
        Ok(Connection { client, view, rules: HashMap::new() })
    }

    /// Whether it is of no use any more.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Takes the snapshot of a round.
    pub(super) async fn begin(&self) -> Result<View, LookupError> {
        let (begin, view) = (self.client.batch_execute(BEGIN), self.client.query_one(&self.view, &[]));
        // Polled in this order, they are sent in this order.
        let (begun, row, saved) = join3(begin, view, self.client.batch_execute("SAVEPOINT lookups")).await;
        begun.and(saved).map_err(LookupError::Refused)?;
        let row = row.map_err(LookupError::Refused)?;
        let text = |column| row.try_get::<_, &str>(column).map_err(LookupError::Refused);
        let (snapshot, end) = (text("snapshot")?, text("lsn")?);
        let form = |text: &str| LookupError::Form(text.to_owned());
        Ok(View {
            snapshot: Snapshot::parse(snapshot).ok_or_else(|| form(snapshot))?,
            end: end.parse().map_err(|_| form(end))?,
        })
    }

    /// Ends the round's transaction.
    pub(super) async fn end(&self) -> Result<(), LookupError> {
        self.client.batch_execute("COMMIT").await.map_err(LookupError::Refused)
    }

    /// Runs lookups in their order until one fails, and says which. Gives what each finds, at most `limit` keys, to `found` with
    /// the lookup's place, until that returns `false`.
    ///
    /// # Errors
    /// With the place of the lookup that has failed. Where the database has refused it, the round can be mended.
    pub(super) async fn run(
        &mut self,
        entities: &[Arc<Entity>],
        lookups: &[(Lookup, Lsn)],
        limit: usize,
        within: Duration,
        mut found: impl FnMut(usize, Vec<EntryKey>) -> bool,
    ) -> Result<(), (usize, LookupError)> {
        let mut at = 0;
        let work = async {
            for (i, (lookup, _)) in lookups.iter().enumerate() {
                at = i;
                self.prepare(&entities[lookup.entity], lookup.rule, limit).await?;
            }
            at = 0;
            let (client, rules) = (&self.client, &self.rules);
            let run = |(lookup, _): &(Lookup, Lsn)| {
                let statement = rules[&(lookup.entity, lookup.rule)].clone();
                let (entity, values) = (lookup.entity, lookup.values.clone());
                async move {
                    let values: Vec<Text> = values.into_iter().map(Text).collect();
                    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|v| v as _).collect();
                    (entity, client.query(&statement, &values).await)
                }
            };
            let mut answers = iter(lookups).map(run).buffered(PIPELINED);
            while let Some((entity, rows)) = answers.next().await {
                let rows = rows.map_err(LookupError::Refused)?;
                let keys = rows.iter().filter_map(|row| key(&entities[entity], row).transpose());
                if !found(at, keys.collect::<Result<_, _>>()?) {
                    break;
                }
                at += 1;
            }
            Ok(())
        };
        let ended = timeout(within, work).await.unwrap_or(Err(LookupError::Late(within)));
        ended.map_err(|error| (at, error))
    }

    /// Takes back that a statement has failed.
    pub(super) async fn mend(&self) -> Result<(), LookupError> {
        self.client.batch_execute("ROLLBACK TO SAVEPOINT lookups").await.map_err(LookupError::Refused)
    }

    async fn prepare(&mut self, entity: &Entity, rule: usize, limit: usize) -> Result<(), LookupError> {
        if self.rules.contains_key(&(entity.id, rule)) {
            return Ok(());
        }
        let statement = self.client.prepare(&statement(entity, rule, limit)?).await.map_err(LookupError::Refused)?;
        self.rules.insert((entity.id, rule), statement);
        Ok(())
    }
}

/// The statement of a rule's lookup, which gives at most `limit` keys.
///
/// # Errors
/// [`LookupError::NoRule`].
pub fn statement(entity: &Entity, rule: usize, limit: usize) -> Result<String, LookupError> {
    let via = entity.query.as_ref().and_then(|query| query.rules.get(rule)).map(|rule| &rule.via);
    let Some(Via::Lookup { sql, .. }) = via else { return Err(LookupError::NoRule(entity.name.clone())) };
    let parts = entity.shape().key.len();
    let list = |form: &dyn Fn(usize) -> String| (0..parts).map(form).collect::<Vec<_>>().join(", ");
    let template: Vec<&str> = LOOKUP.lines().filter(|line| !line.starts_with("--")).collect();
    Ok(template
        .join("\n")
        .replace("{columns}", &list(&|i| format!("found.k{i}::text")))
        .replace("{names}", &list(&|i| format!("k{i}")))
        .replace("{limit}", &limit.to_string())
        // Last: it may hold any text.
        .replace("{lookup}", sql))
}

/// The entry of a row of keys; `None` if it has none, because a part is NULL, or no request has such a key.
///
/// # Errors
/// If the row is none of keys.
pub fn key(entity: &Entity, row: &Row) -> Result<Option<EntryKey>, LookupError> {
    let part = |i| row.try_get::<_, Option<&str>>(i).map_err(LookupError::Refused);
    let parts: Vec<Option<&str>> = (0..row.len()).map(part).collect::<Result<_, _>>()?;
    let Some(parts) = parts.into_iter().map(|part| part.map(Cow::Borrowed)).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    match entity.key_of(&parts) {
        Ok(key) => Ok(Some(key)),
        // The entity's parameters are others than when the lookup was prepared.
        Err(error @ KeyError::Parts { .. }) => Err(LookupError::Form(error.to_string())),
        Err(_) => Ok(None),
    }
}

/// A value in the text form that the stream has it in.
#[derive(Debug)]
pub struct Text(pub Option<Vec<u8>>);

impl ToSql for Text {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Some(text) = &self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(text);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}
