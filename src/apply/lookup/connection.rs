//! The connection that lookups run on: one transaction a round.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join3;
use futures_util::stream::{StreamExt, iter};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::statement::{key, statement};
use crate::apply::batch::Lookup;
use crate::config::SourceConfig;
use crate::entity::{Entity, EntryKey, Shape};
use crate::gate::Snapshot;
use crate::lsn::Lsn;
use crate::source::text::Text;
use crate::source::{self, Server, SourceError};

const BEGIN: &str = include_str!("../../../sql/lookup_begin.sql");
const VIEW: &str = include_str!("../../../sql/lookup_view.sql");
const EMPTIED: &str = include_str!("../../../sql/lookup_emptied.sql");
/// Lookups under way at a time, one after the other for the server.
const PIPELINED: usize = 16;
/// How long a table that is locked is waited for. Others wait for these lookups.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_millis(100);
/// From then on in the same transaction, in milliseconds: what is locked once is mostly locked for the next one, too.
const IMPATIENCE: u32 = 1;

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

    /// Whether one of its tables is locked.
    pub(super) fn is_locked(&self) -> bool {
        matches!(self, LookupError::Refused(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
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
    emptied: Statement,
    /// By entity and rule, with the shape that it was prepared for: another one may stand for other types, or tables.
    rules: HashMap<(usize, usize), (Arc<Shape>, Statement)>,
    /// Whether a table was locked in the transaction that is open.
    is_impatient: bool,
}

impl Connection {
    /// Connects, in `connect_timeout`.
    pub(super) async fn open(reach: &Reach) -> Result<Connection, LookupError> {
        let patience = reach.source.connect_timeout;
        timeout(patience, Connection::connect(reach)).await.unwrap_or(Err(LookupError::Late(patience)))
    }

    async fn connect(reach: &Reach) -> Result<Connection, LookupError> {
        let client = source::connect(&reach.source, Some(reach.timeout)).await?;
        let found = source::which_server(&client, reach.source.connect_timeout).await?;
        if let (Some(stream), Some(found)) = (&reach.server, &found)
            && (found.system.is_none() || !found.is(stream))
        {
            return Err(LookupError::Elsewhere);
        }
        let set = format!("SET lock_timeout = {}", LOCK_PATIENCE.min(reach.timeout).as_millis().max(1));
        client.batch_execute(&set).await.map_err(LookupError::Refused)?;
        let view = client.prepare(VIEW).await.map_err(LookupError::Refused)?;
        let emptied = client.prepare(EMPTIED).await.map_err(LookupError::Refused)?;
        Ok(Connection { client, view, emptied, rules: HashMap::new(), is_impatient: false })
    }

    /// Whether it is of no use any more.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Takes the snapshot of a round.
    pub(super) async fn begin(&mut self) -> Result<View, LookupError> {
        self.is_impatient = false;
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

    /// Runs lookups in their order until one fails, and says which. Gives what each finds to `found` with the lookup's place, until
    /// that returns `false`: how many rows, `limit` at most, and the keys of those that have one.
    ///
    /// # Errors
    /// With the place of the lookup that has failed. Where the database has refused it, the round can be mended.
    pub(super) async fn run(
        &mut self,
        entities: &[Arc<Entity>],
        lookups: &[(Lookup, Lsn)],
        limit: usize,
        within: Duration,
        mut found: impl FnMut(usize, usize, Vec<EntryKey>) -> bool,
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
                // Each was prepared above.
                let (_, statement) = &rules[&(lookup.entity, lookup.rule)];
                let (statement, entity, values) = (statement.clone(), lookup.entity, lookup.values.clone());
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
                if !found(at, rows.len(), keys.collect::<Result<_, _>>()?) {
                    break;
                }
                at += 1;
            }
            Ok(())
        };
        let ended = timeout(within, work).await.unwrap_or(Err(LookupError::Late(within)));
        ended.map_err(|error| {
            if let Some((lookup, _)) = lookups.get(at) {
                // Perhaps it is right when it is prepared anew.
                self.rules.remove(&(lookup.entity, lookup.rule));
            }
            (at, error)
        })
    }

    /// Those of these tables, each with its partitions, of which lookups of this round may not have found what its snapshot sees.
    /// A statement locks the tables that it reads, so what it has found is judged by a look that comes after it.
    ///
    /// # Errors
    /// If the database does not tell.
    pub(super) async fn emptied(&self, tables: &[u32]) -> Result<Vec<u32>, LookupError> {
        let rows = self.client.query(&self.emptied, &[&tables]).await.map_err(LookupError::Refused)?;
        rows.iter().map(|row| row.try_get(0).map_err(LookupError::Refused)).collect()
    }

    /// Takes back that a statement has failed.
    pub(super) async fn mend(&mut self, failed: &LookupError) -> Result<(), LookupError> {
        const MEND: &str = "ROLLBACK TO SAVEPOINT lookups";
        self.is_impatient |= failed.is_locked();
        let mended = match self.is_impatient {
            // Which takes back such settings, too.
            true => self.client.batch_execute(&format!("{MEND}; SET LOCAL lock_timeout = {IMPATIENCE}")).await,
            false => self.client.batch_execute(MEND).await,
        };
        mended.map_err(LookupError::Refused)
    }

    async fn prepare(&mut self, entity: &Entity, rule: usize, limit: usize) -> Result<(), LookupError> {
        let (shape, place) = (entity.shape(), (entity.id, rule));
        if self.rules.get(&place).is_some_and(|(made_for, _)| Arc::ptr_eq(made_for, &shape)) {
            return Ok(());
        }
        let (sql, types) = statement(entity, &shape, rule, limit)?;
        let statement = self.client.prepare_typed(&sql, &types).await.map_err(LookupError::Refused)?;
        self.rules.insert(place, (shape, statement));
        Ok(())
    }
}
