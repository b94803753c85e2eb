//! What a query or a lookup reads besides the tables of `depends_on`.

use std::collections::BTreeSet;

use super::relation::{Relation, Relations};
use super::tree::Plan;
use crate::catalog::finding::Findings;
use crate::catalog::queries::Look;
use crate::config::TableName;

/// Schemas whose tables are not in the log.
const OF_THE_SYSTEM: [&str; 2] = ["pg_catalog", "information_schema"];

impl Look<'_> {
    /// The tables that a plan reads and `depends_on` does not name. Where their changes are not in the log, that is an error.
    pub(super) fn unnamed<'r>(
        &self,
        who: &str,
        plan: &Plan,
        relations: &'r Relations,
        findings: &mut Findings,
    ) -> Vec<(&'r TableName, &'r Relation)> {
        let mut said = BTreeSet::new();
        let mut unnamed = Vec::new();
        for relation in plan.relations.iter().filter_map(|name| relations.get(name)) {
            let named = |table: &TableName| self.entity.depends_on.iter().flatten().any(|d| d.table == *table);
            if relation.above.iter().any(named) {
                continue;
            }
            // By the topmost name: so come the changes of all partitions.
            let Some(table) = relation.above.last().filter(|table| said.insert(*table)) else { continue };
            let (what, remedy) = match relation.kind.as_str() {
                "m" => (
                    format!("{who} reads the materialized view {table}, and its refreshes are not in the log"),
                    "let it read what the view is made of",
                ),
                "f" => (
                    format!("{who} reads the foreign table {table}, and its changes are not in this server's log"),
                    "leave it out",
                ),
                "S" => (
                    format!("{who} reads the sequence {table}, and what it has given is not in the log"),
                    "leave it out",
                ),
                _ if OF_THE_SYSTEM.contains(&table.schema.as_str()) => (
                    format!("{who} reads the system catalog {table}, and its changes are not in the log"),
                    "leave it out",
                ),
                _ => {
                    unnamed.push((table, relation));
                    continue;
                }
            };
            findings.add(self.error("table_unnamed", what, remedy));
        }
        unnamed
    }

    /// What would name a table in `depends_on`.
    pub(super) fn line(&self, table: &TableName, relation: &Relation) -> String {
        let params: Vec<&str> = self.entity.params.iter().flat_map(|params| params.names()).collect();
        if params.iter().all(|param| relation.columns.iter().any(|column| column == param)) {
            let key: Vec<String> = params.iter().map(|param| format!("{param} = \"{param}\"")).collect();
            return format!("{{ table = \"{table}\", key = {{ {} }} }}", key.join(", "));
        }
        format!("{{ table = \"{table}\", all = true }}, or a key or lookup that tells which entries a row is part of")
    }
}
