//! What plans tell of a query and of its lookups: the tables that they read, and what that costs.

mod relation;
mod tree;
mod unnamed;

use std::collections::BTreeSet;

use self::relation::{Relations, relations};
use self::tree::{Plan, called, compared};
use super::super::finding::{Finding, Findings, Phase};
use super::super::table::{Table, row_security};
use super::super::types::Oid;
use super::super::{query, rights};
use super::explain::{self, Options, Refused};
use super::params::Param;
use super::rule::RuleTable;
use super::{Look, RuleCost, lookup};
use crate::config::{DependsOn, TableName};
use crate::source::SourceError;
use crate::sql::quote_ident;

/// Functions that give another result each time, though Postgres calls them stable: within a statement they do not.
const OF_THE_MOMENT: [&str; 3] = ["now", "transaction_timestamp", "statement_timestamp"];
/// The same, spelled without parentheses.
const KEYWORDS: [&str; 5] = ["CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP", "LOCALTIME", "LOCALTIMESTAMP"];

/// What the plans of a query and its lookups tell.
pub(super) struct Planned {
    /// Whether the query's result changes with what it reads only.
    pub(super) is_steady: bool,
    /// Tables that lookups read and `depends_on` does not name.
    pub(super) looked_up: BTreeSet<Oid>,
    /// By rule.
    pub(super) costs: Vec<RuleCost>,
}

impl Default for Planned {
    fn default() -> Self {
        Planned { is_steady: true, looked_up: BTreeSet::new(), costs: Vec::new() }
    }
}

