//! The publications: whether all that entities need reaches the stream, under the name that is expected.
//!
//! What several publications say of one table is put together as Postgres does it: it streams what any of them publishes,
//! under the name of the topmost table by whose name one of them publishes it; a row that passes any of their filters, and
//! every row where one of them has none.

mod listed;
mod published;

use std::collections::HashMap;

use super::finding::{Finding, Findings, Phase};
use super::look::{Locks, Look};
use super::query;
use super::reader::Reader;
use super::table::Table;
use super::types::Oid;
use crate::config::SourceConfig;
use crate::entity::TABLE_LOCKED;
use crate::source::SourceError;
use crate::sql::quote_ident;

use listed::Listed;

/// The code of the finding that a publication does not exist: that concerns all entities.
pub const MISSING: &str = "publication_missing";

/// What the publications of the configuration say of the tables of one pass.
pub(super) struct Publications {
    /// The configured names.
    names: Vec<String>,
    /// Those that exist, in the order of the names.
    there: Vec<Publication>,
    /// By which schemas tables are published.
    memberships: HashMap<Oid, Vec<String>>,
}

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

impl Publication {
    fn ident(&self) -> String {
        quote_ident(&self.name)
    }

    fn subject(&self) -> String {
        format!("publication {}", self.name)
    }
}

impl Publications {
    /// Reads them, after the looks whose tables they are to be compared with.
    pub(super) async fn read(
        reader: &Reader<'_>,
        source: &SourceConfig,
        looks: &[Look],
        locks: &mut Locks,
    ) -> Result<Self, SourceError> {
        let names = source.publication.names();
        let rows = query(reader, "read publications", include_str!("../../sql/publication.sql"), &[&names]).await?;
        let server_version = rows.first().map_or(0, |row| row.get("server_version"));
        let mut there: Vec<Publication> = rows
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
        there.sort_by_key(|publication| names.iter().position(|name| *name == publication.name));
        let tables: Vec<&Table> = looks.iter().flat_map(|look| look.tables.iter().flatten()).collect();
        let memberships = listed::read(reader, (names, &mut there), &tables, server_version, locks).await?;
        Ok(Publications { names: names.to_vec(), there, memberships })
    }

    /// Compares the publications with entities' tables, and completes their shapes by what is published of them.
    pub(super) fn check<'t>(&self, tables: impl Iterator<Item = &'t mut Table>, findings: &mut Findings) {
        let mut tables: Vec<&mut Table> = tables.collect();
        let missing: Vec<&String> =
            self.names.iter().filter(|name| !self.there.iter().any(|p| p.name == **name)).collect();
        if !missing.is_empty() {
            check_missing(&missing, &self.there, &tables, findings);
            return;
        }
        for publication in self.there.iter().filter(|publication| !publication.complete) {
            let what = "does not publish all of insert, update, delete and truncate: entries would stay stale";
            let finding = Finding::error("publication_operations", publication.subject(), what, "publish all four");
            let ident = publication.ident();
            let sql = format!("ALTER PUBLICATION {ident} SET (publish = 'insert, update, delete, truncate')");
            findings.add(finding.mended_in(Phase::Publication, sql));
        }
        for table in &mut tables {
            check_roots(table, &self.there, findings);
            let by: Vec<(&Publication, &Listed)> =
                self.there.iter().filter_map(|p| Some((p, p.tables.get(&table.oid)?))).collect();
            if by.is_empty() {
                check_absent(table, &self.there, findings);
                continue;
            }
            if let Some((publication, _)) = by.iter().find(|(_, listed)| listed.is_locked) {
                let what = format!("publishes rows of {}, which is locked, as it is while it is altered", table.name);
                let remedy = "wait until that has ended";
                findings.add(Finding::error(TABLE_LOCKED, publication.subject(), what, remedy));
                continue;
            }
            published::check(table, &by, findings);
            let membership = self.memberships.get(&table.oid).map_or(&[][..], Vec::as_slice);
            let lists: Vec<_> = by.iter().map(|(p, listed)| (&p.name, &listed.columns, &listed.row_filter)).collect();
            let facts = format!("{:016x} {membership:?} {lists:?}", table.published.version);
            table.published.version = crate::entity::hash(facts.as_bytes());
            table.published.row_filter = published::row_filter(&by);
        }
    }
}

