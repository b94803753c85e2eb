//! The tables of a query's rules, and what the rules read there.

use super::Look;
use super::params::{Param, reads_alike};
use crate::catalog::column::{Column, read_columns};
use crate::catalog::finding::Findings;
use crate::catalog::table::{self, Table};
use crate::catalog::types::Oid;
use crate::catalog::{identity, wal2json};
use crate::config::{DependsOn, Plugin, nearest};
use crate::entity::query::{Dependency, RuleColumn};
use crate::source::SourceError;

/// The table of a rule, and what the rule reads there.
pub(super) struct RuleTable {
    pub(super) table: Option<Table>,
    /// The columns that it reads; `None` where one is missing or cannot be read so.
    pub(super) columns: Option<Vec<Column>>,
    /// Whether the role may look into its schema.
    pub(super) schema_usage: bool,
    pub(super) streamed: Vec<crate::entity::StreamedTable>,
}

impl RuleTable {
    pub(super) fn dependency(&self) -> Dependency {
        let column = |column: &Column| {
            let Column { name, type_oid, base, .. } = column;
            RuleColumn { name: name.clone(), type_oid: *type_oid, base_oid: base.oid }
        };
        Dependency {
            table_oid: self.table.as_ref().map_or(0, |table| table.oid),
            partitioned: self.table.as_ref().is_some_and(|table| table.partitioned),
            columns: self.columns.as_ref().map(|columns| columns.iter().map(column).collect()),
            tables: self.streamed.clone(),
        }
    }
}

impl Look<'_> {
    /// The table of a rule: whether its changes are told, and what they void.
    pub(super) async fn rule(
        &self,
        depends: &DependsOn,
        params: Option<&[Param]>,
        findings: &mut Findings,
    ) -> Result<RuleTable, SourceError> {
        let with = (&depends.table, self.entity.bypass_rls);
        let name = &self.entity.name;
        let Some(row) = table::open(self.client, name, with, self.role, self.source, findings).await? else {
            return Ok(RuleTable { table: None, columns: None, schema_usage: true, streamed: Vec::new() });
        };
        let oid: Oid = row.get("oid");
        let all = read_columns(self.client, oid, self.role.0).await?;
        let unreadable = all.iter().filter(|column| !column.readable).map(|column| column.name.clone()).collect();
        let wanted = self.wanted(depends);
        let mut columns = Some(Vec::new());
        for (i, name) in wanted.iter().enumerate() {
            let Some(at) = all.iter().position(|column| column.name == *name) else {
                let near = nearest(name, all.iter().map(|column| column.name.as_str()));
                let what = format!("depends_on: table {} has no column {name}", depends.table);
                let remedy = match near {
                    Some(near) => format!("did you mean {near}?"),
                    None => "correct the rule's columns".to_owned(),
                };
                findings.add(self.error("column_missing", what, remedy));
                columns = None;
                continue;
            };
            let is_usable = self.check_column(depends, &all[at], params.and_then(|params| params.get(i)), findings);
            match &mut columns {
                // Each is taken once: names are distinct, but for parameters that one column gives.
                Some(columns) if is_usable => columns.push(all[at].clone()),
                _ => columns = None,
            }
        }
        // A misspelled column can be in no publication and in no identity: what is said of it is enough.
        let known: Vec<String> =
            wanted.into_iter().filter(|wanted| all.iter().any(|column| column.name == *wanted)).collect();
        let leaves = identity::check_rule(self.client, name, oid, &known, findings).await?;
        let streamed = match self.source.plugin {
            Plugin::Pgoutput => Vec::new(),
            Plugin::Wal2json => wal2json::streamed_tables(self.client, oid).await?,
        };
        let table = Table {
            name: depends.table.clone(),
            oid,
            partitioned: row.get::<_, &str>("kind") == "p",
            ancestors: row.get("ancestors"),
            leaves,
            told: Some(known.clone()),
            key_columns: known,
            value_columns: Vec::new(),
            generated_columns: Vec::new(),
            unreadable,
            role: self.role.1.to_owned(),
            of_query: true,
            published: table::published_as(&row, self.source),
            shape: None,
        };
        Ok(RuleTable { table: Some(table), columns, schema_usage: row.get("schema_usage"), streamed })
    }

    /// The columns that a rule reads, in its order: of a key, in that of the parameters.
    fn wanted(&self, depends: &DependsOn) -> Vec<String> {
        let params = self.entity.params.iter().flat_map(|params| params.names());
        match (&depends.key, &depends.from) {
            (Some(key), _) => {
                let of = |param: &str| key.0.iter().find(|(name, _)| name == param).map(|(_, column)| column.clone());
                params.filter_map(of).collect()
            }
            (None, Some(from)) => from.clone(),
            (None, None) => Vec::new(),
        }
    }

    /// Whether the stream carries a rule's column, and, where it is part of a key, values that are equal to a parameter's
    /// read the same.
    fn check_column(
        &self,
        depends: &DependsOn,
        column: &Column,
        param: Option<&Param>,
        findings: &mut Findings,
    ) -> bool {
        let (table, name) = (&depends.table, &column.name);
        if column.generated {
            let what = format!("depends_on: column {name} of {table} is generated, so the stream does not carry it");
            let remedy = "use the columns that it is made of, with lookup; or all = true";
            findings.add(self.error("key_generated", what, remedy));
            return false;
        }
        let Some(param) = param.filter(|_| depends.key.is_some()) else { return true };
        let why = match column.base.key_type() {
            Ok(of_column) if reads_alike((&param.key.key_type, param.oid), (&of_column, column.base.oid)) => {
                return true;
            }
            Ok(_) => "equal values may have different texts".to_owned(),
            Err(why) => why.to_owned(),
        };
        let what = format!(
            "depends_on: column {name} of {table} is of type {}, and parameter {} of type {}: {why}",
            column.base.name, param.name, param.key.cast
        );
        let remedy = "give the parameter the column's type, and cast it in the query; or use lookup";
        findings.add(self.error("rule_type", what, remedy));
        false
    }
}
