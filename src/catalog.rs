//! What the source's catalog says: whether everything that walcache needs is there, and the shapes of its entities. And
//! whether Redis is one that can be L2.
//!
//! [`inspect`] only reads. Each [`Finding`] carries the SQL that mends it; those with a [`Phase`] are what
//! `walcache setup` applies, in the order of the phases, so `check` and `setup` cannot disagree.

mod announce;
mod finding;
mod identity;
mod lifetime;
mod publication;
mod queries;
mod redis;
mod server;
mod signature;
mod slot;
mod table;
mod types;
mod wal2json;

use tokio_postgres::{Client, Row};

use crate::config::{Config, EntityConfig, Plugin, SourceConfig};
use crate::entity::{Resolved, Shape, Standing};
use crate::source::{SourceError, SourceUrl};

pub use finding::{Finding, Phase, Severity};
pub use queries::{LOCKED, RuleCost};
pub use redis::inspect_l2;
pub use signature::Signatures;
pub use slot::FAILOVER_SLOTS;

use finding::Findings;
use signature::Signature;
use table::Table;

/// What an inspection found.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Everything that is or may become a problem; empty where all is well.
    pub findings: Vec<Finding>,
    /// For each configured entity, in order, its shape; `None` where it has none that can be served.
    pub shapes: Vec<Option<Shape>>,
    /// Whether there is a slot: then setup, or a daemon, has found nothing wrong with this database before.
    pub has_slot: bool,
    /// Whether event triggers announce schema changes in the log.
    pub announces_ddl: bool,
    /// What a change of a row costs by the rules of queries.
    pub costs: Vec<RuleCost>,
}

impl Inspection {
    /// Whether nothing keeps walcache from running.
    pub fn is_ok(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Error)
    }
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
    let signatures = Signatures::of(client, &config.entities, server.role_oid, &config.source).await?;
    let mut looks = Looks::default();
    // Before the tables: see `Signatures::read`.
    for (entity, signature) in config.entities.iter().zip(signatures.read_parts(client).await?) {
        let role = (server.role_oid, url.user());
        looks.look(client, entity, role, (&config.source, signature), &mut findings).await?;
    }
    let announces_ddl = announce::check(client, &config.source, &mut findings).await?;
    match config.source.plugin {
        Plugin::Pgoutput => publication::check(client, config, &mut looks.tables, &mut findings).await?,
        Plugin::Wal2json => wal2json::check(client, &server, &mut findings).await?,
    }
    slot::check(slot.as_ref(), &config.source, (url.dbname(), server.version), &mut findings);
    let costs = std::mem::take(&mut looks.costs);
    Ok(Inspection { findings: findings.0, shapes: looks.into_shapes(), has_slot: slot.is_some(), announces_ddl, costs })
}

/// Looks at entities, one by one, and what of their tables is published then.
#[derive(Default)]
struct Looks {
    /// Those of all entities, one after the other; `None` where there is no such table.
    tables: Vec<Option<Table>>,
    /// By entity: its tables among these, and what is known of its query, if it is one.
    entities: Vec<(std::ops::Range<usize>, Option<Option<Shape>>)>,
    costs: Vec<RuleCost>,
}

impl Looks {
    async fn look(
        &mut self,
        client: &Client,
        entity: &EntityConfig,
        role: (u32, &str),
        (source, signature): (&SourceConfig, Signature),
        findings: &mut Findings,
    ) -> Result<(), SourceError> {
        let from = self.tables.len();
        let of_query = match entity.query() {
            Some(query) => {
                let looked = queries::inspect(client, (entity, &query), role, (source, signature), findings).await?;
                self.tables.extend(looked.tables);
                self.costs.extend(looked.costs);
                Some(looked.shape)
            }
            None => {
                self.tables.push(table::inspect(client, entity, role, (source, signature), findings).await?);
                None
            }
        };
        self.entities.push((from..self.tables.len(), of_query));
        Ok(())
    }

    fn into_shapes(mut self) -> Vec<Option<Shape>> {
        let shape = |(range, of_query): (std::ops::Range<usize>, Option<Option<Shape>>)| {
            let tables = self.tables.get_mut(range)?;
            match of_query {
                Some(shape) => shape.map(|shape| Shape { published: queries::published(tables), ..shape }),
                None => tables.first_mut()?.take()?.into_shape(),
            }
        };
        self.entities.into_iter().map(shape).collect()
    }
}

/// Findings with which rows cannot be read, or not all of them, though the table is there with all of its columns.
const UNREADABLE: [&str; 3] = ["table_rights", table::ROW_SECURITY, "row_security_role"];

/// Whether a finding keeps an entity's rows, or its query's results, from being read.
fn is_unreadable(finding: &Finding) -> bool {
    UNREADABLE.contains(&finding.code) || queries::UNREADABLE.contains(&finding.code)
}

/// One entity as the catalog has it now, for the role that is connected; and the errors that keep it from being cached.
///
/// # Errors
/// If the catalog cannot be read.
pub async fn resolve(
    client: &Client,
    config: &Config,
    entity: &EntityConfig,
) -> Result<(Resolved, Vec<Finding>), SourceError> {
    let role =
        query_one(client, "read role", "SELECT oid, rolname::text FROM pg_roles WHERE rolname = current_user", &[]);
    let role = role.await?;
    let signatures = Signatures::of(client, std::slice::from_ref(entity), role.get(0), &config.source).await?;
    let mut signature = signatures.read_parts(client).await?.first().copied().unwrap_or_default();
    let mut findings = Findings::default();
    let role = (role.get(0), role.get(1));
    let mut looks = Looks::default();
    looks.look(client, entity, role, (&config.source, signature), &mut findings).await?;
    let is_locked = findings.0.iter().any(|finding| finding.code == queries::LOCKED);
    // From Postgres 16 on, what a publication publishes is told under a lock on its tables, too.
    if config.source.plugin == Plugin::Pgoutput && !is_locked {
        publication::check(client, config, &mut looks.tables, &mut findings).await?;
    }
    let shape = looks.into_shapes().pop().flatten();
    findings.0.retain(|finding| finding.severity == Severity::Error);
    let findings = findings.0;
    if is_locked {
        // To be looked at again.
        signature = Signature::default();
    }
    let why = || {
        // Readers who must not see rows are told no more than that.
        let forbidden = findings.iter().any(|finding| finding.code == table::ROW_SECURITY);
        let told = findings.iter().filter(|finding| !forbidden || finding.code == table::ROW_SECURITY);
        told.map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let standing = match &shape {
        Some(_) if findings.is_empty() => Standing::Cached,
        Some(_) if !findings.iter().any(is_unreadable) => Standing::Uncached(why()),
        None if is_locked => Standing::Uncached(why()),
        _ => Standing::Unreadable(why()),
    };
    Ok((Resolved { standing, shape, signature: signature.whole }, findings))
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
