//! What keeps a table, or its columns, from being used as an entity says.

use tokio_postgres::Row;

use crate::catalog::column::Column;
use crate::catalog::finding::{Finding, Findings, Phase};
use crate::catalog::query;
use crate::catalog::reader::Reader;
use crate::catalog::types::ColumnTypes;
use crate::config::{EntityConfig, TableName, nearest};
use crate::entity::OnChange;
use crate::entity::query::ResultShape;
use crate::source::SourceError;
use crate::sql::quote_ident;

/// The code of the finding that readers must not see what is cached, nor what a fill would read.
pub(in crate::catalog) const ROW_SECURITY: &str = "row_security";

/// Whether the columns of its tags are there.
pub(in crate::catalog) fn check_tags(entity: &EntityConfig, columns: &[&str], findings: &mut Findings) {
    let is_many = entity.query.is_some() && entity.shape.unwrap_or_default() == ResultShape::Many;
    for template in entity.templates() {
        for name in template.columns().filter(|name| !columns.contains(name)) {
            let what = match is_many {
                true => format!("has a tag of {name:?}, and is of shape \"many\", which bears tags of its params only"),
                false => format!("has a tag of column {name:?}, which is neither in its value nor in its key"),
            };
            let remedy = match nearest(name, columns.iter().copied()) {
                Some(near) => format!("correct the entity's tags; did you mean {near}?"),
                None if is_many => {
                    format!("tag the entries by params ({}), or set shape = \"one\"", columns.join(", "))
                }
                None => format!("correct the entity's tags, or add {name} to its columns"),
            };
            findings.add(Finding::error("tag_column", format!("entity {}", entity.name), what, remedy));
        }
    }
}

/// Names the columns whose changes cannot refresh an entry.
pub(super) fn check_types(entity: &EntityConfig, value: &[&Column], types: &ColumnTypes, findings: &mut Findings) {
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

pub(super) fn check_rights(entity: &EntityConfig, row: &Row, needed: &[&Column], role: &str, findings: &mut Findings) {
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

/// Whether a SELECT sees exactly the rows whose changes are streamed under the table's name.
pub(super) fn check_rows(
    subject: String,
    name: &TableName,
    bypass_rls: bool,
    row: &Row,
    role: &str,
    findings: &mut Findings,
) {
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
        findings.add(row_security(subject, name));
    } else if row.get("hides_rows") {
        let what = format!("row-level security of {name} hides rows from {role}: they would be cached as absent");
        let sql = format!("ALTER ROLE {} BYPASSRLS", quote_ident(role));
        let remedy = "let the role see every row";
        findings.add(Finding::error("row_security_role", subject, what, remedy).sql(sql));
    }
}

/// The finding that readers would see rows that policies may hide from them.
pub(in crate::catalog) fn row_security(subject: String, name: &TableName) -> Finding {
    let what = format!(
        "row-level security is enabled on {name}, and neither the stream nor fills obey its policies: every reader would see \
         every row"
    );
    let remedy = "set bypass_rls = true in the entity if every reader may; else do not cache this table";
    Finding::error(ROW_SECURITY, subject, what, remedy)
}

pub(super) async fn missing(client: &Reader<'_>, name: &TableName, subject: String) -> Result<Finding, SourceError> {
    let rows = query(client, "read table names", include_str!("../../../sql/table_names.sql"), &[]).await?;
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

pub(super) fn kind_name(kind: &str) -> &'static str {
    match kind {
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "S" => "a sequence",
        _ => "another kind of relation",
    }
}
