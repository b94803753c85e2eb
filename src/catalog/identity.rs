//! Keys: which columns are one, and whether the stream says them of old rows.

use tokio_postgres::Row;

use super::finding::{Finding, Findings};
use super::reader::Reader;
use super::types::Oid;
use super::{query, query_opt};
use crate::config::{EntityConfig, TableName};
use crate::source::SourceError;
use crate::sql::quote_ident;

/// The code of the finding that old rows do not tell what they must.
pub(super) const REPLICA_IDENTITY: &str = "replica_identity";

struct UniqueIndex {
    primary: bool,
    columns: Vec<String>,
}

/// The key's columns, in key order.
pub(super) struct ChosenKey {
    pub(super) columns: Vec<String>,
}

/// Where rows of a table are: the table itself, or one of its partitions.
pub(super) struct Leaf {
    pub(super) oid: Oid,
    pub(super) name: TableName,
    /// Whether the stream says whole old rows.
    pub(super) full: bool,
    /// Else the columns of old rows that it says.
    pub(super) columns: Vec<String>,
}

/// Chooses the configured key or the primary key.
pub(super) async fn choose_key(
    client: &Reader<'_>,
    entity: &EntityConfig,
    oid: Oid,
    findings: &mut Findings,
) -> Result<Option<ChosenKey>, SourceError> {
    let rows = query(client, "read indexes", include_str!("../../sql/unique_indexes.sql"), &[&oid]).await?;
    let indexes: Vec<UniqueIndex> =
        rows.iter().map(|row| UniqueIndex { primary: row.get("is_primary"), columns: row.get("columns") }).collect();
    let subject = format!("entity {}", entity.name);
    let table = &entity.table;
    let Some(wanted) = &entity.key else {
        let primary = indexes.iter().position(|index| index.primary);
        if primary.is_none() {
            let what = format!("table {table} has no primary key (a deferrable one does not count)");
            let remedy = "add one, or name the columns of a unique index without nulls as the entity's key";
            let deferrable = include_str!("../../sql/deferrable_key.sql");
            let deferrable = query_opt(client, "read the primary key", deferrable, &[&oid]).await?;
            let sql = match deferrable {
                Some(row) => {
                    let (name, columns) = (quote_ident(row.get("name")), column_list(&row.get::<_, Vec<_>>("columns")));
                    format!("ALTER TABLE {} DROP CONSTRAINT {name}, ADD PRIMARY KEY ({columns})", table.sql())
                }
                None => {
                    let columns = indexes.first().map_or("...".to_owned(), |index| column_list(&index.columns));
                    format!("ALTER TABLE {} ADD PRIMARY KEY ({columns})", table.sql())
                }
            };
            findings.add(Finding::error("primary_key_missing", subject, what, remedy).sql(sql));
        }
        let primary = primary.and_then(|i| indexes.into_iter().nth(i));
        return Ok(primary.map(|index| ChosenKey { columns: index.columns }));
    };
    let same = |index: &UniqueIndex| {
        index.columns.len() == wanted.len() && wanted.iter().all(|column| index.columns.contains(column))
    };
    if !indexes.iter().any(same) {
        let list = column_list(wanted);
        let what = format!("key ({}) of {table} has no unique index on exactly these columns", wanted.join(", "));
        let remedy = "make one: not partial, not deferrable; or leave the entity's key out to use the primary key";
        let sql = format!("CREATE UNIQUE INDEX CONCURRENTLY ON {} ({list})", table.sql());
        findings.add(Finding::error("key_not_unique", subject, what, remedy).sql(sql));
        return Ok(None);
    }
    Ok(Some(ChosenKey { columns: wanted.clone() }))
}

fn column_list(columns: &[String]) -> String {
    columns.iter().map(|column| quote_ident(column)).collect::<Vec<_>>().join(", ")
}

/// Checks what the stream says of old rows, in the table or in each of its partitions, which are returned.
pub(super) async fn check(
    client: &Reader<'_>,
    entity: &EntityConfig,
    oid: Oid,
    key: Option<&ChosenKey>,
    findings: &mut Findings,
) -> Result<Vec<Leaf>, SourceError> {
    let rows = query(client, "read replica identity", include_str!("../../sql/identity.sql"), &[&oid]).await?;
    for row in &rows {
        check_leaf(entity, row, key, findings);
    }
    Ok(leaves(&rows))
}

