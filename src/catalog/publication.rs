//! The publications: whether all that entities need reaches the stream, under the name that is expected.
//!
//! What several publications say of one table is put together as Postgres does it: it streams what any of them publishes,
//! under the name of the topmost table by whose name one of them publishes it; a row that passes any of their filters, and
//! every row where one of them has none.

mod published;

use std::collections::HashMap;

use tokio_postgres::Client;

use super::finding::{Finding, Findings, Phase};
use super::query;
use super::table::Table;
use super::types::Oid;
use crate::config::Config;
use crate::source::SourceError;
use crate::sql::quote_ident;

/// The first version with row filters, column lists and schemas in publications.
const WITH_FILTERS: i32 = 150_000;

/// A publication of the configuration that exists.
struct Publication {
    name: String,
    all_tables: bool,
    complete: bool,
    via_root: bool,
    may_carry_generated: bool,
    /// Its tables, by the names that the stream gives them.
    tables: HashMap<Oid, Listed>,
}

/// How a publication has a table.
struct Listed {
    row_filter: Option<String>,
    /// What the filter reads.
    filter_columns: Vec<String>,
    /// The published columns, which before Postgres 15 are all of them.
    columns: Option<Vec<String>>,
    /// Whether that is a list which somebody wrote.
    has_list: bool,
}

impl Publication {
    fn ident(&self) -> String {
        quote_ident(&self.name)
    }

    fn subject(&self) -> String {
        format!("publication {}", self.name)
    }
}

/// Compares the publications with the entities' tables, which are `None` where they do not exist, and completes their
/// shapes by what is published of them.
pub(super) async fn check(
    client: &Client,
    config: &Config,
    tables: &mut [Option<Table>],
    findings: &mut Findings,
) -> Result<(), SourceError> {
    let names = config.source.publication.names();
    let (publications, server_version) = read(client, names).await?;
    let missing: Vec<&String> = names.iter().filter(|name| !publications.iter().any(|p| p.name == **name)).collect();
    if !missing.is_empty() {
        check_missing(&missing, &publications, tables, findings);
        return Ok(());
    }
    for publication in publications.iter().filter(|publication| !publication.complete) {
        let what = "does not publish all of insert, update, delete and truncate: entries would stay stale";
        let finding = Finding::error("publication_operations", publication.subject(), what, "publish all four");
        let ident = publication.ident();
        let sql = format!("ALTER PUBLICATION {ident} SET (publish = 'insert, update, delete, truncate')");
        findings.add(finding.mended_in(Phase::Publication, sql));
    }
    let memberships = read_memberships(client, names, tables, server_version).await?;
    for table in tables.iter_mut().flatten() {
        check_roots(table, &publications, findings);
        let by: Vec<(&Publication, &Listed)> =
            publications.iter().filter_map(|p| Some((p, p.tables.get(&table.oid)?))).collect();
        if by.is_empty() {
            check_absent(table, &publications, findings);
            continue;
        }
        published::check(table, &by, findings);
        let membership = memberships.get(&table.oid).map_or(&[][..], Vec::as_slice);
        let lists: Vec<_> = by.iter().map(|(p, listed)| (&p.name, &listed.columns, &listed.row_filter)).collect();
        let facts = format!("{:016x} {membership:?} {lists:?}", table.published.version);
        table.published.version = crate::entity::hash(facts.as_bytes());
        table.published.row_filter = published::row_filter(&by);
    }
    Ok(())
}

async fn read(client: &Client, names: &[String]) -> Result<(Vec<Publication>, i32), SourceError> {
    let rows = query(client, "read publications", include_str!("../../sql/publication.sql"), &[&names]).await?;
    let server_version = rows.first().map_or(0, |row| row.get("server_version"));
    let mut publications: Vec<Publication> = rows
        .iter()
        .map(|row| Publication {
            name: row.get("name"),
            all_tables: row.get("all_tables"),
            complete: row.get("complete"),
            via_root: row.get("via_root"),
            may_carry_generated: row.get("may_carry_generated"),
            tables: HashMap::new(),
        })
        .collect();
    // As the configuration has them: the first is the one that lacks what none of them has.
    publications.sort_by_key(|publication| names.iter().position(|name| *name == publication.name));
    let sql = include_str!("../../sql/publication_tables.sql");
    for row in query(client, "read publications' tables", sql, &[&names]).await? {
        let name: &str = row.get("publication");
        if let Some(publication) = publications.iter_mut().find(|publication| publication.name == name) {
            let listed = Listed {
                row_filter: row.get("row_filter"),
                filter_columns: row.get("filter_columns"),
                columns: row.get("columns"),
                has_list: row.get("has_list"),
            };
            publication.tables.insert(row.get("oid"), listed);
        }
    }
    Ok((publications, server_version))
}