impl Look<'_> {
    /// Plans the query and its lookups.
    pub(super) async fn plans(
        &self,
        params: &[Param],
        rules: &[RuleTable],
        findings: &mut Findings,
    ) -> Result<Planned, SourceError> {
        let Some(role) = explain::role(self.client, self.role).await? else {
            // The role is still to be made, or cannot be taken: it finds out when it connects.
            return Ok(Planned::default());
        };
        let types: Vec<&str> = params.iter().map(|param| param.key.cast.as_str()).collect();
        let mut plans = Vec::new();
        for avoid_scans in [false, true] {
            let options = Options { role, avoid_scans };
            match explain::plan(self.client, &self.query.sql, &types, options).await? {
                Ok(planned) => plans.extend(Plan::read(planned)),
                Err(refused) => {
                    self.refused((&refused, &self.query.sql), rules, findings).await?;
                    return Ok(Planned::default());
                }
            }
        }
        let [plan, scans] = &plans[..] else { return Ok(Planned::default()) };
        let relations = relations(self.client, plan).await?;
        for (table, relation) in self.unnamed("the query", plan, &relations, findings) {
            let what =
                format!("the query reads {table}, which depends_on does not name: its changes would void nothing");
            let remedy = format!("add to depends_on: {}", self.line(table, relation));
            findings.add(self.error("table_unnamed", what, remedy));
        }
        let mut looked_up = BTreeSet::new();
        self.check_row_security(plan, &relations, findings);
        self.check_locks("the query", plan, findings);
        self.check_scans(scans, &relations, findings);
        let (moving, hiding) = self.functions(&self.query.sql, plan).await?;
        let is_steady = moving.is_empty();
        if !is_steady {
            let what = format!(
                "the query calls {}: its result changes without any change of a table, which nothing tells",
                moving.join(", ")
            );
            let remedy = "set a ttl as short as that matters; or give it as a parameter";
            findings.add(Finding::warning("query_volatile", self.subject.clone(), what, remedy));
        }
        for function in hiding {
            self.hides_tables("the query", &function, findings);
        }
        let mut costs = Vec::new();
        let depends_on = self.entity.depends_on.iter().flatten();
        for ((depends, rule), configured) in depends_on.zip(rules).zip(&self.query.rules) {
            let cost = match (lookup(configured), &depends.key) {
                (Some(sql), _) => match self.lookup_cost(depends, sql, (rule, params), role, findings).await? {
                    Some((cost, besides)) => {
                        looked_up.extend(besides);
                        cost
                    }
                    None => continue,
                },
                (None, Some(_)) => {
                    "drops one key of the row before, and one of the row after, if they differ".to_owned()
                }
                (None, None) => "voids all entries, by a new generation".to_owned(),
            };
            costs.push(RuleCost { entity: self.entity.name.clone(), table: depends.table.to_string(), cost });
        }
        Ok(Planned { is_steady, looked_up, costs })
    }

    /// The cost of a lookup in words, and the tables that it reads and `depends_on` does not name; `None` if it cannot be
    /// carried out.
    async fn lookup_cost(
        &self,
        depends: &DependsOn,
        sql: &str,
        (rule, params): (&RuleTable, &[Param]),
        role: Option<&str>,
        findings: &mut Findings,
    ) -> Result<Option<(String, BTreeSet<Oid>)>, SourceError> {
        let Some(columns) = &rule.columns else { return Ok(None) };
        if !self.check_lookup(depends, sql, (columns, params), findings).await? {
            return Ok(None);
        }
        let types: Vec<&str> = columns.iter().map(|column| column.base.name.as_str()).collect();
        match explain::plan(self.client, sql, &types, Options { role, avoid_scans: false }).await? {
            Ok(planned) => {
                let Some(plan) = Plan::read(planned) else { return Ok(None) };
                let relations = relations(self.client, &plan).await?;
                let who = format!("the lookup of {}", depends.table);
                let besides = self.unnamed(&who, &plan, &relations, findings);
                for (table, relation) in &besides {
                    let what = format!(
                        "{who} reads {table}, which depends_on does not name: a change there voids nothing by itself"
                    );
                    let remedy = format!(
                        "nothing, where a row there that leads to an entry changes together with rows that the query reads; \
                         else add to depends_on: {}",
                        self.line(table, relation)
                    );
                    findings.add(Finding::warning("lookup_unnamed", self.subject.clone(), what, remedy));
                }
                let besides = besides.into_iter().map(|(_, relation)| relation.root).collect();
                self.check_row_security(&plan, &relations, findings);
                self.check_own(depends, &plan, &relations, findings);
                self.check_locks(&who, &plan, findings);
                let (moving, hiding) = self.functions(sql, &plan).await?;
                if !moving.is_empty() {
                    let what = format!("{who} calls {}: what it finds is not always the same", moving.join(", "));
                    let remedy = "let it find each entry that the row may be part of, whenever that was read";
                    findings.add(Finding::warning("lookup_volatile", self.subject.clone(), what, remedy));
                }
                for function in hiding {
                    self.hides_tables(&who, &function, findings);
                }
                let Plan { cost, rows, .. } = plan;
                let cost = format!("runs its lookup (planner's cost {cost:.0}), and drops about {rows:.0} key(s)");
                Ok(Some((cost, besides)))
            }
            Err(refused) => {
                let what = format!("depends_on: the lookup of {} is refused: {}", depends.table, refused.said);
                let finding = self.error("lookup_refused", what, "correct it, or grant what it needs");
                findings.add(self.granted(finding, &refused, sql).await?);
                Ok(None)
            }
        }
    }

    /// The database refuses the query: for want of rights, or because it is not right itself.
    pub(super) async fn refused(
        &self,
        (refused, sql): (&Refused, &str),
        rules: &[RuleTable],
        findings: &mut Findings,
    ) -> Result<(), SourceError> {
        // In a schema that may not be looked into, a table that is not named with it does not exist.
        let is_hidden = || rules.iter().any(|rule| !rule.schema_usage);
        if !refused.rights && !is_hidden() {
            let what = format!("the database refuses the query: {}", refused.said);
            let remedy = "correct the entity's query, or its params, or what it reads";
            findings.add(self.error("query_refused", what, remedy));
            return Ok(());
        }
        let what = format!("role {} may not run the query: {}", self.role.1, refused.said);
        let role = quote_ident(self.role.1);
        let of = |lacks: &dyn Fn(&RuleTable, &Table) -> bool, name: &dyn Fn(&Table) -> String| -> BTreeSet<String> {
            let tables = rules.iter().filter_map(|rule| Some((rule, rule.table.as_ref()?)));
            tables.filter(|(rule, table)| lacks(rule, table)).map(|(_, table)| name(table)).collect()
        };
        let schemas = of(&|rule, _| !rule.schema_usage, &|table| quote_ident(&table.name.schema));
        let tables = of(&|_, table| !table.unreadable.is_empty(), &|table| table.name.sql());
        let usage = schemas.iter().map(|schema| format!("GRANT USAGE ON SCHEMA {schema} TO {role}"));
        let select = tables.iter().map(|table| format!("GRANT SELECT ON {table} TO {role}"));
        let mut grants: Vec<String> = usage.chain(select).collect();
        // What the server names need not be among the tables of `depends_on`, which is a finding of its own.
        let named = rights::grants(self.client, self.role.0, refused, sql).await?;
        grants.extend(named.into_iter().filter(|grant| !grants.contains(grant)).collect::<Vec<_>>());
        findings.add(match grants.is_empty() {
            // What FOR UPDATE asks for is more than a reader needs.
            true => {
                self.error("query_rights", what, "grant what it reads; a query that locks rows is refused in any case")
            }
            false => self.error("query_rights", what, "grant it").mended_in(Phase::Grant, grants.join(";\n")),
        });
        Ok(())
    }

    /// A finding of a refusal, with the grants that mend it where rights are missing.
    pub(super) async fn granted(&self, finding: Finding, refused: &Refused, sql: &str) -> Result<Finding, SourceError> {
        let grants = rights::grants(self.client, self.role.0, refused, sql).await?;
        Ok(match grants.is_empty() {
            true => finding,
            false => finding.mended_in(Phase::Grant, grants.join(";\n")),
        })
    }

    /// Whether the query reads rows that policies may hide from its readers, of tables that `depends_on` does not name: of
    /// those that it names it is a finding of the rule.
    fn check_row_security(&self, plan: &Plan, relations: &Relations, findings: &mut Findings) {
        let mut said = BTreeSet::new();
        let hidden = plan.relations.iter().filter_map(|name| relations.get(name));
        for relation in hidden.filter(|relation| relation.row_security && !self.entity.bypass_rls) {
            let named = |table: &TableName| self.entity.depends_on.iter().flatten().any(|d| d.table == *table);
            let Some(table) = relation.above.last().filter(|table| said.insert((*table).clone())) else { continue };
            if !relation.above.iter().any(named) {
                findings.add(row_security(self.subject.clone(), table));
            }
        }
    }

    /// Whether a rule's lookup reads the rule's own table.
    fn check_own(&self, depends: &DependsOn, plan: &Plan, relations: &Relations, findings: &mut Findings) {
        let of_plan = plan.relations.iter().filter_map(|name| relations.get(name));
        if of_plan.flat_map(|relation| &relation.above).any(|table| *table == depends.table) {
            let table = &depends.table;
            let what = format!(
                "the lookup of {table} reads {table} itself: it runs after the change, so it does not see the changed row \
                 as it was, nor one that was deleted"
            );
            let remedy = "take what is needed of the row itself by from, which gives it before the change and after it; or \
                          use key";
            findings.add(Finding::warning("lookup_own_table", self.subject.clone(), what, remedy));
        }
    }

    /// Whether rows are locked by what reads them: the application would wait for that.
    fn check_locks(&self, who: &str, plan: &Plan, findings: &mut Findings) {
        if plan.locks() {
            let what = format!("{who} locks the rows that it reads (FOR UPDATE, FOR SHARE and the like)");
            findings.add(self.error("query_locks", what, "leave the locking clause out"));
        }
    }

    /// Tables that are read as a whole because no index serves.
    fn check_scans(&self, plan: &Plan, relations: &Relations, findings: &mut Findings) {
        let mut said = BTreeSet::new();
        for node in &plan.nodes {
            let by_param = node.filter.as_deref().is_some_and(|filter| filter.contains('$'));
            let whole = node.kind.ends_with("Seq Scan") || (by_param && node.index_condition.is_none());
            let Some(relation) = node.relation.as_ref().filter(|_| whole).and_then(|name| relations.get(name)) else {
                continue;
            };
            let Some(table) = relation.above.last().filter(|table| said.insert((*table).clone())) else { continue };
            let condition = match &node.filter {
                Some(filter) => format!("no index serves {filter}"),
                None => "no index serves its condition".to_owned(),
            };
            let rows = if relation.estimate < 0.0 {
                "never analyzed".to_owned()
            } else {
                format!("about {:.0} rows", relation.estimate)
            };
            let what = format!("each fill reads all of {table} ({rows}): {condition}");
            let remedy = "make an index, unless the table stays small";
            let finding = Finding::warning("query_scan", self.subject.clone(), what, remedy);
            let column = node.filter.as_deref().and_then(|filter| compared(filter, &relation.columns));
            findings.add(match column {
                Some(column) => {
                    let concurrently = if relation.above.len() > 1 { "" } else { "CONCURRENTLY " };
                    finding.sql(format!("CREATE INDEX {concurrently}ON {} ({})", table.sql(), quote_ident(&column)))
                }
                None => finding,
            });
        }
    }

    /// What makes a result change by itself; and the functions that may read what the plan does not show.
    async fn functions(&self, sql: &str, plan: &Plan) -> Result<(Vec<String>, BTreeSet<String>), SourceError> {
        let names: BTreeSet<&str> = plan.texts().flat_map(called).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let rows =
            query(self.client, "read functions", include_str!("../../../sql/plan_functions.sql"), &[&names]).await?;
        let name = |row: &tokio_postgres::Row| row.get::<_, String>("name");
        let mut moving: BTreeSet<String> = rows.iter().filter(|row| row.get("volatile")).map(name).collect();
        moving.extend(names.iter().filter(|name| OF_THE_MOMENT.contains(name)).map(|name| (*name).to_owned()));
        let keywords = KEYWORDS.iter().filter(|keyword| {
            plan.texts()
                .any(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == **keyword))
        });
        moving.extend(keywords.map(|keyword| (*keyword).to_owned()));
        moving.extend(plan.of_today(sql).map(|literal| format!("'{literal}'")));
        if plan.samples() {
            moving.insert("TABLESAMPLE".to_owned());
        }
        let hiding = rows.iter().filter(|row| row.get("hides_tables")).map(name).collect();
        Ok((moving.into_iter().collect(), hiding))
    }

    fn hides_tables(&self, who: &str, function: &str, findings: &mut Findings) {
        let what = format!("{who} calls {function}, and a plan does not show which tables a function reads");
        let remedy = "see that depends_on names them";
        findings.add(Finding::warning("query_function", self.subject.clone(), what, remedy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_tell_the_column_that_an_index_is_wanted_on() {
        let columns: Vec<String> = ["customer_id", "Email", "code"].map(str::to_owned).to_vec();
        let cases = [
            ("(customer_id = $1)", Some("customer_id")),
            ("(orders.customer_id = $1)", Some("customer_id")),
            ("((orders.code)::text = $2)", Some("code")),
            ("((o.\"Email\")::text = $1)", Some("Email")),
            ("(lower(code) = $1)", None),
            ("((id > 1) AND (customer_id = $1))", Some("customer_id")),
            ("(other = $1)", None),
            ("(customer_id > $1)", None),
        ];
        for (filter, column) in cases {
            assert_eq!(compared(filter, &columns).as_deref(), column, "{filter}");
        }
    }
}
