//! An entity's table: its kind, the rights on it, its columns and its shape.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::finding::{Finding, Findings, Phase};
use super::identity::{self, ChosenKey, Leaf};
use super::lifetime;
use super::signature::Signature;
use super::types::{self, ColumnTypes, KeyFacts, Oid};
use super::{query, query_opt, wal2json};
use crate::config::{EntityConfig, Plugin, SourceConfig, TableName, nearest};
use crate::entity::{OnChange, Published, Shape, ValueColumn};
use crate::key::{KeyColumn, KeyType};
use crate::source::SourceError;
use crate::sql::quote_ident;

/// The code of the finding that readers must not see what is cached, nor what a fill would read.
pub(super) const ROW_SECURITY: &str = "row_security";

/// A table that exists and is one.
pub(super) struct Table {
    pub(super) name: TableName,
    pub(super) oid: Oid,
    pub(super) partitioned: bool,
    /// The tables that it is a partition of.
    pub(super) ancestors: Vec<Oid>,
    /// Where its rows are: its partitions, or itself.
    pub(super) leaves: Vec<Leaf>,
    /// The columns of the key.
    pub(super) key_columns: Vec<String>,
    /// The columns of the value that the stream can carry.
    pub(super) value_columns: Vec<String>,
    /// The generated columns among the entity's.
    pub(super) generated_columns: Vec<String>,
    /// The columns that the role may not read.
    pub(super) unreadable: Vec<String>,
    /// The role that reads.
    pub(super) role: String,
    /// Whether it is a query's: every change of it must be streamed.
    pub(super) of_query: bool,
    /// What of it is published.
    pub(super) published: Published,
    /// `None` where columns or the key cannot be served.
    pub(super) shape: Option<Shape>,
}

impl Table {
    /// Its shape, with what of it is published.
    pub(super) fn into_shape(self) -> Option<Shape> {
        self.shape.map(|shape| Shape { published: self.published, ..shape })
    }
}

/// What the publications say of a table before it is known how they publish it.
pub(super) fn published_as(row: &Row, source: &SourceConfig) -> Published {
    let published_as = match source.plugin {
        Plugin::Pgoutput => row.get::<_, Vec<String>>("published_as"),
        Plugin::Wal2json => Vec::new(),
    };
    Published { row_filter: None, version: crate::entity::hash(format!("{published_as:?}").as_bytes()) }
}

/// Looks at an entity's table with the rights of `role` (oid and name). `None` where there is no such table. The signature
/// was read before.
pub(super) async fn inspect(
    client: &Client,
    entity: &EntityConfig,
    (role_oid, role): (Oid, &str),
    (source, signature): (&SourceConfig, Signature),
    findings: &mut Findings,
) -> Result<Option<Table>, SourceError> {
    let name = &entity.table;
    let with = (name, entity.bypass_rls);
    let Some(row) = open(client, &entity.name, with, (role_oid, role), source, findings).await? else {
        return Ok(None);
    };
    let kind: String = row.get("kind");
    let oid: Oid = row.get("oid");
    let columns = read_columns(client, oid, role_oid).await?;
    let value = choose(entity, "columns", entity.columns.as_deref(), &columns, findings);
    let known_key = choose(entity, "key", entity.key.as_deref(), &columns, findings).is_some();
    let key = if known_key { identity::choose_key(client, entity, oid, findings).await? } else { None };
    // Nulls first: an index with nullable columns can be no replica identity.
    let key_columns = key.as_ref().and_then(|key| key_columns(entity, key, &columns, findings));
    let leaves = identity::check(client, entity, oid, key.as_ref(), findings).await?;
    let key = key_columns;
    let mut needed: Vec<&Column> = value.iter().flatten().copied().collect();
    needed.extend(key.iter().flatten().map(|(column, _)| *column));
    check_rights(entity, &row, &needed, role, findings);
    let mut table = Table {
        name: name.clone(),
        oid,
        partitioned: kind == "p",
        ancestors: row.get("ancestors"),
        leaves,
        key_columns: key.iter().flatten().map(|(column, _)| column.name.clone()).collect(),
        value_columns: value.iter().flatten().filter(|c| !c.generated).map(|c| c.name.clone()).collect(),
        generated_columns: generated(&needed),
        unreadable: columns.iter().filter(|column| !column.readable).map(|column| column.name.clone()).collect(),
        role: role.to_owned(),
        of_query: false,
        published: published_as(&row, source),
        shape: None,
    };
    if let (Some(value), Some(key)) = (&value, &key) {
        let names = value.iter().chain(key.iter().map(|(column, _)| column)).map(|column| column.name.as_str());
        check_tags(entity, &names.collect::<Vec<_>>(), findings);
    }
    if let (Some(value), Some(key)) = (value, key) {
        let oids: Vec<Oid> = value.iter().map(|column| column.type_oid).collect();
        let types = ColumnTypes::read(client, &oids).await?;
        check_types(entity, &value, &types, findings);
        let said: Vec<_> = value.iter().map(|c| (c.name.as_str(), c.base_oid, c.base_name.as_str())).collect();
        lifetime::check(entity, &said, findings);
        let columns = value.iter().map(|column| ValueColumn {
            name: column.name.clone(),
            type_oid: column.type_oid,
            sql_type: types.sql_type(column.type_oid),
        });
        let columns = columns.collect();
        let tables = match source.plugin {
            // So that the stream starts again where they are others.
            Plugin::Pgoutput if kind == "p" && row.get("remembers_partitions") => {
                wal2json::streamed_tables(client, oid).await?
            }
            Plugin::Pgoutput => Vec::new(),
            Plugin::Wal2json => {
                let tables = wal2json::streamed_tables(client, oid).await?;
                let needed_names: Vec<&str> = needed.iter().map(|column| column.name.as_str()).collect();
                wal2json::check_computed(&entity.name, &needed_names, &tables, findings);
                tables
            }
        };
        table.shape = Some(Shape {
            version: crate::entity::hash(format!("{} {:?}", signature.whole, types.version).as_bytes()),
            tables,
            query: None,
            table_oid: oid,
            columns,
            key: key.into_iter().map(|(_, key)| key).collect(),
            whole_row: entity.columns.is_none(),
            partitioned: kind == "p",
            published: table.published.clone(),
        });
    }
    Ok(Some(table))
}

