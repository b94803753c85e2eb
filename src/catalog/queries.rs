//! An entity's query: its parameters, its result, the tables that it depends on, and how the database goes about it.

pub(super) mod explain;
mod lookup;
mod params;
mod plan;
mod result;
mod rule;

use tokio_postgres::error::SqlState;

pub(super) use self::explain::{Refused, described};
use self::plan::Planned;
use self::rule::RuleTable;
use super::finding::{Finding, Findings};
use super::query_one;
use super::reader::Reader;
use super::signature::Signature;
use super::table::{self, Table};
use super::types::Oid;
use crate::config::{EntityConfig, SourceConfig};
use crate::entity::query::{Query, QueryFacts, ResultShape, Via};
use crate::entity::{Published, QUERY_LOCKED, Shape, hash};
use crate::source::SourceError;

/// Why the query cannot be read as it is configured.
pub(super) const UNREADABLE: [&str; 3] = ["query_refused", "query_rights", "query_columns"];

/// What a change of a row costs by one rule.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RuleCost {
    /// The entity's name.
    pub entity: String,
    /// The rule's table.
    pub table: String,
    /// In words.
    pub cost: String,
}

/// A query as the catalog has it.
pub(super) struct Looked {
    /// By rule, its table; `None` where there is no such table.
    pub(super) tables: Vec<Option<Table>>,
    /// Its shape, but for what is published of the tables; `None` where it cannot be read at all.
    pub(super) shape: Option<Shape>,
    pub(super) costs: Vec<RuleCost>,
}

/// Whoever looks, at one entity.
struct Look<'a> {
    client: &'a Reader<'a>,
    entity: &'a EntityConfig,
    query: &'a Query,
    /// The role that reads, whoever is connected.
    role: (Oid, &'a str),
    source: &'a SourceConfig,
    subject: String,
}

/// Looks at an entity's query with the rights of `role` (oid and name). The signature was read before; to wait for locks is
/// limited.
pub(super) async fn inspect(
    client: &Reader<'_>,
    (entity, query): (&EntityConfig, &Query),
    role: (Oid, &str),
    (source, signature): (&SourceConfig, Signature),
    findings: &mut Findings,
) -> Result<Looked, SourceError> {
    let subject = format!("entity {}", entity.name);
    let look = Look { client, entity, query, role, source, subject };
    match look.inspect(signature, findings).await {
        Err(SourceError::Postgres { error, .. }) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            let what = "one of the query's tables is locked, as it is while it is altered";
            findings.add(look.error(QUERY_LOCKED, what, "wait until that has ended"));
            let tables = entity.depends_on.iter().flatten().map(|_| None).collect();
            Ok(Looked { tables, shape: None, costs: Vec::new() })
        }
        looked => looked,
    }
}

impl Look<'_> {
    async fn inspect(&self, signature: Signature, findings: &mut Findings) -> Result<Looked, SourceError> {
        let (client, entity, query) = (self.client, self.entity, self.query);
        let params = self.params(findings).await?;
        let mut rules = Vec::new();
        for depends in entity.depends_on.iter().flatten() {
            rules.push(self.rule(depends, params.as_deref(), findings).await?);
        }
        let mut looked = Looked { tables: Vec::new(), shape: None, costs: Vec::new() };
        if let Some(params) = &params
            && let Some((columns, types)) = self.result(params, &rules, findings).await?
        {
            let mut named: Vec<&str> = params.iter().map(|param| param.name.as_str()).collect();
            if query.shape == ResultShape::One {
                named.extend(columns.iter().map(|column| column.name.as_str()));
            }
            table::check_tags(entity, &named, findings);
            let Planned { is_steady, looked_up, costs } = self.plans(params, &rules, findings).await?;
            looked.costs = costs;
            let texts: Vec<&str> =
                std::iter::once(query.sql.as_str()).chain(query.rules.iter().filter_map(lookup)).collect();
            let sql = include_str!("../../sql/query_definitions.sql");
            let definitions = query_one(client, "read the definitions of views and functions", sql, &[&texts]).await?;
            let definitions: String = definitions.get(0);
            let version = format!("{} {:?} {definitions}", signature.tables, types.version);
            looked.shape = Some(Shape {
                table_oid: 0,
                columns,
                key: params.iter().map(|param| param.key.clone()).collect(),
                whole_row: false,
                partitioned: false,
                version: hash(version.as_bytes()),
                published: Published::default(),
                tables: Vec::new(),
                query: Some(QueryFacts {
                    depends: rules.iter().map(RuleTable::dependency).collect(),
                    looked_up: looked_up.into_iter().collect(),
                    is_steady,
                }),
            });
        }
        looked.tables = rules.into_iter().map(|rule| rule.table).collect();
        Ok(looked)
    }
}

/// A rule's lookup, if it has one.
fn lookup(rule: &crate::entity::query::Rule) -> Option<&str> {
    match &rule.via {
        Via::Lookup { sql, .. } => Some(sql),
        Via::Key(_) | Via::All => None,
    }
}

/// What of a query's tables is published, as one.
pub(super) fn published(tables: &[Option<Table>]) -> Published {
    let facts: Vec<_> = tables.iter().flatten().map(|table| (table.oid, &table.published)).collect();
    Published { row_filter: None, version: hash(format!("{facts:?}").as_bytes()) }
}

impl Look<'_> {
    fn error(&self, code: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::error(code, self.subject.clone(), what, remedy)
    }
}
