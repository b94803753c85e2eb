//! The columns of a table, and which of them an entity uses.

use std::sync::LazyLock;

use tokio_postgres::Row;

use super::finding::{Finding, Findings};
use super::query;
use super::reader::Reader;
use super::types::{KeyFacts, Oid, looking_through_domains};
use crate::config::{EntityConfig, nearest};
use crate::key::KeyColumn;
use crate::source::SourceError;
use crate::sql::quote_ident;

/// A column of the table.
#[derive(Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) type_oid: Oid,
    not_null: bool,
    pub(super) generated: bool,
    pub(super) readable: bool,
    /// Its type, domains looked through.
    pub(super) base: KeyFacts,
}

impl Column {
    fn read(row: &Row) -> Self {
        Column {
            name: row.get("name"),
            type_oid: row.get("type_oid"),
            not_null: row.get("not_null"),
            generated: row.get("generated"),
            readable: row.get("readable"),
            base: KeyFacts::read(row),
        }
    }
}

/// The columns of a table, and whether the role may read them.
pub(super) async fn read_columns(client: &Reader<'_>, oid: Oid, role_oid: Oid) -> Result<Vec<Column>, SourceError> {
    static SQL: LazyLock<String> =
        LazyLock::new(|| looking_through_domains(include_str!("../../sql/columns.sql"), "a.atttypid", "a.atttypmod"));
    let columns = query(client, "read columns", &SQL, &[&oid, &role_oid]).await?;
    Ok(columns.iter().map(Column::read).collect())
}

/// The columns of that name, or all; `None` where one does not exist.
pub(super) fn choose<'a>(
    entity: &EntityConfig,
    field: &str,
    wanted: Option<&[String]>,
    columns: &'a [Column],
    findings: &mut Findings,
) -> Option<Vec<&'a Column>> {
    let Some(wanted) = wanted else { return Some(columns.iter().collect()) };
    let mut chosen = Some(Vec::new());
    for name in wanted {
        match columns.iter().find(|column| column.name == *name) {
            Some(column) => chosen.iter_mut().for_each(|chosen| chosen.push(column)),
            None => {
                let what = format!("{field}: table {} has no column {name}", entity.table);
                let remedy = match nearest(name, columns.iter().map(|column| column.name.as_str())) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("correct the entity's {field}"),
                };
                findings.add(Finding::error("column_missing", format!("entity {}", entity.name), what, remedy));
                chosen = None;
            }
        }
    }
    chosen
}

/// The key's columns with their types; `None` where one cannot be part of a key.
pub(super) fn key_columns<'a>(
    entity: &EntityConfig,
    key: &[String],
    columns: &'a [Column],
    findings: &mut Findings,
) -> Option<Vec<(&'a Column, KeyColumn)>> {
    let subject = format!("entity {}", entity.name);
    let mut resolved = Some(Vec::new());
    let chosen = key.iter().filter_map(|name| columns.iter().find(|column| column.name == *name));
    for column in chosen {
        let Column { name, type_oid, .. } = column;
        let mut refuse = |code, what: String, remedy: &str, sql: Option<String>| {
            findings.add(Finding { sql, ..Finding::error(code, subject.clone(), what, remedy) });
            resolved = None;
        };
        if !column.not_null {
            let sql = format!("ALTER TABLE {} ALTER COLUMN {} SET NOT NULL", entity.table.sql(), quote_ident(name));
            refuse("key_nullable", format!("key column {name} can be null"), "forbid nulls", Some(sql));
            continue;
        }
        if column.generated {
            let what = format!("key column {name} is generated, so the stream does not carry it");
            refuse("key_generated", what, "choose another key", None);
            continue;
        }
        match column.base.key_type() {
            Ok(key_type) => {
                let cast = column.base.name.clone();
                let key = KeyColumn { name: name.clone(), type_oid: *type_oid, key_type, cast };
                resolved.iter_mut().for_each(|resolved: &mut Vec<_>| resolved.push((column, key.clone())));
            }
            Err(why) => {
                let what = format!("key column {name} has type {}: {why}", column.base.name);
                refuse("key_type", what, "choose another key", None);
            }
        }
    }
    resolved
}

pub(super) fn generated(columns: &[&Column]) -> Vec<String> {
    let mut names: Vec<String> = columns.iter().filter(|c| c.generated).map(|c| c.name.clone()).collect();
    names.sort();
    names.dedup();
    names
}