/// Looks for an entity's table, and whether all of its rows may be read; `None` where there is no such table.
pub(super) async fn open(
    client: &Client,
    entity: &str,
    (name, bypass_rls): (&TableName, bool),
    (role_oid, role): (Oid, &str),
    source: &SourceConfig,
    findings: &mut Findings,
) -> Result<Option<Row>, SourceError> {
    let subject = format!("entity {entity}");
    let sql = include_str!("../../sql/table.sql");
    let with: [&(dyn ToSql + Sync); 4] = [&name.schema, &name.name, &role_oid, &source.publication.names()];
    let Some(row) = query_opt(client, "read table", sql, &with).await? else {
        findings.add(missing(client, name, subject).await?);
        return Ok(None);
    };
    let kind: String = row.get("kind");
    if !matches!(kind.as_str(), "r" | "p") {
        let what = format!("{name} is {}, not a table", kind_name(&kind));
        findings.add(Finding::error("not_a_table", subject, what, "name the table whose rows are to be cached"));
        return Ok(None);
    }
    check_rows(subject, name, bypass_rls, &row, role, findings);
    Ok(Some(row))
}

/// The columns of a table, and whether the role may read them.
pub(super) async fn read_columns(client: &Client, oid: Oid, role_oid: Oid) -> Result<Vec<Column>, SourceError> {
    let columns = query(client, "read columns", include_str!("../../sql/columns.sql"), &[&oid, &role_oid]).await?;
    Ok(columns.iter().map(Column::read).collect())
}

/// Whether the columns of its tags are there.
pub(super) fn check_tags(entity: &EntityConfig, columns: &[&str], findings: &mut Findings) {
    for template in entity.templates() {
        for name in template.columns().filter(|name| !columns.contains(name)) {
            let what = format!("has a tag of column {name:?}, which is neither in its value nor in its key");
            let remedy = match nearest(name, columns.iter().copied()) {
                Some(near) => format!("correct the entity's tags; did you mean {near}?"),
                None => format!("correct the entity's tags, or add {name} to its columns"),
            };
            findings.add(Finding::error("tag_column", format!("entity {}", entity.name), what, remedy));
        }
    }
}

/// A column of the table.
#[derive(Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) type_oid: Oid,
    not_null: bool,
    pub(super) generated: bool,
    pub(super) readable: bool,
    deterministic: bool,
    pub(super) base_oid: Oid,
    base_modifier: i32,
    base_kind: String,
    pub(super) base_name: String,
    labels: Vec<String>,
}

impl Column {
    fn read(row: &Row) -> Self {
        Column {
            name: row.get("name"),
            type_oid: row.get("type_oid"),
            not_null: row.get("not_null"),
            generated: row.get("generated"),
            readable: row.get("readable"),
            deterministic: row.get("deterministic"),
            base_oid: row.get("base_oid"),
            base_modifier: row.get("base_modifier"),
            base_kind: row.get("base_kind"),
            base_name: row.get("base_name"),
            labels: row.get("labels"),
        }
    }

    /// What its type is as a key's; or why it cannot be one.
    pub(super) fn key_type(&self) -> Result<KeyType, &'static str> {
        types::key_type(KeyFacts {
            oid: self.base_oid,
            modifier: self.base_modifier,
            kind: &self.base_kind,
            deterministic: self.deterministic,
            labels: self.labels.clone(),
        })
    }
}

fn generated(columns: &[&Column]) -> Vec<String> {
    let mut names: Vec<String> = columns.iter().filter(|c| c.generated).map(|c| c.name.clone()).collect();
    names.sort();
    names.dedup();
    names
}

