//! What a lookup asks Postgres, and the keys that it is given.

use std::borrow::Cow;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::LookupError;
use crate::entity::query::Via;
use crate::entity::{Entity, EntryKey, Shape};
use crate::key::KeyError;
use crate::source::text::of_oid;

const LOOKUP: &str = include_str!("../../../sql/lookup.sql");

/// The statement of a rule's lookup, which gives at most `limit` rows of keys, and the types of its parameters: those of the rule's
/// columns. What else the server might take them for is not what `check` has looked at.
///
/// # Errors
/// [`LookupError::NoRule`].
pub fn statement(
    entity: &Entity,
    shape: &Shape,
    rule: usize,
    limit: usize,
) -> Result<(String, Vec<Type>), LookupError> {
    let no_rule = || LookupError::NoRule(entity.name.clone());
    let via = entity.query.as_ref().and_then(|query| query.rules.get(rule)).map(|rule| &rule.via);
    let Some(Via::Lookup { sql, .. }) = via else { return Err(no_rule()) };
    let columns = shape.depends().get(rule).and_then(|dependency| dependency.columns.as_ref()).ok_or_else(no_rule)?;
    let types = columns.iter().map(|column| of_oid(column.base_oid)).collect();
    let parts = shape.key.len();
    let list = |form: &dyn Fn(usize) -> String| (0..parts).map(form).collect::<Vec<_>>().join(", ");
    let statement = crate::sql::statement(LOOKUP)
        .replace("{columns}", &list(&|i| format!("found.k{i}::text")))
        .replace("{names}", &list(&|i| format!("k{i}")))
        .replace("{limit}", &limit.to_string())
        // Last: it may hold any text.
        .replace("{lookup}", sql);
    Ok((statement, types))
}

/// The entry of a row of keys; `None` if it has none, because a part is NULL, or no request has such a key.
///
/// # Errors
/// If the row is none of keys.
pub fn key(entity: &Entity, row: &Row) -> Result<Option<EntryKey>, LookupError> {
    let part = |i| row.try_get::<_, Option<&str>>(i).map_err(LookupError::Refused);
    let parts: Vec<Option<&str>> = (0..row.len()).map(part).collect::<Result<_, _>>()?;
    let Some(parts) = parts.into_iter().map(|part| part.map(Cow::Borrowed)).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    match entity.key_of(&parts) {
        Ok(key) => Ok(Some(key)),
        // The entity's parameters are others than when the lookup was prepared.
        Err(error @ KeyError::Parts { .. }) => Err(LookupError::Form(error.to_string())),
        Err(_) => Ok(None),
    }
}
