//! Constraints on entities that are the results of a query.

use std::collections::HashSet;

use super::super::EntityConfig;
use super::super::depends_on::DependsOn;
use super::super::entity::statement;
use super::super::error::nearest;
use super::super::table_name::TableName;
use super::super::violations::Violations;

/// Whether this is the name of a type, and nothing that could be more than that.
fn is_type(name: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | ' ' | '.' | '"' | '(' | ')' | ',' | '$');
    !name.trim().is_empty() && name.chars().all(plain)
}

/// Checks what makes an entity the rows of a table or the results of a query, and that it is one of them.
pub(super) fn validate(i: usize, entity: &EntityConfig, found: &mut Violations) {
    let field = |name: &str| format!("entity[{i}].{name}");
    let name = &entity.name;
    let Some(query) = &entity.query else {
        found.require(entity.table != TableName::default(), &field("table"), || {
            format!("entity {name:?}: required (or query, with params and depends_on): the table whose rows are cached")
        });
        let of_queries = [
            ("params", entity.params.is_some()),
            ("shape", entity.shape.is_some()),
            ("depends_on", entity.depends_on.is_some()),
        ];
        for (key, _) in of_queries.into_iter().filter(|(_, is_set)| *is_set) {
            found.add(&field(key), format!("entity {name:?}: belongs to a query: set query, or remove {key}"));
        }
        return;
    };
    found.require(entity.table == TableName::default(), &field("table"), || {
        format!(
            "entity {name:?}: table and query exclude each other: keep one; what a query reads goes into depends_on"
        )
    });
    found.require(!statement(query).is_empty(), &field("query"), || {
        format!("entity {name:?}: must be a SELECT with $1 and so on for the params")
    });
    let of_tables = [
        ("columns", entity.columns.is_some(), "select the columns in the query"),
        ("key", entity.key.is_some(), "its params are its key"),
        ("populate", entity.populate, "which entries there are is known only by their being read"),
    ];
    for (key, _, why) in of_tables.into_iter().filter(|(_, is_set, _)| *is_set) {
        found.add(&field(key), format!("entity {name:?}: means nothing for a query: {why}; remove {key}"));
    }
    let params: Vec<&str> = match &entity.params {
        Some(params) if !params.0.is_empty() => {
            for (param, of_type) in &params.0 {
                found.require(!param.is_empty() && is_type(of_type), &field("params"), || {
                    format!("entity {name:?}: {param} = {of_type:?} must name a type, such as \"bigint\" or \"numeric(10,2)\"")
                });
            }
            params.names().collect()
        }
        _ => {
            let why =
                "required with query: its parameters with their types, $1 first: params = { customer_id = \"bigint\" }";
            found.add(&field("params"), format!("entity {name:?}: {why}"));
            return;
        }
    };
    let depends_on = entity.depends_on.as_deref().unwrap_or_default();
    found.require(!depends_on.is_empty(), &field("depends_on"), || {
        format!(
            "entity {name:?}: required with query: each table that it reads, with what a change there voids, such as \
             {{ table = \"public.orders\", key = {{ {} = \"column\" }} }}",
            params[0]
        )
    });
    for (n, depends) in depends_on.iter().enumerate() {
        validate_rule(&format!("entity[{i}].depends_on[{n}]"), &params, depends, found);
    }
}

fn validate_rule(field: &str, params: &[&str], depends: &DependsOn, found: &mut Violations) {
    let DependsOn { table, key, lookup, from, all } = depends;
    found.require(*all != Some(false), &format!("{field}.all"), || "must be true, or left out".to_owned());
    let ways = [key.is_some(), lookup.is_some(), all.is_some()].into_iter().filter(|is_set| *is_set).count();
    found.require(ways == 1, field, || {
        format!(
            "{table}: must have exactly one of key = {{ {} = \"column\" }}, lookup = \"SELECT ...\" with from = [\"column\"], \
             and all = true",
            params[0]
        )
    });
    if let Some(key) = key {
        for unknown in key.names().filter(|name| !params.contains(name)) {
            let near = nearest(unknown, params.iter().copied()).map(|near| format!("; did you mean {near:?}?"));
            let known = || format!("; they are {}", params.join(", "));
            found.add(
                &format!("{field}.key"),
                format!("{table}: {unknown:?} is none of the params{}", near.unwrap_or_else(known)),
            );
        }
        let missing: Vec<&str> = params.iter().copied().filter(|param| key.get(param).is_none()).collect();
        found.require(missing.is_empty(), &format!("{field}.key"), || {
            format!(
                "{table}: must give a column for each of the params, and lacks {}; where the row has none, use lookup or all",
                missing.join(", ")
            )
        });
        found.require(key.0.iter().all(|(_, column)| !column.is_empty()), &format!("{field}.key"), || {
            format!("{table}: must name a column for each of the params")
        });
    }
    let wanted =
        || format!("{table}: lookup and from go together: from = [\"id\"] are the columns of the row that it is given");
    match (lookup, from) {
        (Some(_), None) => found.add(&format!("{field}.from"), wanted()),
        (None, Some(_)) => found.add(&format!("{field}.lookup"), wanted()),
        (Some(lookup), Some(from)) => {
            found.require(!statement(lookup).is_empty(), &format!("{field}.lookup"), || {
                format!("{table}: must be a SELECT with $1 and so on for the columns in from")
            });
            let distinct: HashSet<&String> = from.iter().collect();
            let fine = !from.is_empty() && distinct.len() == from.len() && from.iter().all(|name| !name.is_empty());
            found.require(fine, &format!("{field}.from"), || {
                format!("{table}: must name at least one column, and none twice")
            });
        }
        (None, None) => {}
    }
}
