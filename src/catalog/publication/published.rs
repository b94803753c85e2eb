//! What of a table is published: its rows, by row filters, and its columns, by column lists.
//!
//! Postgres itself fails the application's updates and deletes where a row filter reads columns that the replica identity
//! lacks, and where a column list lacks columns of the replica identity; and the stream, where publications have different
//! lists for one table. Each is a finding, with the SQL that mends it.

use super::super::finding::{Finding, Findings};
use super::super::identity::Leaf;
use super::super::table::Table;
use super::{Listed, Publication};
use crate::sql::quote_ident;

type By<'a> = (&'a Publication, &'a Listed);

/// The filter that the stream applies; `None` where it gives every row.
pub(super) fn row_filter(by: &[By<'_>]) -> Option<String> {
    let filters: Option<Vec<&String>> = by.iter().map(|(_, listed)| listed.row_filter.as_ref()).collect();
    let mut filters = filters.filter(|filters| !filters.is_empty())?;
    filters.sort();
    filters.dedup();
    Some(filters.iter().map(|filter| format!("({filter})")).collect::<Vec<_>>().join(" OR "))
}

/// Checks a table that these publications list.
pub(super) fn check(table: &Table, by: &[By<'_>], findings: &mut Findings) {
    if let Some(filter) = row_filter(by) {
        check_filter(table, by, &filter, findings);
    }
    check_lists(table, by, findings);
    for (publication, listed) in by {
        // One list for all, or the stream fails: see above.
        check_columns(table, publication, listed, findings);
    }
    let [(publication, _), ..] = by else { return };
    check_generated(table, publication, by, findings);
}

fn check_filter(table: &Table, by: &[By<'_>], filter: &str, findings: &mut Findings) {
    let name = &table.name;
    let Some((publication, listed)) = by.iter().find(|(_, listed)| listed.row_filter.is_some()) else { return };
    let sql = again(publication, table, listed.has_list.then_some(&listed.columns), None);
    if table.of_query {
        let what = format!(
            "publishes {name}, which a query depends on, only where {filter}: changes of other rows void nothing"
        );
        let remedy = "publish the table without a filter";
        findings.add(Finding::error("publication_row_filter", publication.subject(), what, remedy).sql(sql));
        return;
    }
    let what = format!("publishes {name} only where {filter}: other rows are none of the entity's, and read as absent");
    let remedy = "nothing, if that is meant; else publish the table without a filter";
    findings.add(Finding::warning("publication_row_filter", publication.subject(), what, remedy).sql(sql));
    let reads = |column: &String| by.iter().any(|(_, listed)| listed.filter_columns.contains(column));
    let unreadable: Vec<&str> = table.unreadable.iter().filter(|c| reads(c)).map(String::as_str).collect();
    if !unreadable.is_empty() {
        let columns = unreadable.iter().map(|column| quote_ident(column)).collect::<Vec<_>>().join(", ");
        let what =
            format!("role {} may not read {} of {name}, which the row filter needs", table.role, unreadable.join(", "));
        let sql = format!("GRANT SELECT ({columns}) ON {} TO {}", name.sql(), quote_ident(&table.role));
        let finding = Finding::error("table_rights", publication.subject(), what, "grant it");
        findings.add(finding.mended_in(super::Phase::Grant, sql));
    }
    for leaf in table.leaves.iter().filter(|leaf| !leaf.full) {
        let said = |column: &&String| leaf.columns.contains(column);
        let lacking = |(_, listed): &&By<'_>| !listed.filter_columns.iter().all(|column| said(&column));
        let Some((publication, listed)) = by.iter().find(lacking) else { continue };
        let columns: Vec<&str> = listed.filter_columns.iter().filter(|c| !said(c)).map(String::as_str).collect();
        let what = format!(
            "filters rows of {name} by {}, which the replica identity of {} does not cover: updates and deletes fail there",
            columns.join(", "),
            leaf.name
        );
        let full = format!("ALTER TABLE {} REPLICA IDENTITY FULL", leaf.name.sql());
        // A column list allows no replica identity full.
        let sql = match listed.has_list {
            true => format!("{};\n{full}", again(publication, table, None, listed.row_filter.as_deref())),
            false => full,
        };
        let remedy = "let the replica identity cover the filter's columns";
        findings.add(Finding::error("row_filter_identity", publication.subject(), what, remedy).sql(sql));
    }
}

/// Publications with different lists for one table.
fn check_lists(table: &Table, by: &[By<'_>], findings: &mut Findings) {
    let sorted = |listed: &Listed| {
        let mut columns = listed.columns.clone();
        columns.sort();
        columns
    };
    let Some((first, listed)) = by.first() else { return };
    let Some((other, _)) = by.iter().find(|(_, other)| sorted(other) != sorted(listed)) else { return };
    let what = format!("publishes other columns of {} than publication {}: the stream fails", table.name, other.name);
    let remedy = "publish the same columns in each, or the table in one only";
    // Whichever has the fewest columns has a list, so it names the table by itself.
    let narrowest = by.iter().min_by_key(|(_, listed)| listed.columns.len());
    let (narrowest, _) = narrowest.unwrap_or(&by[0]);
    let sql = format!("ALTER PUBLICATION {} DROP TABLE {}", narrowest.ident(), table.name.sql());
    findings.add(Finding::error("publication_column_lists", first.subject(), what, remedy).sql(sql));
}

fn check_columns(table: &Table, publication: &Publication, listed: &Listed, findings: &mut Findings) {
    let name = &table.name;
    let columns = &listed.columns;
    let lacking = |wanted: &[String]| -> Vec<String> {
        wanted.iter().filter(|column| !columns.contains(column)).cloned().collect()
    };
    let with = |more: &[String]| {
        let list: Vec<String> = columns.iter().chain(more).cloned().collect();
        again(publication, table, Some(&list), listed.row_filter.as_deref())
    };
    let keys = lacking(&table.key_columns);
    if !keys.is_empty() {
        let of = if table.of_query { "that a query's depends_on names" } else { "of the key" };
        let what = format!("publishes {name} without column(s) {} {of}", keys.join(", "));
        let remedy = "publish the table without a column list, or add them to it";
        // A column list must have the replica identity's columns. Where that lacks what is missing here, too, it is to be
        // all columns.
        let lacks = |leaf: &Leaf| leaf.full || keys.iter().any(|column| !leaf.columns.contains(column));
        let sql = match table.leaves.iter().any(lacks) {
            true => again(publication, table, None, listed.row_filter.as_deref()),
            false => with(&keys),
        };
        findings.add(Finding::error("publication_columns", publication.subject(), what, remedy).sql(sql));
        return;
    }
    if listed.has_list {
        check_identity(table, publication, listed, columns, findings);
    }
    let values = lacking(&table.value_columns);
    if !values.is_empty() {
        let served: Vec<String> =
            table.value_columns.iter().filter(|column| columns.contains(column)).map(|c| format!("{c:?}")).collect();
        let what = format!(
            "publishes {name} without column(s) {}: changes of these rows delete entries instead of rewriting them",
            values.join(", ")
        );
        let remedy = format!(
            "nothing, if that is meant; else add them to the column list, or leave them out of the entity: columns = [{}]",
            served.join(", ")
        );
        findings.add(Finding::warning("publication_columns", publication.subject(), what, remedy).sql(with(&values)));
    }
}

/// A column list must have the replica identity's columns.
fn check_identity(
    table: &Table,
    publication: &Publication,
    listed: &Listed,
    columns: &[String],
    findings: &mut Findings,
) {
    let lacks = |leaf: &&Leaf| leaf.full || !leaf.columns.iter().all(|column| columns.contains(column));
    let Some(leaf) = table.leaves.iter().find(lacks) else { return };
    let what = format!(
        "publishes {} by a column list that does not cover the replica identity of {}: updates and deletes fail there",
        table.name, leaf.name
    );
    let filter = listed.row_filter.as_deref();
    let sql = if leaf.full {
        again(publication, table, None, filter)
    } else {
        let more = leaf.columns.iter().filter(|column| !columns.contains(column));
        let list: Vec<String> = columns.iter().chain(more).cloned().collect();
        again(publication, table, Some(&list), filter)
    };
    let remedy = "publish the replica identity's columns, too; with replica identity full only a table without a list";
    findings.add(Finding::error("column_list_identity", publication.subject(), what, remedy).sql(sql));
}

/// The SQL that publishes the table anew.
fn again(publication: &Publication, table: &Table, list: Option<&Vec<String>>, filter: Option<&str>) -> String {
    let (ident, name) = (publication.ident(), table.name.sql());
    let list = list.map_or_else(String::new, |columns| {
        format!(" ({})", columns.iter().map(|column| quote_ident(column)).collect::<Vec<_>>().join(", "))
    });
    let filter = filter.map_or_else(String::new, |filter| format!(" WHERE ({filter})"));
    format!("ALTER PUBLICATION {ident} DROP TABLE {name};\nALTER PUBLICATION {ident} ADD TABLE {name}{list}{filter}")
}

/// Generated columns come, if at all, where the publication lists them.
fn check_generated(table: &Table, publication: &Publication, by: &[By<'_>], findings: &mut Findings) {
    let carried = |column: &String| {
        by.iter().any(|(publication, listed)| publication.may_carry_generated && listed.columns.contains(column))
    };
    for column in table.generated_columns.iter().filter(|column| !carried(column)) {
        let what = format!("does not carry the generated column {column} of {}", table.name);
        let remedy = "nothing: changes of these rows delete entries instead of rewriting them; or leave the column out of \
                      the entity's columns";
        findings.add(Finding::warning("generated_column", publication.subject(), what, remedy));
    }
}