/// Checks that old rows of a table that a query depends on tell these columns, in the table or in each of its partitions,
/// which are returned. Without columns it is enough that updates and deletes are told at all.
pub(super) async fn check_rule(
    client: &Reader<'_>,
    entity: &str,
    oid: Oid,
    columns: &[String],
    findings: &mut Findings,
) -> Result<Vec<Leaf>, SourceError> {
    let rows = query(client, "read replica identity", include_str!("../../sql/identity.sql"), &[&oid]).await?;
    for row in &rows {
        let name = TableName { schema: row.get("schema"), name: row.get("name") };
        let subject = format!("entity {entity}");
        if !is_logged(row, &name, &subject, findings) {
            continue;
        }
        let identity: String = row.get("identity");
        let said: Vec<String> = row.get("columns");
        let missing: Vec<&str> = columns.iter().filter(|column| !said.contains(column)).map(String::as_str).collect();
        if identity == "f" || (missing.is_empty() && !said.is_empty()) {
            continue;
        }
        let what = if said.is_empty() {
            format!("{name} has no replica identity: updates and deletes of published rows fail")
        } else {
            let missing = missing.join(", ");
            format!(
                "the replica identity of {name} does not carry {missing}: a change does not tell which entries it voids"
            )
        };
        let remedy = "set one that carries them, before the table is published";
        findings.add(Finding::error(REPLICA_IDENTITY, subject, what, remedy).sql(format!("{}FULL", alter(&name))));
    }
    Ok(leaves(&rows))
}

fn leaves(rows: &[Row]) -> Vec<Leaf> {
    let leaf = |row: &Row| Leaf {
        oid: row.get("oid"),
        name: TableName { schema: row.get("schema"), name: row.get("name") },
        full: row.get::<_, &str>("identity") == "f",
        columns: row.get("columns"),
    };
    rows.iter().map(leaf).collect()
}

/// Whether a table or partition can be followed at all; an unlogged one may be mended, and is looked at further.
fn is_logged(row: &Row, name: &TableName, subject: &str, findings: &mut Findings) -> bool {
    if row.get::<_, String>("kind") == "f" {
        let what = format!("partition {name} is a foreign table: its changes are not in this server's log");
        findings.add(Finding::error("foreign_table", subject, what, "cache the table where it lives"));
        return false;
    }
    if row.get::<_, String>("persistence") != "p" {
        let what = format!("{name} is unlogged or temporary: its changes are not in the log");
        let sql = format!("ALTER TABLE {} SET LOGGED", name.sql());
        findings.add(Finding::error("table_unlogged", subject, what, "make it a logged table").sql(sql));
    }
    true
}

fn check_leaf(entity: &EntityConfig, row: &Row, key: Option<&ChosenKey>, findings: &mut Findings) {
    let name = TableName { schema: row.get("schema"), name: row.get("name") };
    let subject = format!("entity {}", entity.name);
    if !is_logged(row, &name, &subject, findings) {
        return;
    }
    let Some(key) = key else { return };
    let identity: String = row.get("identity");
    let said: Vec<String> = row.get("columns");
    if identity == "f" || key.columns.iter().all(|column| said.contains(column)) {
        return;
    }
    let what = match identity.as_str() {
        "n" => format!("{name} has replica identity nothing: updates and deletes of published rows fail"),
        _ => format!("the replica identity of {name} does not cover the key ({})", key.columns.join(", ")),
    };
    let remedy = "set one that covers the key, before the table is published";
    findings.add(Finding::error(REPLICA_IDENTITY, subject, what, remedy).sql(format!("{}FULL", alter(&name))));
}

/// The beginning of the SQL that sets a replica identity; [`super::identities`] complete it.
pub(super) fn alter(name: &TableName) -> String {
    format!("ALTER TABLE {} REPLICA IDENTITY ", name.sql())
}
