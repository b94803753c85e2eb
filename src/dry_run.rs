//! A dry run of a change: which entries of which entities it would touch, by which rule.
//!
//! The change is made in a transaction that is rolled back, or is only thought of; what it would put into the log goes the
//! way of the real one, through the planner, once for each rule by itself. Nothing is written, neither to Postgres nor to
//! Redis. What a trigger or a cascade changes beside the named table is not seen, nor are publications' row filters.
//! All of it has to be done within some seconds: meanwhile, the rows are locked.

mod relation;
mod statement;
mod trial;
mod update;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexSet;
use serde::Serialize;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

use self::relation::{Changed, Table};
use self::trial::Trial;
use crate::apply::lookup::{self, LookupError};
use crate::catalog;
use crate::config::{Config, TableName};
use crate::entity::query::{Query, QueryFacts, Via};
use crate::entity::{Entity, Standing};
use crate::plan::{Effect, Planner};
use crate::source::SourceError;
use crate::source::text::Text;

/// Rows of which the effects are told.
const MAX_ROWS: usize = 1000;
/// Effects after which no more rows are told, and keys that are kept of lookups that were run.
const MAX_EFFECTS: usize = 100_000;

/// How often a statement is tried while others change the same rows.
const TRIES: usize = 3;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DryRunError {
    /// The source cannot be asked.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The database refuses the statement; with what it says.
    #[error("the database refuses the statement: {0}")]
    Refused(String, Option<SqlState>),
    /// It takes too long.
    #[error("not done within {0:?}, and taken back: until then others wait for the rows that it changes")]
    Late(Duration),
    /// Rows that it would change are no longer those that it has found, time and again.
    #[error("others change the same rows all the while")]
    Overtaken,
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
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
}

/// What the statement would do.
///
/// # Errors
/// [`DryRunError`].
pub async fn of_statement(client: &mut Client, config: &Config, sql: &str) -> Result<Report, DryRunError> {
    let (probes, uncached) = probes(client, config).await?;
    let mut tries = 0;
    loop {
        tries += 1;
        let trial = Trial::begin(client).await?;
        let report = async {
            let target = statement::target(&trial, sql).await?;
            let table = Table::read(&trial, &target.table).await?;
            let (changed, total) = statement::run(&trial, sql, &target, &table).await?;
            report(&trial, &probes, uncached.clone(), &table, (changed, total)).await
        };
        let report = report.await;
        trial.end().await;
        if tries >= TRIES || !matches!(report, Err(DryRunError::Overtaken)) {
            return report;
        }
    }
}

/// What an update that changes nothing else, and a delete, of one row would do. `key` is its primary key, spelled as in
/// URLs.
///
/// # Errors
/// [`DryRunError`].
pub async fn of_row(client: &mut Client, config: &Config, table: &TableName, key: &str) -> Result<Report, DryRunError> {
    let (probes, uncached) = probes(client, config).await?;
    let trial = Trial::begin(client).await?;
    let table = Table::read(&trial, table).await?;
    let row = table.row(&trial, key).await?;
    let changed = vec![
        Changed { old: Some(row.clone()), new: Some(row.clone()), other_key: false },
        Changed { old: Some(row), new: None, other_key: false },
    ];
    report(&trial, &probes, uncached, &table, (changed, 2)).await
}

