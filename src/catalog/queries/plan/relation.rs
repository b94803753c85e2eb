//! What the relations are that a plan reads.

use std::collections::BTreeMap;

use super::tree::Plan;
use crate::catalog::query;
use crate::catalog::reader::Reader;
use crate::catalog::types::Oid;
use crate::config::TableName;
use crate::source::SourceError;

/// By schema and name.
pub(super) type Relations = BTreeMap<(String, String), Relation>;

/// What is known of a relation in a plan.
pub(super) struct Relation {
    /// `pg_class.relkind`.
    pub(super) kind: String,
    /// How many rows it has; negative where it was never analyzed.
    pub(super) estimate: f64,
    /// The names of its columns.
    pub(super) columns: Vec<String>,
    /// Itself, then the tables that it is a partition of.
    pub(super) above: Vec<TableName>,
    /// `pg_class.oid` of the last of these.
    pub(super) root: Oid,
    /// Whether any of these has row-level security.
    pub(super) row_security: bool,
}

/// What the relations of a plan are.
pub(super) async fn relations(client: &Reader<'_>, plan: &Plan) -> Result<Relations, SourceError> {
    let (schemas, names): (Vec<String>, Vec<String>) = plan.relations.iter().cloned().unzip();
    let sql = include_str!("../../../../sql/plan_tables.sql");
    let rows = query(client, "read the tables of a plan", sql, &[&schemas, &names]).await?;
    let relation = |row: &tokio_postgres::Row| {
        let above = row.get::<_, Vec<String>>("schemas").into_iter().zip(row.get::<_, Vec<String>>("names"));
        let relation = Relation {
            kind: row.get("kind"),
            estimate: row.get("estimate"),
            columns: row.get("columns"),
            row_security: row.get("row_security"),
            root: row.get("root"),
            above: above.map(|(schema, name)| TableName { schema, name }).collect(),
        };
        ((row.get("schema"), row.get("name")), relation)
    };
    Ok(rows.iter().map(relation).collect())
}
