//! An entity's table: its kind, the rights on it, its columns and its shape.

mod check;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

pub(super) use self::check::{ROW_SECURITY, check_tags, row_security};
use self::check::{check_rights, check_rows, check_types, kind_name, missing};
use super::column::{Column, choose, generated, key_columns, read_columns};
use super::finding::{Finding, Findings};
use super::identity::{self, Leaf};
use super::reader::Reader;
use super::signature::Signature;
use super::types::{ColumnTypes, Oid};
use super::{lifetime, query_opt, wal2json};
use crate::config::{EntityConfig, Plugin, SourceConfig, TableName};
use crate::entity::{Published, Shape, ValueColumn};
use crate::source::SourceError;

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
    /// The columns that the stream must tell of old rows; `None` where that is not known.
    pub(super) told: Option<Vec<String>>,
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
    client: &Reader<'_>,
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
    let key_columns = key.as_ref().and_then(|key| key_columns(entity, &key.columns, &columns, findings));
    let leaves = identity::check(client, entity, oid, key.as_ref(), findings).await?;
    let told = key.map(|key| key.columns);
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
        told,
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
        let said: Vec<_> = value.iter().map(|c| (c.name.as_str(), c.base.oid, c.base.name.as_str())).collect();
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
    client: &Reader<'_>,
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
