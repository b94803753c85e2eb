//! Which tables a publication publishes, and how: what the view `pg_publication_tables` shows, without its locks.

use std::collections::{HashMap, HashSet};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Row, SimpleQueryMessage};

use super::super::look::Locks;
use super::super::query;
use super::super::reader::Reader;
use super::super::table::Table;
use super::super::types::Oid;
use super::Publication;
use crate::source::SourceError;

/// The first version with row filters, column lists and schemas in publications.
const WITH_FILTERS: i32 = 150_000;

/// How a publication has a table.
pub(super) struct Listed {
    pub(super) row_filter: Option<String>,
    /// What the filter reads.
    pub(super) filter_columns: Vec<String>,
    /// The published columns.
    pub(super) columns: Vec<String>,
    /// Whether that is a list which somebody wrote.
    pub(super) has_list: bool,
    /// Whether the table is locked, so that the filter cannot be told.
    pub(super) is_locked: bool,
}

/// By which schemas a publication has a table.
#[derive(Clone, Copy, Default)]
struct Schemas {
    /// Its own.
    own: bool,
    /// That of something that it is a partition of.
    above: bool,
}

/// Tells each publication its tables, of these, their partitions and what they are partitions of; gives by which schemas
/// each is published.
pub(super) async fn read(
    reader: &Reader<'_>,
    (names, publications): (&[String], &mut [Publication]),
    tables: &[&Table],
    server_version: i32,
    locks: &mut Locks,
) -> Result<HashMap<Oid, Vec<String>>, SourceError> {
    let own: HashSet<Oid> = tables.iter().map(|table| table.oid).collect();
    let around =
        tables.iter().flat_map(|table| table.ancestors.iter().copied().chain(table.leaves.iter().map(|l| l.oid)));
    let mut oids: Vec<Oid> = own.iter().copied().chain(around).collect();
    oids.sort_unstable();
    oids.dedup();
    let mut memberships: HashMap<Oid, Vec<String>> = HashMap::new();
    let mut schemas: HashMap<(String, Oid), Schemas> = HashMap::new();
    if server_version >= WITH_FILTERS {
        let sql = include_str!("../../../sql/publication_schemas.sql");
        for row in query(reader, "read publications' schemas", sql, &[&names, &oids]).await? {
            let oid: Oid = row.get("oid");
            memberships.entry(oid).or_default().push(row.get("membership"));
            let schemas = schemas.entry((row.get("publication"), oid)).or_default();
            if row.get("is_own") {
                schemas.own = true;
            } else {
                schemas.above = true;
            }
        }
    }
    let sql = include_str!("../../../sql/publication_tables.sql");
    for row in query(reader, "read publications' tables", sql, &[&names, &oids]).await? {
        let (name, oid): (String, Oid) = (row.get("publication"), row.get("oid"));
        let Some(publication) = publications.iter_mut().find(|publication| publication.name == name) else { continue };
        let schemas = schemas.get(&(name, oid)).copied().unwrap_or_default();
        if !is_published(publication, &row, schemas) {
            continue;
        }
        // A schema's tables have neither, nor has anything where all are published.
        let entry = row.get::<_, Option<Oid>>("listed").filter(|_| !publication.all_tables && !schemas.own);
        let mut listed = Listed {
            row_filter: None,
            filter_columns: row.get("filter_columns"),
            columns: row.get("columns"),
            has_list: row.get("has_list"),
            is_locked: false,
        };
        if let Some(entry) = entry.filter(|_| own.contains(&oid) && row.get("has_filter")) {
            match row_filter(reader, entry, locks).await? {
                Some(filter) => listed.row_filter = filter,
                None => {
                    locks.met();
                    listed.is_locked = true;
                }
            }
        }
        publication.tables.insert(oid, listed);
    }
    Ok(memberships)
}

/// Whether changes come under the name of this table: as `pg_get_publication_tables()` decides it.
fn is_published(publication: &Publication, row: &Row, schemas: Schemas) -> bool {
    let (is_partitioned, is_partition): (bool, bool) = (row.get("is_partitioned"), row.get("is_partition"));
    let is_listed = row.get::<_, Option<Oid>>("listed").is_some();
    let (is_listed_above, is_logged): (bool, bool) = (row.get("is_listed_above"), row.get("is_logged"));
    let own = is_listed || (schemas.own && is_logged);
    let above = is_listed_above || (schemas.above && is_logged);
    match (publication.all_tables, publication.via_root) {
        (true, true) => is_logged && !is_partition,
        (true, false) => is_logged && !is_partitioned,
        // Under the topmost name.
        (false, true) => own && !above,
        (false, false) => (own || above) && !is_partitioned,
    }
}

/// A row filter, which is `None` if it is gone meanwhile; `None` if the table is locked.
async fn row_filter(reader: &Reader<'_>, entry: Oid, locks: &Locks) -> Result<Option<Option<String>>, SourceError> {
    const WHAT: &str = "read a publication's row filter";
    let sql = include_str!("../../../sql/row_filter.sql");
    let sql = sql.replace("{limit}", &locks.limit().as_millis().to_string()).replace("{entry}", &entry.to_string());
    let read = async { reader.simple_query(&sql).await.map_err(|error| SourceError::postgres(WHAT, error)) };
    match reader.within(WHAT, read).await {
        Ok(messages) => Ok(Some(messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))),
        Err(SourceError::Postgres { error, .. }) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(None),
        Err(error) => Err(error),
    }
}
