//! The publication: whether all that entities need reaches the stream, under the name that is expected.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::finding::{Finding, Findings, Phase};
use super::table::Table;
use super::types::Oid;
use super::{query, query_opt};
use crate::config::Config;
use crate::source::SourceError;
use crate::sql::quote_ident;

struct Published {
    row_filter: Option<String>,
    /// The column list, which before Postgres 15 there is none of.
    columns: Option<Vec<String>>,
}

/// Compares the publication with the entities' tables, which are `None` where they do not exist.
pub(super) async fn check(
    client: &Client,
    config: &Config,
    tables: &[Option<Table>],
    findings: &mut Findings,
) -> Result<(), SourceError> {
    let name = &config.source.publication;
    let (subject, ident) = (format!("publication {name}"), quote_ident(name));
    let row = query_opt(client, "read publication", include_str!("../../sql/publication.sql"), &[name]).await?;
    let Some(row) = row else {
        let mut wanted: Vec<String> = tables.iter().flatten().map(|table| table.name.sql()).collect();
        wanted.sort();
        wanted.dedup();
        let finding =
            Finding::error("publication_missing", subject, "does not exist", "create it for the entities' tables");
        findings.add(if wanted.is_empty() {
            finding
        } else {
            let list = wanted.join(", ");
            let sql = format!("CREATE PUBLICATION {ident} FOR TABLE {list} WITH (publish_via_partition_root = true)");
            finding.mended_in(Phase::Publication, sql)
        });
        return Ok(());
    };
    if !row.get::<_, bool>("complete") {
        let what = "does not publish all of insert, update, delete and truncate: entries would stay stale";
        let finding = Finding::error("publication_operations", &subject, what, "publish all four");
        let sql = format!("ALTER PUBLICATION {ident} SET (publish = 'insert, update, delete, truncate')");
        findings.add(finding.mended_in(Phase::Publication, sql));
    }
    let via_root: bool = row.get("via_root");
    let partitioned: Vec<&Table> = tables.iter().flatten().filter(|table| table.partitioned).collect();
    if let (false, Some(first)) = (via_root, partitioned.first()) {
        let what = format!("publishes changes of {} under the names of its partitions", first.name);
        let remedy = "publish them under the partitioned table's name";
        let sql = format!("ALTER PUBLICATION {ident} SET (publish_via_partition_root = true)");
        let finding = Finding::error("publication_via_root", &subject, what, remedy);
        findings.add(finding.mended_in(Phase::Publication, sql));
    }
    let sql = include_str!("../../sql/publication_tables.sql");
    let rows = query(client, "read publication's tables", sql, &[name]).await?;
    let published: HashMap<Oid, Published> = rows
        .iter()
        .map(|row| (row.get("oid"), Published { row_filter: row.get("row_filter"), columns: row.get("columns") }))
        .collect();
    for table in tables.iter().flatten() {
        match published.get(&table.oid) {
            Some(published) => {
                check_published(&subject, &ident, table, published, findings);
                check_generated(&subject, table, published, row.get("may_carry_generated"), findings);
            }
            None => check_absent(&subject, &ident, table, (row.get("all_tables"), via_root), &published, findings),
        }
    }
    Ok(())
}

/// A table that the publication does not list under its own name.
fn check_absent(
    subject: &str,
    ident: &str,
    table: &Table,
    (all_tables, via_root): (bool, bool),
    published: &HashMap<Oid, Published>,
    findings: &mut Findings,
) {
    let name = &table.name;
    if via_root && table.ancestors.iter().any(|ancestor| published.contains_key(ancestor)) {
        let what = format!("publishes changes of {name} under the name of the table that it is a partition of");
        let remedy = "name that table in the entity";
        findings.add(Finding::error("publication_partition", subject, what, remedy));
        return;
    }
    // Its partitions are listed one by one until it is published by its root, which is a finding of its own. Whether
    // it has to be added too shows only then.
    if all_tables {
        return;
    }
    let what = format!("lacks table {name}");
    let finding = Finding::error("publication_table", subject, what, "add it");
    let leaves_listed = table.partitioned && !via_root && table.leaves.iter().any(|leaf| published.contains_key(leaf));
    if !leaves_listed {
        let sql = format!("ALTER PUBLICATION {ident} ADD TABLE {}", name.sql());
        findings.add(finding.mended_in(Phase::Publication, sql));
    }
}

fn check_published(subject: &str, ident: &str, table: &Table, published: &Published, findings: &mut Findings) {
    let name = &table.name;
    let sql = format!("ALTER PUBLICATION {ident} DROP TABLE {0};\nALTER PUBLICATION {ident} ADD TABLE {0}", name.sql());
    if let Some(filter) = &published.row_filter {
        let what =
            format!("publishes {name} with a row filter {filter}: other rows would be cached and never refreshed");
        let remedy = "publish the table without a filter";
        findings.add(Finding::error("publication_row_filter", subject, what, remedy).sql(&sql));
    }
    let listed = |column: &str| published.columns.as_ref().is_none_or(|columns| columns.iter().any(|c| c == column));
    let lacking: Vec<&str> = table.stored_columns.iter().map(String::as_str).filter(|column| !listed(column)).collect();
    if !lacking.is_empty() {
        let what = format!("publishes {name} without column(s) {}, which the entity needs", lacking.join(", "));
        let remedy = "publish the table without a column list, or add them to it";
        findings.add(Finding::error("publication_columns", subject, what, remedy).sql(sql));
    }
}

/// Generated columns come, if at all, where the publication lists them.
fn check_generated(subject: &str, table: &Table, published: &Published, may_carry: bool, findings: &mut Findings) {
    let carried = |column: &String| may_carry && published.columns.as_ref().is_some_and(|list| list.contains(column));
    for column in table.generated_columns.iter().filter(|column| !carried(column)) {
        let what = format!("does not carry the generated column {column} of {}", table.name);
        let remedy = "nothing: changes of these rows delete entries instead of rewriting them; or leave the column out of \
                      the entity's columns";
        findings.add(Finding::warning("generated_column", subject, what, remedy));
    }
}
