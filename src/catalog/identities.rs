//! Replica identities of tables that several entities and rules are made of.

use std::collections::HashSet;

use tokio_postgres::Row;

use super::finding::{Finding, Findings};
use super::identity::{REPLICA_IDENTITY, alter};
use super::query;
use super::reader::Reader;
use super::table::Table;
use crate::source::SourceError;
use crate::sql::quote_ident;

/// Makes the SQL that mends replica identities one for each table: a table has one identity, and each of the entities and
/// rules that are made of it may want another. An index will do where it covers what all of them need, whether or not they
/// lack it now.
pub(super) async fn agree(reader: &Reader<'_>, tables: &[&Table], findings: &mut Findings) -> Result<(), SourceError> {
    let mut seen = HashSet::new();
    for (table, leaf) in tables.iter().flat_map(|table| table.leaves.iter().map(move |leaf| (table, leaf))) {
        let alter = alter(&leaf.name);
        let is_of_leaf = |finding: &Finding| {
            finding.code == REPLICA_IDENTITY && finding.sql.as_ref().is_some_and(|sql| sql.starts_with(&alter))
        };
        if !seen.insert(leaf.oid) || !findings.0.iter().any(is_of_leaf) {
            continue;
        }
        let made_of_it = tables.iter().filter(|table| table.leaves.iter().any(|other| other.oid == leaf.oid));
        let needed: HashSet<&String> = made_of_it.flat_map(|table| table.told.iter().flatten()).collect();
        let rows = query(reader, "read indexes", include_str!("../../sql/unique_indexes.sql"), &[&leaf.oid]).await?;
        let covers = |row: &&Row| {
            let columns: Vec<String> = row.get("columns");
            needed.iter().all(|column| columns.contains(column))
        };
        // A partition's index has a name of its own, and the next partition's has another.
        let is_table = leaf.oid == table.oid;
        let mut fits =
            rows.iter().filter(covers).filter(|row| row.get("is_primary") || (is_table && row.get("not_null")));
        let to = match fits.next() {
            Some(row) if row.get("is_primary") => "DEFAULT".to_owned(),
            Some(row) => format!("USING INDEX {}", quote_ident(row.get("name"))),
            None => "FULL".to_owned(),
        };
        for finding in findings.0.iter_mut().filter(|finding| is_of_leaf(finding)) {
            finding.sql = Some(format!("{alter}{to}"));
        }
    }
    Ok(())
}
