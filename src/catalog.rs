//! What the source's catalog says: whether everything that walcache needs is there, and the shapes of its entities. And
//! whether Redis is one that can be L2.
//!
//! [`inspect`] only reads. Each [`Finding`] carries the SQL that mends it; those with a [`Phase`] are what
//! `walcache setup` applies, in the order of the phases, so `check` and `setup` cannot disagree.

mod finding;
mod identity;
mod publication;
mod redis;
mod server;
mod slot;
mod table;
mod types;

use tokio_postgres::{Client, Row};

use crate::config::{Config, EntityConfig};
use crate::entity::Shape;
use crate::source::{SourceError, SourceUrl};

pub use finding::{Finding, Phase, Severity};
pub use redis::inspect_l2;

use finding::Findings;

/// What an inspection found.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Everything that is or may become a problem; empty where all is well.
    pub findings: Vec<Finding>,
    /// For each configured entity, in order, its shape; `None` where it has none that can be served.
    pub shapes: Vec<Option<Shape>>,
}

impl Inspection {
    /// Whether nothing keeps walcache from running.
    pub fn is_ok(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Error)
    }
}

/// Why an entity has no shape.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The catalog could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The table cannot be served.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Unservable(Vec<Finding>),
}

/// Compares the database with the configuration. Rights are those of the role in `source.url`, whoever is connected.
///
/// # Errors
/// [`SourceError`] where the catalog cannot be read; whatever is wrong in it is a finding.
pub async fn inspect(client: &Client, config: &Config) -> Result<Inspection, SourceError> {
    let url = SourceUrl::parse(&config.source.url)?;
    let mut findings = Findings::default();
    let slot = slot::read(client, &config.source.slot).await?;
    let server = server::read(client, url.user()).await?;
    server::check(&server, &url, slot.as_ref(), &mut findings);
    server::check_own_schema(client, &server, url.user(), &mut findings).await?;
    let mut tables = Vec::with_capacity(config.entities.len());
    for entity in &config.entities {
        tables.push(
            table::inspect(client, entity, (server.role_oid, url.user()), &config.source.publication, &mut findings)
                .await?,
        );
    }
    publication::check(client, config, &tables, &mut findings).await?;
    slot::check(slot.as_ref(), &config.source, url.dbname(), &mut findings);
    let shapes = tables.into_iter().map(|table| table.and_then(|table| table.shape)).collect();
    Ok(Inspection { findings: findings.0, shapes })
}

/// The shape of one entity as the catalog has it now, for the role that is connected.
///
/// # Errors
/// [`ResolveError::Unservable`] says what keeps the table from being served: also that its changes are not published
/// any more.
pub async fn resolve(client: &Client, config: &Config, entity: &EntityConfig) -> Result<Shape, ResolveError> {
    let role =
        query_one(client, "read role", "SELECT oid, rolname::text FROM pg_roles WHERE rolname = current_user", &[]);
    let role = role.await?;
    let mut findings = Findings::default();
    let table =
        table::inspect(client, entity, (role.get(0), role.get(1)), &config.source.publication, &mut findings).await?;
    let tables = [table];
    publication::check(client, config, &tables, &mut findings).await?;
    let [table] = tables;
    findings.0.retain(|finding| finding.severity == Severity::Error);
    match table.and_then(|table| table.shape) {
        Some(shape) if findings.0.is_empty() => Ok(shape),
        _ => Err(ResolveError::Unservable(findings.0)),
    }
}

type Parameters<'a> = &'a [&'a (dyn tokio_postgres::types::ToSql + Sync)];

async fn query(client: &Client, what: &'static str, sql: &str, with: Parameters<'_>) -> Result<Vec<Row>, SourceError> {
    client.query(sql, with).await.map_err(|error| SourceError::postgres(what, error))
}

async fn query_one(client: &Client, what: &'static str, sql: &str, with: Parameters<'_>) -> Result<Row, SourceError> {
    client.query_one(sql, with).await.map_err(|error| SourceError::postgres(what, error))
}

async fn query_opt(
    client: &Client,
    what: &'static str,
    sql: &str,
    with: Parameters<'_>,
) -> Result<Option<Row>, SourceError> {
    client.query_opt(sql, with).await.map_err(|error| SourceError::postgres(what, error))
}