/// Each entity as often as it has rules; and those that are not cached.
async fn probes(client: &Client, config: &Config) -> Result<(Vec<Probe>, Vec<String>), DryRunError> {
    let (mut probes, mut uncached) = (Vec::new(), Vec::new());
    let prefix = config.l2.as_ref().map_or("", |l2| &l2.prefix);
    let all: Vec<usize> = (0..config.entities.len()).collect();
    for (of, (resolved, _)) in config.entities.iter().zip(catalog::resolve(client, config, &all).await?) {
        if let (false, Some(why)) = (resolved.standing == Standing::Cached, resolved.standing.cause()) {
            uncached.push(format!("{}: {why}", of.name));
        }
        let Some(shape) = resolved.shape else { continue };
        let definition = of.definition();
        let Some(query) = definition.query.clone() else {
            let entity = Arc::new(Entity::new(probes.len(), definition, prefix, shape));
            probes.push(Probe { entity, rule: format!("rows of {}", of.table) });
            continue;
        };
        let facts = shape.query.clone();
        for (i, rule) in query.rules.iter().enumerate() {
            let facts = facts.as_ref().map(|facts| QueryFacts {
                depends: facts.depends.get(i).cloned().into_iter().collect(),
                ..facts.clone()
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
            probes.push(Probe { entity, rule });
        }
    }
    Ok((probes, uncached))
}

/// What is told of the rows that were changed: some of `total`.
async fn report(
    trial: &Trial<'_>,
    probes: &[Probe],
    uncached: Vec<String>,
    table: &Table,
    (changed, total): (Vec<Changed>, usize),
) -> Result<Report, DryRunError> {
    let mut planner = Planner::new(probes.iter().map(|probe| probe.entity.clone()).collect());
    // Only what a row does is asked.
    planner.announce(&table.relation, &mut Vec::new());
    let mut lookups = Lookups { trial, probes, prepared: HashMap::new(), found: HashMap::new(), kept: 0 };
    let (mut rows, mut told) = (Vec::new(), 0);
    for changed in &changed {
        if told >= MAX_EFFECTS {
            break;
        }
        let Some((op, change)) = table.change(changed) else { continue };
        let mut planned = Vec::new();
        planner.plan(&change, &mut planned);
        let mut effects = IndexSet::new();
        for effect in planned {
            tell(&mut lookups, effect, &mut effects).await?;
        }
        told += effects.len();
        let effects = effects.into_iter().collect();
        rows.push(RowReport { op, table: table.name(), row: table.describe(changed), effects });
    }
    let left_out = total.saturating_sub(rows.len());
    Ok(Report { rows, left_out, uncached })
}

/// Adds what an effect means.
async fn tell(lookups: &mut Lookups<'_>, effect: Effect, told: &mut IndexSet<Consequence>) -> Result<(), DryRunError> {
    let (id, keys, effect) = match effect {
        Effect::Put { entity, key, .. } | Effect::Merge { entity, key, .. } => (entity, Some([key].into()), "put"),
        Effect::Delete { entity, key, .. } => (entity, Some([key].into()), "void"),
        Effect::Lookup { entity, rule, values } => {
            // More than are looked at void the whole entity.
            (entity, lookups.run(entity, rule, values).await?, "void")
        }
        Effect::Raise { entity } | Effect::Discard { entity, .. } | Effect::Moved { entity } => (entity, None, "void"),
        Effect::Void(_) | Effect::Reshape { .. } | Effect::LookAround => return Ok(()),
    };
    let Probe { entity, rule } = &lookups.probes[id];
    // Not where all entries are voided: which of them were cached is not known then.
    let effect = if effect == "void" && keys.is_some() && entity.is_requeried() { "requery" } else { effect };
    let consequence = |key| Consequence { entity: entity.name.clone(), key, effect, rule: rule.clone() };
    match keys {
        None => drop(told.insert(consequence(None))),
        Some(keys) => told.extend(keys.iter().map(|key| {
            let key = String::from_utf8_lossy(key);
            consequence(Some(key.strip_prefix(entity.redis_prefix.as_str()).unwrap_or(&key).to_owned()))
        })),
    }
    Ok(())
}

/// What the rules' lookups find now, each asked once.
struct Lookups<'a> {
    trial: &'a Trial<'a>,
    probes: &'a [Probe],
    /// By probe.
    prepared: HashMap<usize, Statement>,
    found: HashMap<(usize, Values), Keys>,
    kept: usize,
}

/// The changed row's values that a lookup is given.
type Values = Vec<Option<Vec<u8>>>;
/// Keys in Redis; `None` if there are more than are looked at.
type Keys = Option<Arc<[Vec<u8>]>>;

impl Lookups<'_> {
    async fn run(&mut self, probe: usize, rule: usize, values: Values) -> Result<Keys, DryRunError> {
        let asked = (probe, values);
        if let Some(found) = self.found.get(&asked) {
            return Ok(found.clone());
        }
        let entity = &self.probes[probe].entity;
        let statement = match self.prepared.get(&probe) {
            Some(statement) => statement.clone(),
            None => {
                let (sql, types) = lookup::statement(entity, &entity.shape(), rule, lookup::MAX_KEYS + 1)?;
                let statement = self.trial.prepare(&sql, &types).await?;
                self.prepared.insert(probe, statement.clone());
                statement
            }
        };
        let values: Vec<Text> = asked.1.iter().cloned().map(Text).collect();
        let values: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = values.iter().map(|value| value as _).collect();
        let rows = self.trial.run(&statement, &values).await?;
        let mut keys = Vec::with_capacity(rows.len());
        for row in &rows {
            keys.extend(lookup::key(entity, row)?.map(|key| key.redis().as_bytes().to_vec()));
        }
        let count = keys.len();
        let keys = (rows.len() <= lookup::MAX_KEYS).then(|| keys.into());
        if self.kept + count <= MAX_EFFECTS {
            self.kept += count;
            self.found.insert(asked, keys.clone());
        }
        Ok(keys)
    }
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