async fn missing(client: &Client, name: &TableName, subject: String) -> Result<Finding, SourceError> {
    let rows = query(client, "read table names", include_str!("../../sql/table_names.sql"), &[]).await?;
    let tables: Vec<TableName> =
        rows.iter().map(|row| TableName { schema: row.get("schema"), name: row.get("name") }).collect();
    // The right name in another schema, or in other letters, is the likeliest mistake.
    let elsewhere = tables.iter().find(|table| table.name.eq_ignore_ascii_case(&name.name)).map(ToString::to_string);
    let texts: Vec<String> = tables.iter().map(ToString::to_string).collect();
    let near = elsewhere.or_else(|| nearest(&name.to_string(), texts.iter().map(String::as_str)).map(str::to_owned));
    let remedy = match near {
        Some(near) => format!("create it, or correct the entity's table; did you mean {near}?"),
        None => "create it, or correct the entity's table".to_owned(),
    };
    Ok(Finding::error("table_missing", subject, format!("table {name} does not exist"), remedy))
}

fn kind_name(kind: &str) -> &'static str {
    match kind {
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "S" => "a sequence",
        _ => "another kind of relation",
    }
}

/// Whether a SELECT sees exactly the rows whose changes are streamed under the table's name.
fn check_rows(subject: String, name: &TableName, bypass_rls: bool, row: &Row, role: &str, findings: &mut Findings) {
    if row.get("has_children") {
        let what =
            format!("{name} has tables that inherit from it: their rows are read with it but stream under their names");
        findings.add(Finding::error(
            "inheritance",
            subject.clone(),
            what,
            "name the tables one by one, or use partitions",
        ));
    }
    if row.get("row_security") && !bypass_rls {
        let what = format!(
            "row-level security is enabled on {name}, and neither the stream nor fills obey its policies: every reader would \
             see every row"
        );
        let remedy = "set bypass_rls = true in the entity if every reader may; else do not cache this table";
        findings.add(Finding::error(ROW_SECURITY, subject, what, remedy));
    } else if row.get("hides_rows") {
        let what = format!("row-level security of {name} hides rows from {role}: they would be cached as absent");
        let sql = format!("ALTER ROLE {} BYPASSRLS", quote_ident(role));
        let remedy = "let the role see every row";
        findings.add(Finding::error("row_security_role", subject, what, remedy).sql(sql));
    }
}

/// Names the columns whose changes cannot refresh an entry.
fn check_types(entity: &EntityConfig, value: &[&Column], types: &ColumnTypes, findings: &mut Findings) {
    if entity.on_change() == OnChange::Invalidate {
        // Changes never make values of it.
        return;
    }
    for column in value {
        let Some((name, why)) = types.obstacle(column.type_oid) else { continue };
        let what = format!(
            "column {} is of type {name}, whose JSON form cannot be made from its text in the stream: {why}. Each change \
             of a row drops its entry, and the next read takes it from Postgres",
            column.name
        );
        let remedy =
            "nothing, if such rows are read seldom or change seldom; or leave the column out of the entity's columns";
        findings.add(Finding::warning("type_refetched", format!("entity {}", entity.name), what, remedy));
    }
}

/// The columns of that name, or all; `None` where one does not exist.
fn choose<'a>(
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
fn key_columns<'a>(
    entity: &EntityConfig,
    key: &ChosenKey,
    columns: &'a [Column],
    findings: &mut Findings,
) -> Option<Vec<(&'a Column, KeyColumn)>> {
    let subject = format!("entity {}", entity.name);
    let mut resolved = Some(Vec::new());
    let chosen = key.columns.iter().filter_map(|name| columns.iter().find(|column| column.name == *name));
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
        match column.key_type() {
            Ok(key_type) => {
                let cast = column.base_name.clone();
                let key = KeyColumn { name: name.clone(), type_oid: *type_oid, key_type, cast };
                resolved.iter_mut().for_each(|resolved: &mut Vec<_>| resolved.push((column, key.clone())));
            }
            Err(why) => {
                let what = format!("key column {name} has type {}: {why}", column.base_name);
                refuse("key_type", what, "choose another key", None);
            }
        }
    }
    resolved
}

fn check_rights(entity: &EntityConfig, row: &Row, needed: &[&Column], role: &str, findings: &mut Findings) {
    let usage: bool = row.get("schema_usage");
    let (name, ident) = (&entity.table, quote_ident(role));
    if usage && needed.iter().all(|column| column.readable) {
        return;
    }
    let mut grants = Vec::new();
    if !usage {
        grants.push(format!("GRANT USAGE ON SCHEMA {} TO {ident}", quote_ident(&name.schema)));
    }
    if needed.iter().any(|column| !column.readable) {
        // No more than the entity needs, where it says what that is.
        let columns = match &entity.columns {
            Some(_) => {
                let mut quoted: Vec<String> = needed.iter().map(|column| quote_ident(&column.name)).collect();
                quoted.sort();
                quoted.dedup();
                format!(" ({})", quoted.join(", "))
            }
            None => String::new(),
        };
        grants.push(format!("GRANT SELECT{columns} ON {} TO {ident}", name.sql()));
    }
    let what = format!("role {role} may not read {name}");
    let finding = Finding::error("table_rights", format!("entity {}", entity.name), what, "grant it");
    findings.add(finding.mended_in(Phase::Grant, grants.join(";\n")));
}
