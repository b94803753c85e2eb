//! A plan as Postgres tells it: its nodes, and their expressions.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::catalog::queries::explain::Planned;

/// What stands for a time that is now, in a literal of a date's or a time's type. Postgres makes a constant of it early.
const OF_TODAY: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];

/// One plan.
pub(super) struct Plan {
    pub(super) cost: f64,
    /// How many rows the planner expects.
    pub(super) rows: f64,
    pub(super) nodes: Vec<Node>,
    /// The relations that it reads, by schema and name; also those that no node reads, because they are taken to have no rows,
    /// or none that matter.
    pub(super) relations: BTreeSet<(String, String)>,
}

/// A node of a plan.
pub(super) struct Node {
    pub(super) kind: String,
    /// The relation that it reads.
    pub(super) relation: Option<(String, String)>,
    /// What it looks for in an index.
    pub(super) index_condition: Option<String>,
    /// What it sorts out after it was read.
    pub(super) filter: Option<String>,
    /// Whether a sample that it takes is always the same.
    is_repeatable: bool,
    /// All its expressions.
    texts: Vec<String>,
}

impl Plan {
    pub(super) fn read(planned: Planned) -> Option<Plan> {
        let root = planned.json.get(0)?.get("Plan")?;
        let mut nodes = Vec::new();
        collect(root, &mut nodes);
        let mut relations = planned.reads;
        relations.extend(nodes.iter().filter_map(|node| node.relation.clone()));
        let number = |name: &str| root.get(name).and_then(Value::as_f64);
        Some(Plan { cost: number("Total Cost")?, rows: number("Plan Rows").unwrap_or_default(), nodes, relations })
    }

    /// Whether it takes rows by chance.
    pub(super) fn samples(&self) -> bool {
        self.nodes.iter().any(|node| node.kind == "Sample Scan" && !node.is_repeatable)
    }

    /// Whether it locks the rows that it reads.
    pub(super) fn locks(&self) -> bool {
        self.nodes.iter().any(|node| node.kind == "LockRows")
    }

    /// The literals of its SQL that stand for a time that is now.
    pub(super) fn of_today<'s>(&self, sql: &'s str) -> impl Iterator<Item = &'s str> {
        literals(sql).filter(|literal| {
            let word = literal.split_whitespace().next().unwrap_or_default();
            // What is a text is shown as it is.
            let shown = format!("'{literal}'::");
            let is_text = |text: &str| text.split(&shown).skip(1).any(|rest| !rest.starts_with("cstring"));
            OF_TODAY.iter().any(|of| of.eq_ignore_ascii_case(word)) && !self.texts().any(is_text)
        })
    }

    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().flat_map(|node| node.texts.iter().map(String::as_str))
    }
}

fn collect(node: &Value, nodes: &mut Vec<Node>) {
    let text = |key: &str| node.get(key).and_then(Value::as_str).map(str::to_owned);
    let expressions = node.as_object().into_iter().flatten().filter(|(key, _)| *key != "Plans");
    let texts = expressions.flat_map(|(_, value)| match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    });
    nodes.push(Node {
        kind: text("Node Type").unwrap_or_default(),
        relation: text("Schema").zip(text("Relation Name")),
        index_condition: text("Index Cond").or_else(|| text("Recheck Cond")).or_else(|| text("TID Cond")),
        filter: text("Filter"),
        is_repeatable: node.get("Repeatable Seed").is_some(),
        texts: texts.collect(),
    });
    for child in node.get("Plans").and_then(Value::as_array).into_iter().flatten() {
        collect(child, nodes);
    }
}

/// What stands between quotes in a statement, roughly.
fn literals(sql: &str) -> impl Iterator<Item = &str> {
    sql.split('\'').skip(1).step_by(2)
}

/// The names of functions that an expression calls.
pub(super) fn called(text: &str) -> impl Iterator<Item = &str> {
    let of_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    text.match_indices('(').filter_map(move |(at, _)| {
        let before = text[..at].trim_end_matches('"');
        let name = before.rsplit(|c| !of_name(c)).next().unwrap_or_default();
        (!name.is_empty()).then_some(name)
    })
}

/// The column that a filter compares with a parameter, if it is of this simple form: `(customer_id = $1)`, casts and the
/// table's name left aside.
pub(super) fn compared(filter: &str, columns: &[String]) -> Option<String> {
    let (before, _) = filter.split_once(" = $")?;
    let before = before.trim_end_matches([')', ']']);
    let bare = before.rsplit_once("::").map_or(before, |(column, _)| column).trim_end_matches(')');
    // A function's argument is not what is compared.
    let start = bare.rfind(['(', ' ']).map_or(0, |at| at + 1);
    if bare[..start].trim_end_matches('(').ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '"')) {
        return None;
    }
    let name = bare[start..].rsplit('.').next()?.trim_matches('"');
    columns.iter().find(|column| *column == name).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_told_by_their_names() {
        let names: Vec<&str> = called("(public.f(a) > (now() - '1 day'::interval))").collect();
        assert_eq!(names, ["f", "now"]);
    }
}