/// Publications that do not exist: the first of them is to have the tables that no other has.
fn check_missing(missing: &[&String], there: &[Publication], tables: &[&mut Table], findings: &mut Findings) {
    let listed = |table: &Table| there.iter().any(|p| p.all_tables || p.tables.contains_key(&table.oid));
    let mut wanted: Vec<String> = tables.iter().filter(|table| !listed(table)).map(|table| table.name.sql()).collect();
    wanted.sort();
    wanted.dedup();
    // Tables that are still to be made are in none: a publication is made when there is something for it.
    let exist = !tables.is_empty();
    for name in missing {
        let remedy = "create it for the entities' tables";
        let finding = Finding::error(MISSING, format!("publication {name}"), "does not exist", remedy);
        let of_tables = match &wanted[..] {
            [] => String::new(),
            wanted => format!(" FOR TABLE {}", wanted.join(", ")),
        };
        findings.add(if exist {
            let ident = quote_ident(name);
            let sql = format!("CREATE PUBLICATION {ident}{of_tables} WITH (publish_via_partition_root = true)");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TableName;
    use crate::entity::Published;

    fn table(name: &str, oid: Oid) -> Table {
        Table {
            name: TableName { schema: "public".to_owned(), name: name.to_owned() },
            oid,
            partitioned: false,
            ancestors: Vec::new(),
            leaves: Vec::new(),
            key_columns: Vec::new(),
            told: None,
            value_columns: Vec::new(),
            generated_columns: Vec::new(),
            unreadable: Vec::new(),
            role: "walcache".to_owned(),
            of_query: false,
            published: Published { row_filter: None, version: 0 },
            shape: None,
        }
    }

    fn publication(name: &str, oids: &[Oid]) -> Publication {
        let listed = || Listed {
            row_filter: None,
            filter_columns: Vec::new(),
            columns: Vec::new(),
            has_list: false,
            is_locked: false,
        };
        Publication {
            name: name.to_owned(),
            all_tables: oids.is_empty(),
            complete: true,
            via_root: true,
            may_carry_generated: false,
            tables: oids.iter().map(|oid| (*oid, listed())).collect(),
        }
    }

    /// What setup would do where these are configured and those are there.
    fn steps(names: &[&str], there: Vec<Publication>, tables: &mut [Table]) -> Vec<Option<String>> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let publications = Publications { names, there, memberships: HashMap::new() };
        let mut findings = Findings::default();
        publications.check(tables.iter_mut(), &mut findings);
        let step = |finding: Finding| {
            assert_eq!((finding.code, finding.setup.is_some()), (MISSING, finding.sql.is_some()));
            finding.sql
        };
        findings.0.into_iter().map(step).collect()
    }

    #[test]
    fn each_publication_that_is_missing_is_made() {
        let with = "WITH (publish_via_partition_root = true)";
        let whole = format!("CREATE PUBLICATION \"a\" FOR TABLE \"public\".\"one\", \"public\".\"two\" {with}");
        let rest = format!("CREATE PUBLICATION \"b\" FOR TABLE \"public\".\"two\" {with}");
        let empty = format!("CREATE PUBLICATION \"b\" {with}");
        let (whole, rest, empty) = (Some(whole), Some(rest), Some(empty));
        let mut tables = [table("one", 1), table("two", 2)];
        assert_eq!(steps(&["a", "b"], vec![], &mut tables), [whole, empty.clone()]);
        assert_eq!(steps(&["a", "b"], vec![publication("a", &[1])], &mut tables), [rest]);
        assert_eq!(steps(&["a", "b"], vec![publication("a", &[1, 2])], &mut tables), std::slice::from_ref(&empty));
        assert_eq!(steps(&["a", "b"], vec![publication("a", &[])], &mut tables), [empty]);
        // Tables that are still to be made.
        assert_eq!(steps(&["a", "b"], vec![], &mut []), [None, None]);
    }
}
