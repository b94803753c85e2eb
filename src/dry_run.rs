//! A dry run of a change: which entries of which entities it would touch, by which rule.
//!
//! The change is made in a transaction that is rolled back, or is only thought of; what it would put into the log goes the
//! way of the real one, through the planner, once for each rule by itself. Nothing is written, neither to Postgres nor to
//! Redis. What a trigger or a cascade changes beside the named table is not seen, nor are publications' row filters.

mod relation;
mod statement;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use tokio_postgres::Client;
use tracing::debug;

use self::relation::{Changed, Table};
use crate::apply::lookup::{self, LookupError, Text};
use crate::catalog;
use crate::config::{Config, TableName};
use crate::entity::query::{Query, QueryFacts, Via};
use crate::entity::{Entity, Standing};
use crate::plan::{Effect, Planner};
use crate::source::SourceError;

/// Rows of which the effects are told.
const MAX_ROWS: usize = 1000;
/// Keys that one lookup may find.
const MAX_KEYS: usize = 10_000;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DryRunError {
    /// The source cannot be asked.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The database refuses the statement.
    #[error("the database refuses the statement: {0}")]
    Refused(String),
    /// It is none that changes rows.
    #[error(
        "{0} is no single INSERT, UPDATE or DELETE without RETURNING: of other statements, ask for rows with --table and --key"
    )]
    NoChange(String),
    /// There is no such table, or none of the configuration's.
    #[error("{0}")]
    Table(String),
    /// The key is none of the table's.
    #[error("{0}")]
    Key(String),
    /// A rule's lookup.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

/// What a change would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Each changed row.
    pub rows: Vec<RowReport>,
    /// Rows of which nothing is told: there are too many.
    pub left_out: usize,
    /// Entities that are not cached now, and why.
    pub uncached: Vec<String>,
}

/// What the change of one row would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowReport {
    /// `insert`, `update` or `delete`.
    pub op: &'static str,
    /// The table, as the stream names it.
    pub table: String,
    /// The row's primary key, as `id=42`; of an update that changes it, before and after.
    pub row: String,
    /// What it would do.
    pub effects: Vec<Consequence>,
}

/// What would become of one entry, or of all of an entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Consequence {
    /// The entity.
    pub entity: String,
    /// The key within it; `None`: all of its entries.
    pub key: Option<String>,
    /// `put`, `void` or `requery`: written if it is cached, dropped, or dropped and read again if it was cached.
    pub effect: &'static str,
    /// What of the configuration says so.
    pub rule: String,
}

/// One entity with one of its rules.
struct Probe {
    entity: Arc<Entity>,
    rule: String,
    lookup: bool,
}

/// What the statement would do.
///
/// # Errors
/// [`DryRunError`].
pub async fn of_statement(client: &mut Client, config: &Config, sql: &str) -> Result<Report, DryRunError> {
    let (probes, uncached) = probes(client, config).await?;
    let transaction = statement::begin(client).await?;
    let target = statement::target(&transaction, sql).await?;
    let table = Table::read(transaction.client(), &target.table).await?;
    let changed = statement::run(&transaction, sql, &target, &table).await?;
    let report = report(transaction.client(), &probes, uncached, &table, changed).await;
    if let Err(error) = transaction.rollback().await {
        // The connection is dropped, and with it the transaction.
        debug!(%error, "roll back");
    }
    report
}

/// What an update that changes nothing else, and a delete, of one row would do. `key` is its primary key, spelled as in
/// URLs.
///
/// # Errors
/// [`DryRunError`].
pub async fn of_row(client: &mut Client, config: &Config, table: &TableName, key: &str) -> Result<Report, DryRunError> {
    let (probes, uncached) = probes(client, config).await?;
    let transaction = statement::begin(client).await?;
    let table = Table::read(transaction.client(), table).await?;
    let row = table.row(transaction.client(), key).await?;
    let changed = vec![
        Changed { old: Some(row.clone()), new: Some(row.clone()), other_key: false },
        Changed { old: Some(row), new: None, other_key: false },
    ];
    report(transaction.client(), &probes, uncached, &table, changed).await
}

/// Each entity as often as it has rules; and those that are not cached.
async fn probes(client: &Client, config: &Config) -> Result<(Vec<Probe>, Vec<String>), DryRunError> {
    let (mut probes, mut uncached) = (Vec::new(), Vec::new());
    let prefix = config.l2.as_ref().map_or("", |l2| &l2.prefix);
    for of in &config.entities {
        let (resolved, _) = catalog::resolve(client, config, of).await?;
        if let (false, Some(why)) = (resolved.standing == Standing::Cached, resolved.standing.cause()) {
            uncached.push(format!("{}: {why}", of.name));
        }
        let Some(shape) = resolved.shape else { continue };
        let definition = of.definition();
        let Some(query) = definition.query.clone() else {
            let entity = Arc::new(Entity::new(probes.len(), definition, prefix, shape));
            probes.push(Probe { entity, rule: format!("rows of {}", of.table), lookup: false });
            continue;
        };
        let facts = shape.query.clone();
        for (i, rule) in query.rules.iter().enumerate() {
            let facts = facts.as_ref().map(|facts| QueryFacts {
                depends: facts.depends.get(i).cloned().into_iter().collect(),
                is_steady: facts.is_steady,
            });
            let mut definition = definition.clone();
            definition.query = Some(Query { rules: vec![rule.clone()], ..query.clone() });
            let shape = crate::entity::Shape { query: facts, ..shape.clone() };
            let entity = Arc::new(Entity::new(probes.len(), definition, prefix, shape));
            let via = match &rule.via {
                Via::Key(columns) => format!("key ({})", columns.join(", ")),
                Via::Lookup { from, .. } => format!("lookup from ({})", from.join(", ")),
                Via::All => "all".to_owned(),
            };
            let rule = format!("depends_on[{i}]: {}.{}, {via}", rule.schema, rule.table);
            probes.push(Probe { entity, rule, lookup: via.starts_with("lookup") });
        }
    }
    Ok((probes, uncached))
}

