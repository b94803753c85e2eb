//! What is to be granted where a statement is refused for want of rights.

use tokio_postgres::Row;

use super::queries::Refused;
use super::query;
use super::reader::Reader;
use super::types::Oid;
use crate::source::SourceError;
use crate::sql::quote_ident;

/// The grants after which `role` is not refused so any more: of what the server names. It names one thing at a time, and
/// for what is no table, view or schema there is none.
pub(super) async fn grants(
    client: &Reader<'_>,
    role: Oid,
    refused: &Refused,
    statement: &str,
) -> Result<Vec<String>, SourceError> {
    if !refused.rights {
        return Ok(Vec::new());
    }
    let sql = include_str!("../../sql/refused_relations.sql");
    let rows = query(client, "read what is refused", sql, &[&refused.message, &role, &statement]).await?;
    let grant = |row: &Row| {
        let (role, schema) = (quote_ident(row.get("role")), quote_ident(row.get("schema")));
        match row.get::<_, Option<&str>>("name") {
            Some(name) => format!("GRANT SELECT ON {schema}.{} TO {role}", quote_ident(name)),
            None => format!("GRANT USAGE ON SCHEMA {schema} TO {role}"),
        }
    };
    Ok(rows.iter().map(grant).collect())
}