/// By which schemas tables are published.
async fn read_memberships(
    client: &Client,
    names: &[String],
    tables: &[Option<Table>],
    server_version: i32,
) -> Result<HashMap<Oid, Vec<String>>, SourceError> {
    let mut memberships: HashMap<Oid, Vec<String>> = HashMap::new();
    if server_version < WITH_FILTERS {
        return Ok(memberships);
    }
    let oids: Vec<Oid> = tables.iter().flatten().map(|table| table.oid).collect();
    let sql = include_str!("../../sql/publication_schemas.sql");
    for row in query(client, "read publications' schemas", sql, &[&names, &oids]).await? {
        memberships.entry(row.get("oid")).or_default().push(row.get("membership"));
    }
    Ok(memberships)
}

/// Publications that do not exist: the first of them is to have the tables that no other has.
fn check_missing(missing: &[&String], there: &[Publication], tables: &[Option<Table>], findings: &mut Findings) {
    let listed = |table: &&Table| there.iter().any(|p| p.all_tables || p.tables.contains_key(&table.oid));
    let mut wanted: Vec<String> =
        tables.iter().flatten().filter(|table| !listed(table)).map(|table| table.name.sql()).collect();
    wanted.sort();
    wanted.dedup();
    let exist = tables.iter().any(Option::is_some);
    for name in missing {
        let remedy = "create it for the entities' tables";
        let finding = Finding::error("publication_missing", format!("publication {name}"), "does not exist", remedy);
        let tables = match &wanted[..] {
            [] => String::new(),
            wanted => format!(" FOR TABLE {}", wanted.join(", ")),
        };
        findings.add(if exist {
            let ident = quote_ident(name);
            let sql = format!("CREATE PUBLICATION {ident}{tables} WITH (publish_via_partition_root = true)");
            finding.mended_in(Phase::Publication, sql)
        } else {
            finding
        });
        wanted.clear();
    }
}

/// Whether changes of a partitioned table or of a partition come under its own name.
fn check_roots(table: &Table, publications: &[Publication], findings: &mut Findings) {
    let name = &table.name;
    let by_its_name = |p: &&Publication| p.via_root && (p.all_tables || p.tables.contains_key(&table.oid));
    let lists_leaves = |p: &&Publication| table.leaves.iter().any(|leaf| p.tables.contains_key(&leaf.oid));
    if table.partitioned && !publications.iter().any(|p| by_its_name(&p)) {
        let publication = publications.iter().find(lists_leaves).or(publications.first());
        if let Some(publication) = publication.filter(|publication| !publication.via_root) {
            let what = format!("publishes changes of {name} under the names of its partitions");
            let remedy = "publish them under the partitioned table's name";
            let ident = publication.ident();
            let sql = format!("ALTER PUBLICATION {ident} SET (publish_via_partition_root = true)");
            let finding = Finding::error("publication_via_root", publication.subject(), what, remedy);
            findings.add(finding.mended_in(Phase::Publication, sql));
        }
    }
    let above = |p: &&Publication| p.via_root && table.ancestors.iter().any(|above| p.tables.contains_key(above));
    if let Some(publication) = publications.iter().find(above) {
        let what = format!("publishes changes of {name} under the name of the table that it is a partition of");
        let remedy = "name that table in the entity";
        findings.add(Finding::error("publication_partition", publication.subject(), what, remedy));
    }
}

/// A table that no publication lists under its own name.
fn check_absent(table: &Table, publications: &[Publication], findings: &mut Findings) {
    let Some(first) = publications.first() else { return };
    let name = &table.name;
    let above = |p: &Publication| p.via_root && table.ancestors.iter().any(|above| p.tables.contains_key(above));
    if publications.iter().any(above) {
        // See `check_roots`.
        return;
    }
    // Its partitions are listed one by one until it is published by its root, which is a finding of its own. Whether
    // it has to be added too shows only then.
    if publications.iter().any(|p| p.all_tables) {
        return;
    }
    let what = format!("lacks table {name}");
    let finding = Finding::error("publication_table", first.subject(), what, "add it");
    let leaves_listed = table.partitioned
        && publications.iter().any(|p| !p.via_root && table.leaves.iter().any(|leaf| p.tables.contains_key(&leaf.oid)));
    if !leaves_listed {
        let sql = format!("ALTER PUBLICATION {} ADD TABLE {}", first.ident(), name.sql());
        findings.add(finding.mended_in(Phase::Publication, sql));
    }
}