async fn report(
    client: &Client,
    probes: &[Probe],
    uncached: Vec<String>,
    table: &Table,
    changed: Vec<Changed>,
) -> Result<Report, DryRunError> {
    let mut planner = Planner::new(probes.iter().map(|probe| probe.entity.clone()).collect());
    // Only what a row does is asked.
    planner.announce(&table.relation, &mut Vec::new());
    let mut report = Report { rows: Vec::new(), left_out: changed.len().saturating_sub(MAX_ROWS), uncached };
    for changed in changed.iter().take(MAX_ROWS) {
        let Some((op, change)) = table.change(changed) else { continue };
        let mut effects = Vec::new();
        planner.plan(&change, &mut effects);
        let mut told = Vec::new();
        for effect in effects {
            tell(client, probes, effect, &mut told).await?;
        }
        let mut effects: Vec<Consequence> = Vec::with_capacity(told.len());
        for consequence in told {
            if !effects.contains(&consequence) {
                effects.push(consequence);
            }
        }
        report.rows.push(RowReport { op, table: table.name(), row: table.describe(changed), effects });
    }
    Ok(report)
}

/// Appends what an effect means.
async fn tell(
    client: &Client,
    probes: &[Probe],
    effect: Effect,
    told: &mut Vec<Consequence>,
) -> Result<(), DryRunError> {
    let (id, keys, effect) = match effect {
        Effect::Put { entity, key, .. } | Effect::Merge { entity, key, .. } => (entity, Some(vec![key]), "put"),
        Effect::Delete { entity, key, .. } => (entity, Some(vec![key]), "void"),
        Effect::Lookup { entity, rule, values } => {
            let found = run_lookup(client, &probes[entity], rule, values).await?;
            // More than that void the whole entity.
            (entity, (found.len() <= MAX_KEYS).then_some(found), "void")
        }
        Effect::Raise { entity } | Effect::Discard { entity, .. } | Effect::Moved { entity } => (entity, None, "void"),
        Effect::Void(_) | Effect::Reshape { .. } | Effect::LookAround => return Ok(()),
    };
    let Probe { entity, rule, .. } = &probes[id];
    let effect = if effect == "void" && entity.is_requeried() { "requery" } else { effect };
    let consequence = |key| Consequence { entity: entity.name.clone(), key, effect, rule: rule.clone() };
    match keys {
        None => told.push(consequence(None)),
        Some(keys) => told.extend(keys.into_iter().map(|key| {
            let key = String::from_utf8_lossy(&key).into_owned();
            consequence(Some(key.strip_prefix(entity.redis_prefix.as_str()).unwrap_or(&key).to_owned()))
        })),
    }
    Ok(())
}

/// The keys that a rule's lookup finds now.
async fn run_lookup(
    client: &Client,
    probe: &Probe,
    rule: usize,
    values: Vec<Option<Vec<u8>>>,
) -> Result<Vec<Vec<u8>>, DryRunError> {
    debug_assert!(probe.lookup);
    let refused = |error: tokio_postgres::Error| DryRunError::Refused(relation::said(&error));
    let statement = lookup::statement(&probe.entity, rule, MAX_KEYS + 1)?;
    let statement = client.prepare(&statement).await.map_err(refused)?;
    let values: Vec<Text> = values.into_iter().map(Text).collect();
    let values: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = values.iter().map(|value| value as _).collect();
    let rows = client.query(&statement, &values).await.map_err(refused)?;
    let mut keys = Vec::with_capacity(rows.len());
    for row in &rows {
        keys.extend(lookup::key(&probe.entity, row)?.map(|key| key.redis().as_bytes().to_vec()));
    }
    Ok(keys)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            writeln!(f, "{} {} {}", row.op, row.table, row.row)?;
            if row.effects.is_empty() {
                writeln!(f, "  concerns no entity")?;
            }
            for Consequence { entity, key, effect, rule } in &row.effects {
                match key {
                    Some(key) => writeln!(f, "  {effect:<8}{entity}:{key}  by {rule}")?,
                    None => writeln!(f, "  {effect:<8}all of {entity}  by {rule}")?,
                }
            }
        }
        if self.rows.is_empty() {
            writeln!(f, "no row would be changed")?;
        }
        if self.left_out > 0 {
            writeln!(f, "and {} rows more", self.left_out)?;
        }
        for entity in &self.uncached {
            writeln!(f, "not cached now: {entity}")?;
        }
        write!(f, "nothing was changed")
    }
}
