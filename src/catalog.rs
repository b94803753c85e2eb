//! What the source's catalog says: whether everything that walcache needs is there, and the shapes of its entities. And
//! whether Redis is one that can be L2.
//!
//! [`inspect`] only reads. Each [`Finding`] carries the SQL that mends it; those with a [`Phase`] are what
//! `walcache setup` applies, in the order of the phases, so `check` and `setup` cannot disagree.

mod announce;
mod column;
mod finding;
mod identities;
mod identity;
mod lifetime;
mod look;
mod names;
mod publication;
mod queries;
mod reader;
mod redis;
mod rights;
mod server;
mod signature;
mod slot;
mod table;
mod types;
mod wal2json;
mod warming;

use tokio_postgres::Client;

use crate::config::{Config, EntityConfig, Plugin};
use crate::entity::{Resolved, Shape};
use crate::source::{SourceError, SourceUrl};

pub use finding::{Finding, Phase, Severity};
pub use look::tells_of_lock;
pub use publication::MISSING as PUBLICATION_MISSING;
pub use queries::RuleCost;
pub use redis::inspect_l2;
pub use signature::Signatures;
pub use slot::FAILOVER_SLOTS;
pub use warming::inspect_warming;

use finding::Findings;
use look::{Locks, Look};
use publication::Publications;
use reader::{Reader, query, query_one, query_opt};

/// What an inspection found.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Everything that is or may become a problem; empty where all is well.
    pub findings: Vec<Finding>,
    /// For each configured entity, in order, its shape, `None` where it has none that can be served; and its signature, as
    /// [`Resolved::signature`].
    pub entities: Vec<(Option<Shape>, u64)>,
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
    let reader = &Reader::new(client, &config.source);
    let mut findings = Findings::default();
    let slot = slot::read(reader, &config.source.slot).await?;
    let server = server::read(reader, url.user()).await?;
    server::check(&server, &url, slot.as_ref(), &mut findings);
    server::check_own_schema(reader, &server, url.user(), &mut findings).await?;
    let entities: Vec<&EntityConfig> = config.entities.iter().collect();
    let (role, mut locks) = ((server.role_oid, url.user()), Locks::default());
    let mut looks = look::look(reader, &entities, role, &config.source, &mut locks).await?;
    looks.iter_mut().flat_map(|look| std::mem::take(&mut look.findings.0)).for_each(|finding| findings.add(finding));
    let tables: Vec<&table::Table> = looks.iter().flat_map(|look| look.tables.iter().flatten()).collect();
    identities::agree(reader, &tables, &mut findings).await?;
    let announces_ddl = announce::check(reader, &config.source, &mut findings).await?;
    match config.source.plugin {
        Plugin::Pgoutput => {
            let publications = Publications::read(reader, &config.source, &looks, &mut locks).await?;
            publications.check(looks.iter_mut().flat_map(|look| look.tables.iter_mut().flatten()), &mut findings);
        }
        Plugin::Wal2json => wal2json::check(reader, &server, &mut findings).await?,
    }
    slot::check(slot.as_ref(), &config.source, (url.dbname(), server.version), &mut findings);
    Ok(Inspection {
        findings: findings.0,
        costs: looks.iter_mut().flat_map(|look| std::mem::take(&mut look.costs)).collect(),
        entities: looks.into_iter().map(|mut look| (look.take_shape(), look.signature.whole)).collect(),
        has_slot: slot.is_some(),
        announces_ddl,
    })
}

/// Findings with which rows cannot be read, or not all of them, though the table is there with all of its columns.
const UNREADABLE: [&str; 3] = ["table_rights", table::ROW_SECURITY, "row_security_role"];

/// Whether a finding keeps an entity's rows, or its query's results, from being read.
fn is_unreadable(finding: &Finding) -> bool {
    UNREADABLE.contains(&finding.code) || queries::UNREADABLE.contains(&finding.code)
}

/// Entities, by position, as the catalog has them now, for the role that is connected; and the errors that keep each from
/// being cached.
///
/// # Errors
/// If the catalog cannot be read.
pub async fn resolve(
    client: &Client,
    config: &Config,
    entities: &[usize],
) -> Result<Vec<(Resolved, Vec<Finding>)>, SourceError> {
    if entities.is_empty() {
        return Ok(Vec::new());
    }
    let reader = &Reader::new(client, &config.source);
    let role =
        query_one(reader, "read role", "SELECT oid, rolname::text FROM pg_roles WHERE rolname = current_user", &[]);
    let role = role.await?;
    let entities: Vec<&EntityConfig> = entities.iter().map(|id| &config.entities[*id]).collect();
    let mut locks = Locks::default();
    let mut looks = look::look(reader, &entities, (role.get(0), role.get(1)), &config.source, &mut locks).await?;
    if config.source.plugin == Plugin::Pgoutput {
        let publications = Publications::read(reader, &config.source, &looks, &mut locks).await?;
        for look in looks.iter_mut().filter(|look| !look.findings.is_locked()) {
            publications.check(look.tables.iter_mut().flatten(), &mut look.findings);
        }
    }
    Ok(looks.into_iter().map(Look::resolve).collect())
}
