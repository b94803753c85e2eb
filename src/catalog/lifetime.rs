//! The column that says when an entity's entries are due.

use super::finding::{Finding, Findings};
use super::types::Oid;
use crate::config::{EntityConfig, nearest};

/// What may say so: `date`, `timestamp`, `timestamptz`, `interval`; `int2`, `int4`, `int8`, `float4`, `float8`, `numeric`.
const TYPES: [Oid; 10] = [1082, 1114, 1184, 1186, 21, 23, 20, 700, 701, 1700];

/// Checks that the column is one of the value's and of such a type: `value` gives their names, their types with domains
/// looked through, and the names of these.
pub(super) fn check(entity: &EntityConfig, value: &[(&str, Oid, &str)], findings: &mut Findings) {
    let Some(wanted) = &entity.ttl_column else { return };
    let (what, remedy) = match value.iter().find(|(name, ..)| name == wanted) {
        Some((_, oid, _)) if TYPES.contains(oid) => return,
        Some((.., of_type)) => (
            format!("ttl_column: {wanted} is of type {of_type}, which says neither a time nor how long"),
            "name a column that is a date, a timestamp, an interval or a number of seconds".to_owned(),
        ),
        None => (
            format!("ttl_column: there is no column {wanted} in its values"),
            match nearest(wanted, value.iter().map(|(name, ..)| *name)) {
                Some(near) => format!("did you mean {near}?"),
                None => "correct the entity's ttl_column".to_owned(),
            },
        ),
    };
    findings.add(Finding::error("ttl_column", format!("entity {}", entity.name), what, remedy));
}
